// The device a test binary runs on (--backend=NAME), tensors on it, and guard bytes around outputs.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <vector>

#include "core/parallel.h"
#include "core/registry.h"
#include "core/tensor.h"

namespace trivium::testing {

inline Device g_test_device;  // set by main()
inline Device test_device() { return g_test_device; }
// On the SIMT emulator, where tests use fewer and smaller cases.
inline bool emulated() {
  return g_test_device.kind == DeviceKind::emu32 || g_test_device.kind == DeviceKind::emu64;
}

template <class T>
Tensor host_tensor(const Shape& shape, std::span<const T> values) {
  Tensor t = Tensor::empty(shape, dtype_of<T>);
  if (static_cast<int64_t>(values.size()) != t.numel()) throw InvalidArgument("host_tensor: wrong size");
  std::copy(values.begin(), values.end(), t.data_as<T>());
  return t;
}

// A tensor with `values` on the test device.
template <class T>
Tensor device_tensor(const Shape& shape, const std::vector<T>& values) {
  return host_tensor<T>(shape, values).to(test_device());
}

// The values of any tensor, in row-major order, on the host.
template <class T>
std::vector<T> values_of(const Tensor& t) {
  const Tensor host = t.to(Device{}).contiguous();
  return {host.data_as<T>(), host.data_as<T>() + host.numel()};
}

// A tensor's values as double, whatever its float type.
inline std::vector<double> doubles_of(const Tensor& t) {
  const Tensor host = t.to(Device{}).contiguous().to(Dtype::f64);
  return {host.data_as<double>(), host.data_as<double>() + host.numel()};
}

// An output filled with a pattern and surrounded by guard bytes: a kernel must write all of it and nothing
// else.
class Guarded {
 public:
  Guarded(const Shape& shape, Dtype dtype) {
    bytes_ = shape.numel() * size_of(dtype);
    const Device device = test_device();
    memory_ = Tensor::empty({bytes_ + 2 * kGuard}, Dtype::u8, device);
    const Status filled =
        runtime(device).fill(device.index, nullptr, memory_.data(), kPattern, memory_.nbytes());
    if (filled != Status::ok) throw_status(device.kind, filled);
    tensor_ =
        Tensor::wrap(static_cast<char*>(memory_.data()) + kGuard, shape, dtype, device, memory_.owner());
  }
  Tensor& tensor() { return tensor_; }
  void* data() const { return tensor_.data(); }

  void expect_intact(const char* what) const {
    const auto all = values_of<uint8_t>(memory_);
    int64_t changed = 0;
    for (int64_t i = 0; i < kGuard; ++i) {
      changed += all[static_cast<size_t>(i)] != kPattern;
      changed += all[static_cast<size_t>(kGuard + bytes_ + i)] != kPattern;
    }
    EXPECT_EQ(changed, 0) << what << ": guard bytes around the output were written";
  }

 private:
  static constexpr int64_t kGuard = 256;
  static constexpr uint8_t kPattern = 0xA5;
  int64_t bytes_ = 0;
  Tensor memory_, tensor_;
};

// Sets the number of threads for a scope.
class Threads {
 public:
  explicit Threads(int n) { set_num_threads(n); }
  ~Threads() { set_num_threads(0); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
};

// The sentence of the error that `fn` throws; "" when it throws none.
template <class Fn>
std::string message_of(Fn&& fn) {
  try {
    fn();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    return text;
  }
  return "";
}

// Expects fn to throw an E whose sentence has all `parts`.
template <class E = InvalidArgument, class Fn>
void expect_error(Fn&& fn, const std::vector<std::string>& parts) {
  try {
    fn();
    ADD_FAILURE() << "no error; expected one about \"" << parts.at(0) << "\"";
  } catch (const E& error) {
    const std::string text = error.what();
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    for (const std::string& part : parts)
      EXPECT_NE(text.find(part), std::string::npos) << '"' << text << "\" does not say \"" << part << '"';
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another kind of error: " << error.what();
  }
}

}  // namespace trivium::testing
