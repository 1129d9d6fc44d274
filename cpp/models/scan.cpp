#include "models/scan.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/parallel.h"
#include "io/mmap.h"

namespace trivium {
namespace {

constexpr int64_t kChunkBytes = 4 << 20;  // scanned by one task
constexpr int64_t kNone = INT64_MAX;

// Index of the first element for which the exponent bits are all ones, or kNone.
template <class Bits>
int64_t first_not_finite(const Bits* p, int64_t begin, int64_t end, Bits exponent) {
  Bits bad = 0;
  for (int64_t i = begin; i < end; ++i) bad |= (p[i] & exponent) == exponent;
  for (int64_t i = begin; bad && i < end; ++i)
    if ((p[i] & exponent) == exponent) return i;
  return kNone;
}

// Runs find(begin, end) over chunks of `count` elements and returns the smallest result.
template <class Find>
int64_t find_first(int64_t count, int64_t element_bytes, Find&& find) {
  const int64_t chunk = kChunkBytes / element_bytes;
  std::atomic<int64_t> first{kNone};
  parallel_for((count + chunk - 1) / chunk, [&](int64_t task, int) {
    io::guarded([&] {
      const int64_t found = find(task * chunk, std::min(count, (task + 1) * chunk));
      for (int64_t seen = first.load(); found < seen && !first.compare_exchange_weak(seen, found);) {
      }
    });
  });
  return first.load();
}

template <class T>
void transpose_one(const T* from, T* to, int64_t rows, int64_t cols) {
  constexpr int64_t kTile = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += kTile)
    for (int64_t c0 = 0; c0 < cols; c0 += kTile)
      for (int64_t c = c0; c < std::min(cols, c0 + kTile); ++c)
        for (int64_t r = r0; r < std::min(rows, r0 + kTile); ++r) to[c * rows + r] = from[r * cols + c];
}

}  // namespace

WeightScan::WeightScan(const LoadOptions& options) : options_(options) {}

void WeightScan::skip(int64_t bytes) {
  done_ += bytes;
  if (options_.cancel) options_.cancel->check();
  if (options_.on_progress) options_.on_progress(done_, std::max(total_, done_));
}

void WeightScan::dense(const Tensor& t, const std::string& file, const std::string& name) {
  if (options_.check_weights) {
    const bool wide = t.dtype() == Dtype::f32;
    const uint16_t half = t.dtype() == Dtype::bf16 ? 0x7f80 : 0x7c00;
    const int64_t bad = find_first(t.numel(), size_of(t.dtype()), [&](int64_t begin, int64_t end) {
      return wide ? first_not_finite(static_cast<const uint32_t*>(t.data()), begin, end, 0x7f800000u)
                  : first_not_finite(static_cast<const uint16_t*>(t.data()), begin, end, half);
    });
    if (bad != kNone)
      throw ModelFormatError(
          concat(file, ": tensor \"", name, "\" holds a NaN or an infinity at element ", bad));
  }
  skip(t.nbytes());
}

void WeightScan::scales(const Tensor& t, const std::string& file, const std::string& name) {
  const auto* p = static_cast<const uint8_t*>(t.data());
  if (options_.check_weights) {
    const int64_t bad = find_first(t.numel(), 1, [&](int64_t begin, int64_t end) {
      const uint8_t* largest = std::max_element(p + begin, p + end);
      return *largest <= kMaxMxScale
                 ? kNone
                 : std::find_if(p + begin, p + end, [](uint8_t s) { return s > kMaxMxScale; }) - p;
    });
    if (bad != kNone)
      throw ModelFormatError(concat(file, ": tensor \"", name, "\" holds scale ", int{p[bad]}, " at element ",
                                    bad, ", expected at most ", kMaxMxScale));
  }
  skip(t.nbytes());
}

Tensor transpose_experts(const Tensor& stored, const std::function<void(const Tensor&)>& done) {
  const int64_t rows = stored.dim(1), cols = stored.dim(2);
  Tensor out = Tensor::empty({stored.dim(0), cols, rows}, stored.dtype());
  parallel_for(stored.dim(0), [&](int64_t e, int) {
    io::guarded([&] {
      const int64_t offset = e * rows * cols;
      if (stored.dtype() == Dtype::f32)
        transpose_one(stored.data_as<float>() + offset, out.data_as<float>() + offset, rows, cols);
      else
        transpose_one(static_cast<const uint16_t*>(stored.data()) + offset,
                      static_cast<uint16_t*>(out.data()) + offset, rows, cols);
    });
    done(stored.slice(e, e + 1));
  });
  return out;
}

Tensor copy_to_memory(const Tensor& stored, const std::function<void(const Tensor&)>& done) {
  Tensor out = Tensor::empty(stored.shape(), stored.dtype());
  const int64_t row_bytes = stored.dim(0) ? stored.nbytes() / stored.dim(0) : 0;
  const int64_t rows = std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(row_bytes, 1));
  parallel_for((stored.dim(0) + rows - 1) / rows, [&](int64_t task, int) {
    const Tensor part = stored.slice(task * rows, std::min(stored.dim(0), (task + 1) * rows));
    io::guarded([&] {
      std::memcpy(static_cast<char*>(out.data()) + task * rows * row_bytes, part.data(),
                  static_cast<size_t>(part.nbytes()));
    });
    done(part);
  });
  return out;
}

void touch_pages(const Tensor& t) {
  const auto* p = static_cast<const volatile char*>(t.data());
  parallel_for((t.nbytes() + kChunkBytes - 1) / kChunkBytes, [&](int64_t task, int) {
    io::guarded([&] {
      const int64_t end = std::min(t.nbytes(), (task + 1) * kChunkBytes);
      for (int64_t i = task * kChunkBytes; i < end; i += 4096) (void)p[i];
    });
  });
}

}  // namespace trivium
