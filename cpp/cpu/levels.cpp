#include "cpu/levels.h"

#include <cstdlib>
#include <new>
#include <string>

#include "core/error.h"
#include "core/registry.h"
#include "cpu/scratch.h"

namespace trivium {
namespace cpu {
namespace {

bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

// What every CPU with AVX512-BF16 has but Cooper Lake, which lacks VBMI and runs as avx2.
bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512bf16");
}

const LevelKernels& choose_level() {
  const char* forced = std::getenv("TRIVIUM_CPU_LEVEL");
  const std::string name = forced ? forced : "";
  if (name.empty()) {
    if (runs_avx512()) return avx512::level_kernels();
    return runs_avx2() ? avx2::level_kernels() : scalar::level_kernels();
  }
  if (name == "scalar") return scalar::level_kernels();
  if (name == "avx2" && runs_avx2()) return avx2::level_kernels();
  if (name == "avx512-bf16" && runs_avx512()) return avx512::level_kernels();
  throw DeviceError(concat("TRIVIUM_CPU_LEVEL is \"", printable(name),
                           "\"; expected scalar, avx2 or avx512-bf16, and one that this CPU runs"));
}

struct Scratch {
  char* memory = nullptr;
  int64_t bytes = 0;

  ~Scratch() { release(); }
  void release() {
    if (memory) ::operator delete(memory, std::align_val_t(64));
    memory = nullptr;
  }
  void* get(int64_t wanted) {
    if (wanted > bytes) {
      release();
      bytes = 0;
      memory =
          static_cast<char*>(::operator new(static_cast<size_t>(wanted + wanted / 2), std::align_val_t(64)));
      bytes = wanted + wanted / 2;
    }
    return memory;
  }
};

thread_local Scratch t_first, t_second;

}  // namespace

const LevelKernels& current_level() {
  static const LevelKernels& level = choose_level();
  return level;
}

void* thread_scratch(int64_t bytes) { return t_first.get(bytes); }
void* second_scratch(int64_t bytes) { return t_second.get(bytes); }

}  // namespace cpu

std::string cpu_level() { return cpu::current_level().name; }
bool cpu_has_bf16_dot() { return cpu::current_level().bf16_dot; }
int cpu_screen_bits() { return cpu::current_level().screen_bits; }

}  // namespace trivium
