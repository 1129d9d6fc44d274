// Weights on their way from host memory, mapped files among it, to a GPU.
#pragma once

#include <array>
#include <memory>

#include "core/cancel.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace trivium {

// Copies through two pinned buffers in turn: one is filled (and the file read) while the other travels.
class Uploader {
 public:
  Uploader(Device device, const CancelToken* cancel);
  ~Uploader();  // waits for what is under way
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  // A tensor with the same shape, dtype and values on the device. `host` may be changed or unmapped after the
  // call. OutOfMemory names the device; Cancelled between buffers.
  Tensor upload(const Tensor& host);
  void finish();  // throws what went wrong on the way

 private:
  struct Buffer {
    Tensor memory;
    std::unique_ptr<Event> sent;
    bool busy = false;
  };
  Device device_;
  const CancelToken* cancel_;
  Stream stream_;
  std::array<Buffer, 2> buffers_;
  size_t next_ = 0;
};

// Several tensors [rows, ...] of one row size under each other, on the host.
Tensor stack_rows(std::initializer_list<Tensor> parts);

}  // namespace trivium
