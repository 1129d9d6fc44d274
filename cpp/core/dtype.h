// Element types of tensors.
#pragma once

#include <cstdint>
#include <ostream>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/half.h"

namespace trivium {

// The values are part of the backend ABI: append, never renumber. MXFP4 is not an element type: it
// is always a pair of u8 tensors (blocks, scales), as in the checkpoints.
enum class Dtype : int32_t {
  f32 = 0,
  bf16 = 1,
  f16 = 2,
  f64 = 3,
  i64 = 4,
  i32 = 5,
  i16 = 6,
  i8 = 7,
  u8 = 8,
  u16 = 9,
  u32 = 10,
  boolean = 11
};

int64_t size_of(Dtype dtype);              // bytes of one element
const char* name_of(Dtype dtype);          // "float32", "bfloat16", ...
Dtype parse_dtype(std::string_view name);  // inverse of name_of; InvalidArgument otherwise
std::ostream& operator<<(std::ostream& out, Dtype dtype);

template <class T>
inline constexpr Dtype dtype_of = [] {
  if constexpr (std::is_same_v<T, float>)
    return Dtype::f32;
  else if constexpr (std::is_same_v<T, bf16>)
    return Dtype::bf16;
  else if constexpr (std::is_same_v<T, f16>)
    return Dtype::f16;
  else if constexpr (std::is_same_v<T, double>)
    return Dtype::f64;
  else if constexpr (std::is_same_v<T, int64_t>)
    return Dtype::i64;
  else if constexpr (std::is_same_v<T, int32_t>)
    return Dtype::i32;
  else if constexpr (std::is_same_v<T, int16_t>)
    return Dtype::i16;
  else if constexpr (std::is_same_v<T, int8_t>)
    return Dtype::i8;
  else if constexpr (std::is_same_v<T, uint8_t>)
    return Dtype::u8;
  else if constexpr (std::is_same_v<T, uint16_t>)
    return Dtype::u16;
  else if constexpr (std::is_same_v<T, uint32_t>)
    return Dtype::u32;
  else {
    static_assert(std::is_same_v<T, bool>, "not an element type");
    return Dtype::boolean;
  }
}();

// Calls fn.template operator()<T>() for the T among Ts whose dtype is `dtype`; InvalidArgument otherwise.
template <class... Ts, class Fn>
void dispatch_dtype(Dtype dtype, const char* what, Fn&& fn) {
  const bool found = ((dtype_of<Ts> == dtype ? (fn.template operator()<Ts>(), true) : false) || ...);
  TRIVIUM_CHECK(found, what, ": dtype ", dtype, " is not supported here");
}

}  // namespace trivium
