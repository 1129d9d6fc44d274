// Readers of the three tokenizer file formats.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/bpe.h"

namespace trivium::io {

// What a tokenizer is made of. Ordinary and special tokens share one id space.
struct TokenizerParts {
  explicit TokenizerParts(const std::string& file)
      : name(file), ordinary(file), specials(file), added(file), added_normalized(file) {}

  std::string name;  // of the file, for messages
  Vocabulary ordinary, specials;
  // Ordinary tokens too, but found in text before it is split: as it came, or brought to Form C.
  Vocabulary added, added_normalized;
  std::vector<int32_t> prefix, suffix;       // what the template puts around a text
  std::optional<std::vector<Merge>> merges;  // by falling priority; none: ids are ranks
  bool whole_pieces = true;                  // a piece that is a token is not cut
  std::string split_pattern;
  bool nfc = false;  // text is brought to Normalization Form C first
};

// All throw ModelFormatError with one sentence about the first thing that is wrong.
TokenizerParts read_tokenizer_json(std::string_view bytes, const std::string& name);  // Hugging Face
TokenizerParts read_tiktoken_ranks(std::string_view bytes, const std::string& name);  // "base64 rank" lines
TokenizerParts read_tokenizer_bin(std::string_view bytes, const std::string& name);   // gpt-oss C++ seed

}  // namespace trivium::io
