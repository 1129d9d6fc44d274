// Translation of a tokenizer's split pattern. Text is matched as one "class byte" per code point: ASCII
// stands for itself, other code points for their general category in the pinned Unicode version. All of
// \p{..}, \s and case folding then become plain byte sets, and the regular-expression library's own
// Unicode tables are never used.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace trivium::io {

// Pattern of o200k_base and o200k_harmony.
extern const char* const kO200kPattern;
// Pattern behind ByteLevel(use_regex true), from GPT-2.
extern const char* const kGpt2Pattern;

// Class byte of a code point. Ill-formed bytes (code point -1) count as "other symbol" (So).
uint8_t class_byte(int32_t code_point);

// A PCRE2 pattern over class bytes (no UTF mode). Understands ASCII literals, escapes, sets, \s \S \d \D,
// \p{category}, (?:..) (?i:..) (?>..), look-around and quantifiers; anything else is a ModelFormatError that
// names it. `name` is the file, for messages.
std::string translate_split_pattern(std::string_view pattern, const std::string& name);

}  // namespace trivium::io
