// Tokenizer files in any of the three formats. Its seeds are the files of tests/data/tokenizer_small.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/error.h"
#include "io/tokenizer.h"

using trivium::io::Tokenizer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const bool binary = bytes.substr(0, 4).find('\0') != std::string_view::npos;
  const char* kind = bytes.starts_with('{') ? "json" : binary ? "bin" : "tiktoken";
  try {
    const auto tokenizer = Tokenizer::from_bytes(bytes, kind, "fuzz");
    // Short, so that a hostile split pattern cannot spend its match budget too often.
    constexpr std::string_view kText = "the World's 12 \xE4\xBD\xA0\xFF!\n";
    for (const bool parse_special : {false, true}) {
      if (tokenizer->decode(tokenizer->encode(kText, {.parse_special = parse_special}), true) != kText)
        std::abort();
    }
    for (const int32_t id : tokenizer->encode(kText)) {
      if (tokenizer->is_special(id)) std::abort();
    }
  } catch (const trivium::Error&) {
  }
  return 0;
}
