// General categories of code points in one pinned Unicode version, so that token ids never depend on the
// version of a system library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trivium::io {

// Order of scripts/make_unicode_tables.py.
enum class GeneralCategory : uint8_t {
  Lu,
  Ll,
  Lt,
  Lm,
  Lo,
  Mn,
  Mc,
  Me,
  Nd,
  Nl,
  No,
  Pc,
  Pd,
  Ps,
  Pe,
  Pi,
  Pf,
  Po,
  Sm,
  Sc,
  Sk,
  So,
  Zs,
  Zl,
  Zp,
  Cc,
  Cf,
  Cs,
  Co,
  Cn
};
inline constexpr int kNumCategories = 30;

// Two-letter names in the order of the enumeration.
inline constexpr const char* kCategoryNames[kNumCategories] = {
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
    "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn"};

extern const char* const kUnicodeVersion;  // "16.0.0"
extern const uint32_t kCategoryRuns[];     // first code point << 8 | category, ascending, the first is U+0000
extern const size_t kNumCategoryRuns;

}  // namespace trivium::io
