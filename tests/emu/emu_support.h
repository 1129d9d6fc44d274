// Tests of the emulator itself: kernels live beside them, each file is built once for 32 and once for 64
// lanes.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda/gpu.cuh"
#include "emu/runtime.h"

namespace trivium::TRIVIUM_GPU_NS {

inline void check(Status status) {
  if (status != Status::ok) throw DeviceError(guard_message());
}

// A buffer of the emulated device 0.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count) {
    void* memory = nullptr;
    check(emu::kRuntime.allocate(0, static_cast<int64_t>(count * sizeof(T)), &memory));
    data_ = static_cast<T*>(memory);
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    check(emu::kRuntime.copy(0, nullptr, data_, values.data(), bytes()));
  }
  ~Buffer() { emu::kRuntime.deallocate(0, data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }
  int64_t bytes() const { return static_cast<int64_t>(count_ * sizeof(T)); }
  std::vector<T> values() const {
    std::vector<T> host(count_);
    check(emu::kRuntime.copy(0, nullptr, host.data(), data_, bytes()));
    return host;
  }

 private:
  size_t count_;
  T* data_ = nullptr;
};

class Queue {
 public:
  Queue() { check(emu::kRuntime.stream_create(0, &stream_)); }
  ~Queue() { emu::kRuntime.stream_destroy(stream_); }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  Stream get() const { return stream_; }
  void synchronize() const { check(emu::kRuntime.stream_synchronize(stream_)); }

 private:
  Stream stream_ = nullptr;
};

// One block of `threads` threads, to its end.
template <class... P, class... A>
void run_block(int64_t threads, void (*kernel)(P...), const A&... args) {
  const Queue queue;
  launch(queue.get(), {.grid = 1, .block = threads}, kernel, args...);
  queue.synchronize();
}

// The sentence with which fn is refused; "" when it is not.
template <class Fn>
std::string refusal(Fn&& fn) {
  try {
    fn();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace trivium::TRIVIUM_GPU_NS
