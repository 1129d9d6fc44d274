// Bandwidth of reading random rows of a table, as one JSON line: the roof of LUT layers. Rows of 1 KiB from a
// table of 256 MiB and of 128 bytes from one of 32 MiB, in memory with huge pages where the system gives
// them, with the threads trivium would use. Medians, the best of several distances of fetching ahead, to the
// first or the second cache; nothing here is trivium's own kernels.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

#include "core/parallel.h"
#include "core/random.h"
#include "core/tensor.h"

namespace {

using Clock = std::chrono::steady_clock;

__attribute__((target("avx2"))) uint64_t read_row(const char* row, int64_t bytes) {
  __m256i sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < bytes; i += 32)
    sum = _mm256_add_epi64(sum, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + i)));
  return static_cast<uint64_t>(_mm256_extract_epi64(sum, 0));
}

// Bytes per second of reading `count` random rows, rows being fetched `ahead` of their use.
template <int locality>
double random_rows(int64_t table_bytes, int64_t row_bytes, int64_t count, int64_t ahead) {
  constexpr int64_t kTasks = 64;
  trivium::Tensor table = trivium::Tensor::empty({table_bytes}, trivium::Dtype::u8);
  std::memset(table.data(), 1, static_cast<size_t>(table_bytes));
  const char* base = static_cast<const char*>(table.data());
  const int64_t rows = table_bytes / row_bytes;
  std::vector<int32_t> order(static_cast<size_t>(count + ahead));
  for (size_t i = 0; i < order.size(); ++i)
    order[i] = static_cast<int32_t>(trivium::philox(1, i).x[0] % static_cast<uint64_t>(rows));
  std::vector<uint64_t> sums(kTasks * 8);
  std::vector<double> rates;
  for (int round = 0; round < 7; ++round) {
    const auto start = Clock::now();
    trivium::parallel_for(kTasks, [&](int64_t t, int) {
      uint64_t sum = 0;
      for (int64_t i = t * count / kTasks; i < (t + 1) * count / kTasks; ++i) {
        const char* next = base + order[static_cast<size_t>(i + ahead)] * row_bytes;
        for (int64_t b = 0; b < row_bytes; b += 64) __builtin_prefetch(next + b, 0, locality);
        sum += read_row(base + order[static_cast<size_t>(i)] * row_bytes, row_bytes);
      }
      sums[static_cast<size_t>(t) * 8] = sum;
    });
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    rates.push_back(static_cast<double>(count * row_bytes) / seconds);
  }
  volatile uint64_t sink = sums[0];
  (void)sink;
  std::sort(rates.begin(), rates.end());
  return rates[rates.size() / 2];
}

// The best of several distances.
double best_rate(int64_t table_bytes, int64_t row_bytes, int64_t count,
                 std::initializer_list<int64_t> distances) {
  double best = 0;
  for (const int64_t ahead : distances)
    best = std::max({best, random_rows<3>(table_bytes, row_bytes, count, ahead),
                     random_rows<2>(table_bytes, row_bytes, count, ahead)});
  return best;
}

}  // namespace

int main() {
  std::printf("{\"threads\": %d, \"rows_1024_bytes_per_s\": %.4g, \"rows_128_bytes_per_s\": %.4g}\n",
              trivium::num_threads(), best_rate(int64_t{256} << 20, 1024, 1 << 18, {2, 4, 8, 16}),
              best_rate(int64_t{32} << 20, 128, 1 << 18, {8, 16, 32, 64}));
}
