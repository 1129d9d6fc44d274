// Canonical decompositions and combining classes (Unicode Standard Annex 15), as nfc_tables.cpp holds them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trivium::io {

struct Decomposition {                 // ascending code points; Hangul syllables are not listed
  uint32_t code_point, first, second;  // second is 0 when there is one character only
  uint32_t composes;                   // 1: first and second compose to code_point again
};
extern const Decomposition kDecompositions[];
extern const size_t kNumDecompositions;

struct ClassRun {  // combining class from this code point to the next run's
  uint32_t code_point, combining_class;
};
extern const ClassRun kClassRuns[];
extern const size_t kNumClassRuns;

}  // namespace trivium::io
