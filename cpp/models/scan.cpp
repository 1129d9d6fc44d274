#include "models/scan.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/parallel.h"
#include "io/mmap.h"

namespace trivium {
namespace {

constexpr int64_t kChunkBytes = 4 << 20;  // scanned by one task
constexpr int64_t kTile = 32;             // rows and columns transposed at once
constexpr int64_t kNone = INT64_MAX;

// Element i of an array in a file, which need not be aligned.
template <class T>
T load(const void* p, int64_t i) {
  T value;
  std::memcpy(&value, static_cast<const char*>(p) + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// Index of the first element for which the exponent bits are all ones, or kNone.
template <class Bits>
int64_t first_not_finite(const void* p, int64_t begin, int64_t end, Bits exponent) {
  const auto special = [&](int64_t i) { return (load<Bits>(p, i) & exponent) == exponent; };
  Bits bad = 0;
  for (int64_t i = begin; i < end; ++i) bad |= special(i);
  for (int64_t i = begin; bad && i < end; ++i)
    if (special(i)) return i;
  return kNone;
}

// Runs find(begin, end) over chunks of `count` elements and returns the smallest result.
template <class Find>
int64_t find_first(int64_t count, int64_t element_bytes, const CancelToken* cancel, Find&& find) {
  const int64_t chunk = kChunkBytes / element_bytes;
  std::atomic<int64_t> first{kNone};
  parallel_for((count + chunk - 1) / chunk, [&](int64_t task, int) {
    if (cancel) cancel->check();
    io::guarded([&] {
      const int64_t found = find(task * chunk, std::min(count, (task + 1) * chunk));
      for (int64_t seen = first.load(); found < seen && !first.compare_exchange_weak(seen, found);) {
      }
    });
  });
  return first.load();
}

// Rows [begin, end) of from [rows, cols] into the columns of to [cols, rows].
template <class T>
void transpose_rows(const void* from, T* to, int64_t rows, int64_t cols, int64_t begin, int64_t end) {
  for (int64_t r0 = begin; r0 < end; r0 += kTile)
    for (int64_t c0 = 0; c0 < cols; c0 += kTile)
      for (int64_t c = c0; c < std::min(cols, c0 + kTile); ++c)
        for (int64_t r = r0; r < std::min(end, r0 + kTile); ++r)
          to[c * rows + r] = load<T>(from, r * cols + c);
}

// Bytes [begin, end) of a contiguous tensor.
Tensor bytes_of(const Tensor& t, int64_t begin, int64_t end) {
  char* data = static_cast<char*>(t.data()) + begin;
  return Tensor::wrap(data, {end - begin}, Dtype::u8, t.device(), t.owner(), {}, true);
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
    const int64_t bad =
        find_first(t.numel(), size_of(t.dtype()), options_.cancel, [&](int64_t begin, int64_t end) {
          return wide ? first_not_finite<uint32_t>(t.data(), begin, end, 0x7f800000u)
                      : first_not_finite<uint16_t>(t.data(), begin, end, half);
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
    const int64_t bad = find_first(t.numel(), 1, options_.cancel, [&](int64_t begin, int64_t end) {
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

Tensor transpose_experts(const Tensor& stored, const PartDone& done, const CancelToken* cancel) {
  const int64_t rows = stored.dim(1), cols = stored.dim(2), element = size_of(stored.dtype());
  Tensor out = Tensor::empty({stored.dim(0), cols, rows}, stored.dtype());
  if (stored.numel() == 0) return out;
  const int64_t band = std::max<int64_t>(1, kChunkBytes / (cols * element) / kTile) * kTile;
  const int64_t bands = (rows + band - 1) / band;
  parallel_for(stored.dim(0) * bands, [&](int64_t task, int) {
    if (cancel) cancel->check();
    const int64_t offset = task / bands * rows * cols * element, begin = task % bands * band,
                  end = std::min(rows, begin + band);
    const char* from = static_cast<const char*>(stored.data()) + offset;
    char* to = static_cast<char*>(out.data()) + offset;
    io::guarded([&] {
      if (stored.dtype() == Dtype::f32)
        transpose_rows(from, reinterpret_cast<float*>(to), rows, cols, begin, end);
      else
        transpose_rows(from, reinterpret_cast<uint16_t*>(to), rows, cols, begin, end);
    });
    done(bytes_of(stored, offset + begin * cols * element, offset + end * cols * element));
  });
  return out;
}

Tensor copy_to_memory(const Tensor& stored, const PartDone& done, const CancelToken* cancel) {
  Tensor out = Tensor::empty(stored.shape(), stored.dtype());
  parallel_for((stored.nbytes() + kChunkBytes - 1) / kChunkBytes, [&](int64_t task, int) {
    if (cancel) cancel->check();
    const int64_t begin = task * kChunkBytes;
    const Tensor part = bytes_of(stored, begin, std::min(stored.nbytes(), begin + kChunkBytes));
    io::guarded([&] {
      std::memcpy(static_cast<char*>(out.data()) + begin, part.data(), static_cast<size_t>(part.nbytes()));
    });
    done(part);
  });
  return out;
}

void touch_pages(const Tensor& t, const CancelToken* cancel) {
  const auto* p = static_cast<const volatile char*>(t.data());
  parallel_for((t.nbytes() + kChunkBytes - 1) / kChunkBytes, [&](int64_t task, int) {
    if (cancel) cancel->check();
    io::guarded([&] {
      const int64_t end = std::min(t.nbytes(), (task + 1) * kChunkBytes);
      for (int64_t i = task * kChunkBytes; i < end; i += 4096) (void)p[i];
    });
  });
}

}  // namespace trivium
