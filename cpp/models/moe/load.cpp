// From files to a MoeModel: the Hugging Face folder, OpenAI's original folder, the predecessor's model.bin.
#include <filesystem>

#include "core/registry.h"
#include "io/hash.h"
#include "io/mmap.h"
#include "io/tokenizer.h"
#include "models/moe/model.h"

namespace trivium::moe {
namespace {

namespace fs = std::filesystem;

// Stops of the published models, for formats that do not name any: return, endoftext, call.
constexpr int32_t kHarmonyStops[] = {200002, 199999, 200012};

// generation_config.json's eos_token_id, else config.json's.
std::vector<int32_t> stop_ids(const std::string& folder, const MoeConfig& config) {
  const std::string path = folder + "/generation_config.json";
  std::vector<int32_t> ids = config.eos_ids;
  if (io::is_present(path)) {
    const io::JsonValue json = io::parse_json_document(io::read_small_file(path, 1 << 20), path);
    if (const io::JsonValue* eos = json.find("eos_token_id")) {
      std::vector<int32_t> found;
      const auto add = [&](const io::JsonValue& id) {
        if (!id.is_integer() || id.integer() < 0 || id.integer() >= config.vocab_size)
          throw ModelFormatError(
              concat(path, ": \"eos_token_id\" is not a token id below ", config.vocab_size));
        found.push_back(static_cast<int32_t>(id.integer()));
      };
      if (eos->array())
        for (const io::JsonValue& id : *eos->array()) add(id);
      else
        add(*eos);
      ids = std::move(found);
    }
  }
  return ids;
}

// The tokenizer named by the options, or the first of `folders` that has one; null when there is none.
std::shared_ptr<const io::Tokenizer> find_tokenizer(std::initializer_list<std::string> folders,
                                                    const MoeConfig& config, const LoadOptions& options) {
  if (!options.load_tokenizer) return nullptr;
  std::shared_ptr<const io::Tokenizer> tokenizer;
  std::string where = options.tokenizer_path;
  if (!where.empty()) {
    tokenizer = io::Tokenizer::load(where);
  } else {
    for (const std::string& folder : folders) {
      if (tokenizer || !io::Tokenizer::present(folder)) continue;
      where = folder;
      tokenizer = io::Tokenizer::load(folder);
    }
  }
  if (tokenizer && tokenizer->vocab_size() > config.vocab_size)
    throw ModelFormatError(concat(where, ": the tokenizer has ", tokenizer->vocab_size(),
                                  " tokens, the model only ", config.vocab_size));
  return tokenizer;
}

// Before anything is uploaded.
void check_fits(const std::string& path, int64_t bytes, Device device) {
  const DeviceProperties p = device_properties(device);
  if (bytes > p.free_bytes)
    throw OutOfMemory(concat(path, ": its weights need ", bytes >> 20, " MiB; ", device, " (", p.name,
                             ") has ", p.free_bytes >> 20, " MiB free of ", p.total_bytes >> 20,
                             " MiB; --device cpu maps them from the file instead"));
}

std::shared_ptr<Model> assemble(const std::string& path, std::string config_text, MoeConfig config,
                                const std::shared_ptr<const io::TensorArchive>& archive, Layout layout,
                                std::vector<int32_t> stops, std::shared_ptr<const io::Tokenizer> tokenizer,
                                LoadOptions options) {
  TRIVIUM_CHECK(options.odd_window >= 0, "odd_window is ", options.odd_window, ", expected 0 or more");
  config.odd_window = options.odd_window;
  const bool gpu = is_gpu(options.device.kind);
  if (options.precision == Precision::automatic)
    options.precision = gpu || cpu_has_bf16_dot() ? Precision::bfloat16 : Precision::float32;
  MoeWeights weights;
  if (options.load_weights) {
    if (gpu) check_fits(path, archive->total_bytes(), options.device);
    weights = load_weights(archive, path, config, layout, options);
  }
  ModelInfo info;
  info.model_type = "gpt_oss";
  info.path = path;
  info.vocab_size = static_cast<int32_t>(config.vocab_size);
  info.max_positions = config.max_positions;
  info.stop_ids = std::move(stops);
  info.precision = options.precision;
  info.device = options.device;
  info.weight_bytes = archive->total_bytes();
  info.fingerprint = io::hash64(config_text, archive->fingerprint());
  info.config_json = std::move(config_text);
  return std::make_shared<MoeModel>(std::move(config), std::move(weights), std::move(info),
                                    std::move(tokenizer));
}

// Stops by name when the tokenizer has them, else the published ids that exist.
std::vector<int32_t> default_stops(const io::Tokenizer* tokenizer, const MoeConfig& config) {
  std::vector<int32_t> stops;
  for (const char* name : {"<|return|>", "<|endoftext|>", "<|call|>"})
    if (const auto id = tokenizer ? tokenizer->special_id(name) : std::nullopt) stops.push_back(*id);
  if (stops.empty())
    for (const int32_t id : kHarmonyStops)
      if (id < config.vocab_size) stops.push_back(id);
  return stops;
}

}  // namespace

std::shared_ptr<Model> load_hugging_face(const std::string& folder, const std::string& config_text,
                                         const LoadOptions& options) {
  const std::string name = folder + "/config.json";
  MoeConfig config = parse_hf_config(io::parse_json_document(config_text, name), name);
  const auto archive = io::TensorArchive::open(folder, options.load_mode);
  auto tokenizer = find_tokenizer({folder}, config, options);
  auto stops = stop_ids(folder, config);
  return assemble(folder, config_text, std::move(config), archive, Layout::hugging_face, std::move(stops),
                  std::move(tokenizer), options);
}

std::shared_ptr<Model> load_openai(const std::string& folder, const std::string& config_text,
                                   const LoadOptions& options) {
  const std::string name = folder + "/config.json";
  MoeConfig config = parse_openai_config(io::parse_json_document(config_text, name), name);
  const auto archive = io::TensorArchive::open(folder, options.load_mode);
  // In a release this is the folder original/ inside the Hugging Face one, where the tokenizer lies.
  const std::string parent = fs::absolute(folder).lexically_normal().parent_path().string();
  auto tokenizer = find_tokenizer({folder, parent}, config, options);
  auto stops = default_stops(tokenizer.get(), config);
  return assemble(folder, config_text, std::move(config), archive, Layout::openai, std::move(stops),
                  std::move(tokenizer), options);
}

std::shared_ptr<Model> load_flat_bin(const std::string& file, const LoadOptions& options) {
  const io::FlatBinModel flat = io::open_flat_bin(file, options.load_mode);
  MoeConfig config = from_flat_bin(flat.header, file);
  auto tokenizer = find_tokenizer({fs::absolute(file).parent_path().string()}, config, options);
  auto stops = default_stops(tokenizer.get(), config);
  return assemble(file, "{}", std::move(config), flat.weights, Layout::openai, std::move(stops),
                  std::move(tokenizer), options);
}

}  // namespace trivium::moe
