// Pre-tokenization: cuts text into the pieces that are merged separately.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace trivium::io {

// A compiled split pattern; pieces between matches are pieces too ("Isolated"), so no byte is ever lost.
// Thread-safe.
class Splitter {
 public:
  // `pattern` as written in tokenizer.json; see translate_split_pattern. ModelFormatError if it is not one.
  Splitter(std::string_view pattern, const std::string& name);
  ~Splitter();

  // Byte offsets at which pieces end, ascending, the last is text.size(). InvalidArgument when the pattern
  // needs more than its match budget on this text (never with the published patterns).
  std::vector<uint32_t> piece_ends(std::string_view text) const;

 private:
  struct Compiled;
  std::unique_ptr<Compiled> compiled_;
  std::string name_;
};

}  // namespace trivium::io
