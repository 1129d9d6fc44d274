// Shape: up to 8 extents, held by value.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <span>

#include "core/error.h"

namespace trivium {

class Shape {
 public:
  static constexpr int kMaxRank = 8;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span<const int64_t>(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims) {
    TRIVIUM_CHECK(dims.size() <= kMaxRank, "shape: rank ", dims.size(), ", at most ", kMaxRank,
                  " is supported");
    for (const int64_t d : dims) {
      TRIVIUM_CHECK(d >= 0, "shape: negative extent ", d);
      dims_[rank_++] = d;
    }
  }

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[i < 0 ? i + rank_ : i]; }
  const int64_t* begin() const { return dims_.data(); }
  const int64_t* end() const { return dims_.data() + rank_; }

  // Product of the extents; InvalidArgument when it does not fit in 63 bits.
  int64_t numel() const {
    if (std::find(begin(), end(), 0) != end()) return 0;
    int64_t n = 1;
    for (const int64_t d : *this)
      TRIVIUM_CHECK(!__builtin_mul_overflow(n, d, &n), "shape: ", *this, " has more than 2^63 elements");
    return n;
  }

  friend bool operator==(const Shape& a, const Shape& b) {
    return a.rank_ == b.rank_ && std::equal(a.begin(), a.end(), b.begin());
  }

  friend std::ostream& operator<<(std::ostream& out, const Shape& s) {
    out << '[';
    for (int i = 0; i < s.rank_; ++i) out << (i ? ", " : "") << s.dims_[i];
    return out << ']';
  }

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

}  // namespace trivium
