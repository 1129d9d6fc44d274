// The small test vocabulary and readers shared by the tokenizer and harmony tests.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "io/tokenizer.h"

namespace trivium::io::testing {

inline const std::string kSmallFolder = std::string(TRIVIUM_TEST_DATA) + "/tokenizer_small";
inline constexpr const char* kSmallFiles[] = {"tokenizer.json", "small.tiktoken", "tokenizer.bin"};

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

inline const Tokenizer& small_tokenizer() {
  static const std::shared_ptr<const Tokenizer> tokenizer = Tokenizer::load(kSmallFolder + "/tokenizer.json");
  return *tokenizer;
}

// Bytes of every kind: ASCII words, multi-byte characters and their fragments, noise.
inline std::string random_bytes(std::mt19937& random, size_t max_units) {
  static const char* const kUnits[] = {
      "the",    " the",    "ing",       "He", " ", "  ",       "\n",       "\r\n", "1",
      "23",     "'s",      "'LL",       "/",  "!", "é",        "你",       "🍣",    "\u0301",
      "\u00A0", "<|end|>", "<|start|>", "ǅ",  "Ω", "\xE4\xBD", "\xF0\x9F", "\x80"};
  std::string text;
  for (size_t n = random() % (max_units + 1); n > 0; --n) {
    if (random() % 4 == 0) {
      text += static_cast<char>(random());
    } else {
      text += kUnits[random() % std::size(kUnits)];
    }
  }
  return text;
}

}  // namespace trivium::io::testing
