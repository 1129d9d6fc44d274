#include "gpu_bench.h"

#include <algorithm>

namespace trivium::bench {
namespace {

constexpr int64_t kFlushBytes = int64_t{256} << 20;

void check(Device device, Status status) {
  if (status != Status::ok) throw_status(device.kind, status);
}

}  // namespace

Bench::Bench(Device device)
    : device_(device),
      stream_(device),
      begin_(device),
      end_(device),
      flush_(Tensor::zeros({kFlushBytes}, Dtype::u8, device)) {
  if (!runtime(device).event_elapsed)
    throw NotImplemented(concat("times on ", name_of(device.kind), ": only real GPUs are measured"));
}

double Bench::once_us(const Case& c) {
  const Runtime& r = runtime(device_);
  check(device_, r.fill(device_.index, stream_.handle(), flush_.data(), 0, kFlushBytes));
  begin_.record(stream_);
  c.run(stream_.handle());
  end_.record(stream_);
  end_.synchronize();
  float ms = 0;
  check(device_, r.event_elapsed(begin_.handle(), end_.handle(), &ms));
  return 1000.0 * ms;
}

Timing Bench::time(const Case& c, int rounds) {
  for (int i = 0; i < 3; ++i) once_us(c);
  std::vector<double> us;
  for (int i = 0; i < rounds; ++i) us.push_back(once_us(c));
  std::sort(us.begin(), us.end());
  const auto at = [&](double share) {
    return us[static_cast<size_t>(share * static_cast<double>(us.size() - 1))];
  };
  return {at(0.1), at(0.5), at(0.9)};
}

double Bench::copy_bandwidth() {
  constexpr int64_t kBytes = int64_t{1} << 30;
  const Tensor from = Tensor::zeros({kBytes}, Dtype::u8, device_),
               to = Tensor::zeros({kBytes}, Dtype::u8, device_);
  const Case copy{"copy", 2.0 * kBytes, 0, [&](StreamHandle* stream) {
                    check(device_,
                          runtime(device_).copy(device_.index, stream, to.data(), from.data(), kBytes));
                  }};
  return copy.bytes / time(copy, 20).median_us * 1e6;
}

Tensor random_tensor(const Shape& shape, Dtype dtype, Device device) {
  constexpr int64_t kPeriod = (int64_t{4} << 20) + 48;
  std::vector<uint8_t> block(kPeriod);
  uint32_t state = 12345;
  for (size_t i = 0; i < block.size(); ++i) {
    state = state * 1664525u + 1013904223u;
    // Every second byte is the exponent of a bf16 or f32: 0x3c..0x3f or negative, so about 0.01 to 1.
    block[i] = i % 2 ? static_cast<uint8_t>(0x3c | (state >> 30) | ((state >> 22) & 0x80))
                     : static_cast<uint8_t>(state >> 24);
  }
  Tensor t = Tensor::empty(shape, dtype, device);
  auto* to = static_cast<char*>(t.data());
  for (int64_t at = 0; at < t.nbytes(); at += kPeriod)
    check(device, runtime(device).copy(device.index, nullptr, to + at, block.data(),
                                       std::min(kPeriod, t.nbytes() - at)));
  return t;
}

Tensor integers(const std::vector<int32_t>& values, Device device) {
  Tensor host = Tensor::empty({static_cast<int64_t>(values.size())}, Dtype::i32);
  std::copy(values.begin(), values.end(), host.data_as<int32_t>());
  return host.to(device);
}

}  // namespace trivium::bench
