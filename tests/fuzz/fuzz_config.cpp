// config.json: a document is read as a configuration or refused with a ModelFormatError.
#include "io/json.h"
#include "models/moe/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  trivium::io::JsonValue json;
  try {
    json = trivium::io::parse_json_document(text, "config.json");
  } catch (const trivium::ModelFormatError&) {
    return 0;
  }
  for (const auto parse : {trivium::moe::parse_hf_config, trivium::moe::parse_openai_config}) {
    try {
      parse(json, "config.json");
    } catch (const trivium::ModelFormatError&) {
    }
  }
  return 0;
}
