// What a path holds, and which family loads it.
#include <algorithm>
#include <filesystem>

#include "io/json.h"
#include "io/mmap.h"
#include "models/lut/model.h"
#include "models/mlstm/model.h"
#include "models/model.h"
#include "models/moe/model.h"

namespace trivium {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxConfigBytes = 1 << 20;

struct Family {
  const char* model_type;
  std::shared_ptr<Model> (*load)(const std::string& folder, const std::string& config_text,
                                 const LoadOptions& options);
};

// One line a family.
constexpr Family kFamilies[] = {
    {"gpt_oss", moe::load_hugging_face}, {"lut_transformer", lut::load_folder}, {"xlstm", xlstm::load_xlstm}};

// Names of a few files of the folder, for people who wonder where the rest is.
std::string contents(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code failed;
  for (const auto& entry : fs::directory_iterator(folder, failed))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  if (names.empty()) return "it is empty";
  std::string list = "found: ";
  for (size_t i = 0; i < names.size() && i < 5; ++i) list += (i ? ", " : "") + printable(names[i]);
  return names.size() > 5 ? concat(list, " and ", names.size() - 5, " more") : list;
}

std::shared_ptr<Model> load_folder(const std::string& folder, const LoadOptions& options) {
  const std::string path = folder + "/config.json";
  if (!io::is_present(path)) {
    if (io::is_present(folder + "/model.bin")) return moe::load_flat_bin(folder + "/model.bin", options);
    throw ModelFormatError(
        concat("no config.json in \"", folder, "\" (", contents(folder), "). Did the download finish?"));
  }
  const std::string text = io::read_small_file(path, kMaxConfigBytes);
  const io::JsonValue json = io::parse_json_document(text, path);
  if (!json.object()) throw ModelFormatError(concat(path, ": is not a JSON object"));
  const io::JsonValue* type = json.find("model_type");
  if (!type) {
    if (json.find("num_experts") && json.find("num_hidden_layers"))
      return moe::load_openai(folder, text, options);
    throw ModelFormatError(concat(path, ": \"model_type\" is missing"));
  }
  const std::string name = type->string() ? *type->string() : "(not a string)";
  for (const Family& family : kFamilies)
    if (name == family.model_type) return family.load(folder, text, options);
  std::string known;
  for (const Family& family : kFamilies)
    known += (known.empty() ? "" : ", ") + std::string(family.model_type);
  throw ModelFormatError(concat(path, ": model_type is \"", printable(name), "\"; this build runs ", known));
}

}  // namespace

const char* name_of(Precision precision) {
  switch (precision) {
    case Precision::automatic:
      return "auto";
    case Precision::float32:
      return "float32";
    case Precision::bfloat16:
      return "bfloat16";
  }
  return "?";
}

Precision parse_precision(std::string_view text) {
  if (text == "auto") return Precision::automatic;
  if (text == "float32" || text == "fp32") return Precision::float32;
  if (text == "bfloat16" || text == "bf16") return Precision::bfloat16;
  throw InvalidArgument(
      concat("unknown precision \"", printable(text), "\"; expected auto, float32 or bfloat16"));
}

std::shared_ptr<Model> describe_model(const std::string& path, LoadOptions options) {
  options.load_tokenizer = options.load_weights = options.fingerprint = false;
  options.load_mode = io::LoadMode::mmap;  // nothing of the data is looked at
  return load_model(path, options);
}

std::shared_ptr<Model> load_model(const std::string& path, const LoadOptions& options) {
  std::error_code failed;
  const auto status = fs::status(path, failed);
  if (status.type() == fs::file_type::none)
    throw IoError(concat("\"", printable(path, 400), "\" cannot be examined: ", failed.message()));
  if (!fs::exists(status))
    throw ModelFormatError(concat("no model at \"", path, "\": there is no such file or folder"));
  if (fs::is_directory(status)) return load_folder(path, options);
  if (fs::path(path).extension() == ".safetensors")
    throw ModelFormatError(
        concat("\"", path, "\" is a weight file; give its folder, which holds config.json too"));
  return moe::load_flat_bin(path, options);
}

}  // namespace trivium
