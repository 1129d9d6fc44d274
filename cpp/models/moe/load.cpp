// From files to a MoeModel: the Hugging Face folder, OpenAI's original folder, the predecessor's model.bin.
#include <filesystem>

#include "io/tokenizer.h"
#include "models/folder.h"
#include "models/moe/model.h"

namespace trivium::moe {
namespace {

namespace fs = std::filesystem;

// Stops of the published models, for formats that do not name any: return, endoftext, call.
constexpr int32_t kHarmonyStops[] = {200002, 199999, 200012};

std::shared_ptr<Model> assemble(const std::string& path, const std::string& config_text, MoeConfig config,
                                const std::shared_ptr<const io::TensorArchive>& archive, Layout layout,
                                std::vector<int32_t> stops, std::shared_ptr<const io::Tokenizer> tokenizer,
                                LoadOptions options) {
  TRIVIUM_CHECK(options.odd_window >= 0, "odd_window is ", options.odd_window, ", expected 0 or more");
  config.odd_window = options.odd_window;
  options.precision = resolve(options.precision, options.device);
  MoeWeights weights;
  if (options.load_weights) {
    check_weights_fit(path, archive->total_bytes(), options.device);
    weights = load_weights(archive, path, config, layout, options);
  }
  ModelInfo info = info_of("gpt_oss", path, config_text, *archive, options.precision, options);
  info.vocab_size = static_cast<int32_t>(config.vocab_size);
  info.max_positions = config.max_positions;
  info.stop_ids = std::move(stops);
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
  const auto archive = io::TensorArchive::open(folder, options.load_mode, options.cancel);
  auto tokenizer = tokenizer_of({folder}, config.vocab_size, options);
  auto stops = stop_ids_of(folder, config.eos_ids, config.vocab_size);
  return assemble(folder, config_text, std::move(config), archive, Layout::hugging_face, std::move(stops),
                  std::move(tokenizer), options);
}

std::shared_ptr<Model> load_openai(const std::string& folder, const std::string& config_text,
                                   const LoadOptions& options) {
  const std::string name = folder + "/config.json";
  MoeConfig config = parse_openai_config(io::parse_json_document(config_text, name), name);
  const auto archive = io::TensorArchive::open(folder, options.load_mode, options.cancel);
  // In a release this is the folder original/ inside the Hugging Face one, where the tokenizer lies.
  const std::string parent = fs::absolute(folder).lexically_normal().parent_path().string();
  auto tokenizer = tokenizer_of({folder, parent}, config.vocab_size, options);
  auto stops = default_stops(tokenizer.get(), config);
  return assemble(folder, config_text, std::move(config), archive, Layout::openai, std::move(stops),
                  std::move(tokenizer), options);
}

std::shared_ptr<Model> load_flat_bin(const std::string& file, const LoadOptions& options) {
  const io::FlatBinModel flat = io::open_flat_bin(file, options.load_mode, options.cancel);
  MoeConfig config = from_flat_bin(flat.header, file);
  auto tokenizer = tokenizer_of({fs::absolute(file).parent_path().string()}, config.vocab_size, options);
  auto stops = default_stops(tokenizer.get(), config);
  return assemble(file, "{}", std::move(config), flat.weights, Layout::openai, std::move(stops),
                  std::move(tokenizer), options);
}

}  // namespace trivium::moe
