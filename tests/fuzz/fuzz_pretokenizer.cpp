// Splitting: any bytes with the o200k pattern, or (first byte odd) a pattern up to the first newline and a
// short text after it.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/error.h"
#include "io/tokenizer_pattern.h"
#include "io/tokenizer_split.h"

using trivium::io::Splitter;

namespace {

void check_pieces(const Splitter& splitter, std::string_view text) {
  uint32_t begin = 0;
  for (const uint32_t end : splitter.piece_ends(text)) {
    if (end <= begin) std::abort();
    begin = end;
  }
  if (begin != text.size()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Splitter o200k(trivium::io::kO200kPattern, "fuzz");
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (bytes.empty() || bytes[0] % 2 == 0) {
    check_pieces(o200k, bytes);
    return 0;
  }
  const size_t newline = std::min(bytes.find('\n'), bytes.size());
  try {
    const Splitter splitter(bytes.substr(1, newline - 1), "fuzz");
    check_pieces(splitter, bytes.substr(newline).substr(0, 16));
  } catch (const trivium::Error&) {
  }
  return 0;
}
