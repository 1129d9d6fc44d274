// Work on weights while a model loads: looking for values no model can have, and transposing.
#pragma once

#include <functional>
#include <string>

#include "core/tensor.h"
#include "models/model.h"

namespace trivium {

// Scans tensors in parallel, at any address; reports progress in bytes and stops when cancelled.
// ModelFormatError names the file, the tensor and the place of the first bad value.
class WeightScan {
 public:
  explicit WeightScan(const LoadOptions& options);
  void dense(const Tensor& t, const std::string& file, const std::string& name);   // no NaN, no infinity
  void scales(const Tensor& t, const std::string& file, const std::string& name);  // E8M0 bytes at most 252
  void skip(int64_t bytes);                                                        // counts as done
  void expect(int64_t bytes) { total_ = bytes; }

 private:
  const LoadOptions& options_;
  int64_t done_ = 0, total_ = 0;
};

// Gets a part of the source, as bytes, when it was read for the last time.
using PartDone = std::function<void(const Tensor& bytes)>;

// What follows works on chunks of a few megabytes in parallel; Cancelled when `cancel` asks, which every
// chunk does.

// [experts, rows, cols] f32/bf16/f16, at any address -> [experts, cols, rows].
Tensor transpose_experts(const Tensor& stored, const PartDone& done, const CancelToken* cancel = nullptr);

// A copy in memory of our own, where the backend may use huge pages, of a tensor at any address. For dense
// matrices, which every token reads in full: a mapped file has small pages.
Tensor copy_to_memory(const Tensor& stored, const PartDone& done, const CancelToken* cancel = nullptr);

// Reads one byte of every page, so that a later step finds the weights in memory.
void touch_pages(const Tensor& t, const CancelToken* cancel = nullptr);

}  // namespace trivium
