#include "models/folder.h"

#include "core/registry.h"
#include "io/hash.h"
#include "io/json.h"
#include "io/mmap.h"

namespace trivium {

std::vector<int32_t> stop_ids_of(const std::string& folder, std::vector<int32_t> fallback,
                                 int64_t vocab_size) {
  const std::string path = folder + "/generation_config.json";
  if (!io::is_present(path)) return fallback;
  const io::JsonValue json = io::parse_json_document(io::read_small_file(path, 1 << 20), path);
  const io::JsonValue* eos = json.find("eos_token_id");
  if (!eos) return fallback;
  std::vector<int32_t> ids;
  const auto add = [&](const io::JsonValue& id) {
    if (!id.is_integer() || id.integer() < 0 || id.integer() >= vocab_size)
      throw ModelFormatError(concat(path, ": \"eos_token_id\" is not a token id below ", vocab_size));
    ids.push_back(static_cast<int32_t>(id.integer()));
  };
  if (eos->array())
    for (const io::JsonValue& id : *eos->array()) add(id);
  else
    add(*eos);
  return ids;
}

std::shared_ptr<const io::Tokenizer> tokenizer_of(const std::vector<std::string>& folders, int64_t vocab_size,
                                                  const LoadOptions& options) {
  if (!options.load_tokenizer) return nullptr;
  std::string where = options.tokenizer_path;
  for (const std::string& folder : folders)
    if (where.empty() && io::Tokenizer::present(folder)) where = folder;
  if (where.empty()) return nullptr;
  auto tokenizer = io::Tokenizer::load(where);
  if (tokenizer->vocab_size() > vocab_size)
    throw ModelFormatError(concat(where, ": the tokenizer has ", tokenizer->vocab_size(),
                                  " tokens, the model only ", vocab_size));
  return tokenizer;
}

Precision resolve(Precision precision, Device device) {
  if (precision != Precision::automatic) return precision;
  return is_gpu(device.kind) || cpu_has_bf16_dot() ? Precision::bfloat16 : Precision::float32;
}

ModelInfo info_of(const char* model_type, const std::string& path, const std::string& config_text,
                  const io::TensorArchive& archive, Precision precision, const LoadOptions& options) {
  ModelInfo info;
  info.model_type = model_type;
  info.path = path;
  info.precision = precision;
  info.device = options.device;
  info.weight_bytes = archive.total_bytes();
  if (options.fingerprint) {
    info.fingerprint = io::hash64(config_text, archive.fingerprint(options.cancel, options.on_hash_progress));
    archive.check_unchanged();
  }
  info.config_json = config_text;
  return info;
}

void check_weights_fit(const std::string& path, int64_t bytes, Device device) {
  if (!is_gpu(device.kind)) return;
  const DeviceProperties p = device_properties(device);
  if (bytes > p.free_bytes)
    throw OutOfMemory(concat(path, ": its weights need ", bytes >> 20, " MiB; ", device, " (", p.name,
                             ") has ", p.free_bytes >> 20, " MiB free of ", p.total_bytes >> 20,
                             " MiB; --device cpu maps them from the file instead"));
}

}  // namespace trivium
