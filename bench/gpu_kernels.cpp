// trivium_gpu_kernels DEVICE [TOKENS...]: one JSON line a kernel of a gpt-oss-20b step, beside the device's
// measured copy bandwidth. Times are medians with the 10th and 90th percentile; emulated devices are refused.
#include <cstdio>
#include <cstdlib>

#include "gpu_bench.h"

namespace {

using namespace trivium;

void print_case(const bench::Case& c, const bench::Timing& t, int64_t tokens, double bandwidth) {
  const double seconds = t.median_us * 1e-6;
  std::printf(
      "{\"kernel\": \"%s\", \"tokens\": %lld, \"median_us\": %.2f, \"p10_us\": %.2f, \"p90_us\": %.2f, "
      "\"bytes\": %.0f, \"flops\": %.0f, \"gb_per_s\": %.1f, \"tflops\": %.2f, \"of_bandwidth\": %.3f}\n",
      c.name.c_str(), static_cast<long long>(tokens), t.median_us, t.p10_us, t.p90_us, c.bytes, c.flops,
      c.bytes / seconds / 1e9, c.flops / seconds / 1e12, c.bytes / seconds / bandwidth);
  std::fflush(stdout);
}

void run(int argc, char** argv) {
  constexpr int kRounds = 30;
  constexpr int64_t kContext = 1024;
  const Device device = parse_device(argv[1]);
  if (device.kind != DeviceKind::cuda && device.kind != DeviceKind::hip)
    throw InvalidArgument(concat("trivium_gpu_kernels measures cuda and hip devices, not ", device));
  bench::Bench bench(device);
  const DeviceProperties p = device_properties(device);
  const double bandwidth = bench.copy_bandwidth();
  std::printf("{\"device\": \"%s\", \"arch\": \"%s\", \"build\": \"%s\", \"copy_gb_per_s\": %.1f}\n", p.name,
              p.arch, build_id(), bandwidth / 1e9);
  for (int i = 2; i < argc; ++i) {
    const int64_t tokens = std::atoll(argv[i]);
    for (const auto& c : bench::moe_cases(device, tokens, kContext))
      print_case(c, bench.time(c, kRounds), tokens, bandwidth);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: trivium_gpu_kernels DEVICE TOKENS...\n");
    return 2;
  }
  try {
    run(argc, argv);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
