// The machine's roofs as one JSON line: memory read bandwidth and bf16 (or float32) multiply-add rate with
// the threads trivium would use. Medians of several rounds; nothing here is trivium's own kernels.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/parallel.h"
#include "core/registry.h"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Reads `bytes` from `p`, 256 a turn; the sum keeps the compiler honest.
__attribute__((target("avx2"))) uint64_t read_all(const char* p, int64_t bytes) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (int64_t i = 0; i < bytes; i += 256) {
    for (int j = 0; j < 8; j += 4) {
      const auto* q = reinterpret_cast<const __m256i*>(p + i + j * 32);
      a = _mm256_add_epi64(a, _mm256_loadu_si256(q));
      b = _mm256_add_epi64(b, _mm256_loadu_si256(q + 1));
      c = _mm256_add_epi64(c, _mm256_loadu_si256(q + 2));
      d = _mm256_add_epi64(d, _mm256_loadu_si256(q + 3));
    }
  }
  a = _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d));
  return static_cast<uint64_t>(_mm256_extract_epi64(a, 0) + _mm256_extract_epi64(a, 1) +
                               _mm256_extract_epi64(a, 2) + _mm256_extract_epi64(a, 3));
}

double read_bandwidth() {
  constexpr int64_t kBytes = int64_t{1} << 30, kTasks = 64;
  char* memory = static_cast<char*>(std::aligned_alloc(4096, kBytes));
  if (!memory) return 0;
  std::memset(memory, 1, kBytes);
  std::vector<double> rates;
  std::vector<uint64_t> sums(kTasks);
  for (int round = 0; round < 7; ++round) {
    const auto start = Clock::now();
    trivium::parallel_for(kTasks, [&](int64_t t, int) {
      sums[static_cast<size_t>(t)] = read_all(memory + t * (kBytes / kTasks), kBytes / kTasks);
    });
    rates.push_back(kBytes / seconds_since(start));
  }
  std::free(memory);
  volatile uint64_t sink = sums[0];
  (void)sink;
  return median(rates);
}

constexpr int64_t kTurns = 4'000'000;

__attribute__((target("avx512f,avx512bf16"))) float spin_bf16() {
  __m512 acc[12];
  for (auto& a : acc) a = _mm512_setzero_ps();
  const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
  for (int64_t i = 0; i < kTurns; ++i)
#pragma GCC unroll 12
    for (auto& a : acc) a = _mm512_dpbf16_ps(a, x, x);
  float sum = 0;
  for (auto& a : acc) sum += _mm512_reduce_add_ps(a);
  return sum;
}

__attribute__((target("avx2,fma"))) float spin_f32() {
  __m256 acc[12];
  for (auto& a : acc) a = _mm256_setzero_ps();
  const __m256 x = _mm256_set1_ps(1.0f);
  for (int64_t i = 0; i < kTurns; ++i)
#pragma GCC unroll 12
    for (auto& a : acc) a = _mm256_fmadd_ps(x, x, a);
  float sum = 0;
  for (auto& a : acc) sum += _mm256_cvtss_f32(a);
  return sum;
}

// FLOP/s of `spin`, which does kTurns * 12 * flops of them per thread.
double flop_rate(float (*spin)(), double flops) {
  std::vector<double> rates;
  const int threads = trivium::num_threads();
  for (int round = 0; round < 5; ++round) {
    const auto start = Clock::now();
    trivium::parallel_for(threads, [&](int64_t, int) {
      volatile float sink = spin();
      (void)sink;
    });
    rates.push_back(threads * 12.0 * flops * static_cast<double>(kTurns) / seconds_since(start));
  }
  return median(rates);
}

}  // namespace

int main() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    std::fprintf(stderr, "trivium_roof: needs AVX2 and FMA\n");
    return 1;
  }
  const bool bf16 = __builtin_cpu_supports("avx512bf16");
  std::printf(
      "{\"threads\": %d, \"cpu\": \"%s\", \"level\": \"%s\", \"read_bytes_per_s\": %.4g, \"f32_flops\": "
      "%.4g, \"bf16_flops\": %.4g}\n",
      trivium::num_threads(), trivium::device_properties({}).name, trivium::cpu_level().c_str(),
      read_bandwidth(), flop_rate(spin_f32, 16), bf16 ? flop_rate(spin_bf16, 64) : 0.0);
  return 0;
}
