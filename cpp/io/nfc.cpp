#include "io/nfc.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "io/nfc_tables.h"
#include "io/utf8.h"

namespace trivium::io {
namespace {

constexpr uint32_t kFirstThatChanges = 0x300;  // all text below is NFC already
// Hangul syllables are arithmetic (Unicode Standard 3.12).
constexpr uint32_t kSyllable = 0xac00, kLeading = 0x1100, kVowel = 0x1161, kTrailing = 0x11a7;
constexpr uint32_t kVowels = 21, kTrailings = 28, kSyllables = 19 * kVowels * kTrailings;

uint32_t combining_class(uint32_t code_point) {
  const ClassRun* end = kClassRuns + kNumClassRuns;
  const ClassRun* after =
      std::upper_bound(kClassRuns, end, code_point,
                       [](uint32_t value, const ClassRun& run) { return value < run.code_point; });
  return (after - 1)->combining_class;
}

const Decomposition* find_decomposition(uint32_t code_point) {
  const Decomposition* end = kDecompositions + kNumDecompositions;
  const Decomposition* found =
      std::lower_bound(kDecompositions, end, code_point,
                       [](const Decomposition& d, uint32_t value) { return d.code_point < value; });
  return found != end && found->code_point == code_point ? found : nullptr;
}

void decompose(uint32_t code_point, std::vector<uint32_t>& out) {
  if (code_point - kSyllable < kSyllables) {
    const uint32_t index = code_point - kSyllable;
    out.push_back(kLeading + index / (kVowels * kTrailings));
    out.push_back(kVowel + index % (kVowels * kTrailings) / kTrailings);
    if (index % kTrailings != 0) out.push_back(kTrailing + index % kTrailings);
    return;
  }
  const Decomposition* d = find_decomposition(code_point);
  if (!d) return out.push_back(code_point);
  decompose(d->first, out);
  if (d->second != 0) decompose(d->second, out);
}

// The pairs that compose, by first and second.
const std::vector<const Decomposition*>& compositions() {
  static const std::vector<const Decomposition*> sorted = [] {
    std::vector<const Decomposition*> list;
    for (size_t i = 0; i < kNumDecompositions; ++i)
      if (kDecompositions[i].composes != 0) list.push_back(&kDecompositions[i]);
    std::sort(list.begin(), list.end(), [](const Decomposition* a, const Decomposition* b) {
      return a->first != b->first ? a->first < b->first : a->second < b->second;
    });
    return list;
  }();
  return sorted;
}

uint32_t compose(uint32_t first, uint32_t second) {  // 0: they do not
  if (first - kLeading < 19 && second - kVowel < kVowels)
    return kSyllable + ((first - kLeading) * kVowels + (second - kVowel)) * kTrailings;
  if (first - kSyllable < kSyllables && (first - kSyllable) % kTrailings == 0 &&
      second - kTrailing - 1 < kTrailings - 1)
    return first + (second - kTrailing);
  const auto& list = compositions();
  const auto found = std::lower_bound(
      list.begin(), list.end(), std::pair{first, second},
      [](const Decomposition* d, const std::pair<uint32_t, uint32_t>& wanted) {
        return d->first != wanted.first ? d->first < wanted.first : d->second < wanted.second;
      });
  return found != list.end() && (*found)->first == first && (*found)->second == second ? (*found)->code_point
                                                                                       : 0;
}

// Well-formed text: decomposed, ordered by combining class, composed.
void append_nfc(std::vector<uint32_t>& text, std::string& out) {
  for (size_t begin = 0; begin < text.size();) {
    if (combining_class(text[begin]) == 0) {
      ++begin;
      continue;
    }
    size_t end = begin;
    while (end < text.size() && combining_class(text[end]) != 0) ++end;
    std::stable_sort(text.begin() + static_cast<std::ptrdiff_t>(begin),
                     text.begin() + static_cast<std::ptrdiff_t>(end),
                     [](uint32_t a, uint32_t b) { return combining_class(a) < combining_class(b); });
    begin = end;
  }
  std::vector<uint32_t> composed;
  size_t starter = SIZE_MAX;  // where the last character of class 0 is
  uint32_t last_class = 0;    // of the last character kept after it
  for (const uint32_t c : text) {
    const uint32_t own = combining_class(c);
    const bool adjacent = starter != SIZE_MAX && starter + 1 == composed.size();
    const bool free = starter != SIZE_MAX && (adjacent || last_class < own);
    if (const uint32_t both = free ? compose(composed[starter], c) : 0) {
      composed[starter] = both;
      continue;
    }
    if (own == 0) starter = composed.size();
    last_class = own;
    composed.push_back(c);
  }
  for (const uint32_t c : composed) append_utf8(out, c);
  text.clear();
}

}  // namespace

std::string to_nfc(std::string_view text) {
  std::string out;
  std::vector<uint32_t> run;
  bool changes = false;
  for (size_t at = 0; at < text.size();) {
    const Utf8Unit unit = decode_utf8(text, at);
    if (unit.code_point < 0) {
      append_nfc(run, out);
      out += text.substr(at, static_cast<size_t>(unit.length));
    } else {
      changes |= static_cast<uint32_t>(unit.code_point) >= kFirstThatChanges;
      decompose(static_cast<uint32_t>(unit.code_point), run);
    }
    at += static_cast<size_t>(unit.length);
  }
  if (!changes) return std::string(text);
  append_nfc(run, out);
  return out;
}

}  // namespace trivium::io
