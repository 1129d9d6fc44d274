// From a Hugging Face folder to an XlstmModel.
#include "models/folder.h"
#include "models/mlstm/model.h"

namespace trivium::xlstm {

// The state has no end, but positions are counted in 32 bits.
constexpr int64_t kMaxPositions = int64_t{1} << 30;

std::shared_ptr<Model> load_xlstm(const std::string& folder, const std::string& config_text,
                                  const LoadOptions& options) {
  const std::string name = folder + "/config.json";
  XlstmConfig config = parse_config(io::parse_json_document(config_text, name), name);
  TRIVIUM_CHECK(options.odd_window == 0, "odd_window is ", options.odd_window,
                ", but xlstm has no attention layers");
  const auto archive = io::TensorArchive::open(folder, options.load_mode, options.cancel);
  auto tokenizer = tokenizer_of({folder}, config.vocab_size, options);
  LoadOptions resolved = options;
  resolved.precision = resolve(options.precision, options.device);
  std::vector<int32_t> stops = stop_ids_of(folder, config.eos_ids, config.vocab_size);
  XlstmWeights weights;
  if (options.load_weights) {
    check_weights_fit(folder, archive->total_bytes(), options.device);
    weights = load_weights(archive, folder, config, resolved);
  }
  ModelInfo info = info_of("xlstm", folder, config_text, *archive, resolved.precision, resolved);
  info.vocab_size = static_cast<int32_t>(config.vocab_size);
  info.max_positions = kMaxPositions;
  info.stop_ids = std::move(stops);
  return std::make_shared<XlstmModel>(std::move(config), std::move(weights), std::move(info),
                                      std::move(tokenizer));
}

}  // namespace trivium::xlstm
