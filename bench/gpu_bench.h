// Times kernels of a GPU backend by its own events, with a cold second-level cache, and counts what they
// move.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/registry.h"
#include "core/tensor.h"

namespace trivium::bench {

struct Case {
  std::string name;  // "linear qkv, 32 tokens"
  double bytes = 0;  // that must be read or written at least once
  double flops = 0;
  std::function<void(StreamHandle*)> run;
};

struct Timing {
  double p10_us, median_us, p90_us;
};

class Bench {
 public:
  explicit Bench(Device device);
  Timing time(const Case& c, int rounds);
  // Bytes a second read and written by a copy within the device: the roof that shares are given of.
  double copy_bandwidth();
  Device device() const { return device_; }

 private:
  double once_us(const Case& c);

  Device device_;
  Stream stream_;
  Event begin_, end_;
  Tensor flush_;  // larger than any second-level cache
};

// A tensor of random bytes that are small finite numbers in every float type; repeats after a few megabytes.
Tensor random_tensor(const Shape& shape, Dtype dtype, Device device);
Tensor integers(const std::vector<int32_t>& values, Device device);

// One decoder layer and the unembedding of gpt-oss-20b for `tokens` tokens, `context` keys a sequence.
std::vector<Case> moe_cases(Device device, int64_t tokens, int64_t context);

}  // namespace trivium::bench
