// A checkpoint's tensors on their way into a model: found by name, checked, scanned, and put where the model
// reads them.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "models/model.h"
#include "models/scan.h"
#include "models/upload.h"
#include "ops/ops.h"

namespace trivium {

// Names a tensor goes by; the first that is there counts.
struct TensorNames {
  TensorNames(std::string name) : list{std::move(name)} {}
  TensorNames(const char* name) : list{name} {}
  TensorNames(std::initializer_list<std::string> names) : list(names) {}
  std::vector<std::string> list;
};

// What is missing is undefined here and an error in finish(). ModelFormatError names file and tensor. On the
// CPU tensors stay in the mapped file, except large matrices, which move to memory of our own; on a GPU they
// are uploaded.
class WeightSource {
 public:
  WeightSource(const io::TensorArchive& archive, const std::string& path, const LoadOptions& options);

  bool has(const std::string& name) const { return archive_.contains(name); }
  bool on_gpu() const { return uploader_.has_value(); }
  Device device() const { return device_; }
  const io::TensorArchive& archive() const { return archive_; }

  // As it is in the file, or a copy when it is not aligned there: exactly `shape`, in f32, bf16 or f16.
  Tensor dense(const TensorNames& names, const Shape& shape);
  Tensor vector(const TensorNames& names, const Shape& shape) { return place(dense(names, shape)); }
  ops::Weight matrix(const TensorNames& names, const Shape& shape) {
    return place_matrix(host_matrix(names, shape), names.list.front());
  }
  // A matrix on the host, where the model will read it if that is the CPU.
  Tensor host_matrix(const TensorNames& names, const Shape& shape);
  // MXFP4 pair of the logical shape [E, rows, cols].
  ops::Weight mxfp4(const std::string& blocks_name, const std::string& scales_name, const Shape& shape);
  // Dense experts stored [E, in, out] as a [E, out, in] matrix in memory of our own.
  ops::Weight transposed(const std::string& name, const Shape& shape);
  // Exactly `shape` and `dtype`, on the host; an error when it is not there. Values are not looked at.
  Tensor stored(const std::string& name, const Shape& shape, Dtype dtype);
  // The same in f32, without NaN and infinities; then placed too.
  Tensor scanned(const std::string& name, const Shape& shape);
  Tensor weights(const std::string& name, const Shape& shape) { return place(scanned(name, shape)); }

  // Where the model will find the tensor: on its device, or as it is. Undefined ones stay undefined.
  Tensor place(const Tensor& t);
  // On a GPU in bf16, unless the precision is float32.
  ops::Weight place_matrix(const Tensor& t, const std::string& name);

  // Waits for uploads, which kernels of another stream do not.
  void wait() {
    if (uploader_) uploader_->finish();
  }
  enum class Unused { warns, is_refused };
  // Waits; throws the list of missing tensors, at most five; warns of tensors that were not asked for, or
  // throws the first one's name.
  void finish(Unused unused = Unused::warns);

 private:
  Tensor dense_view(const TensorNames& names, const Shape& shape);  // as dense(), at any address
  Tensor aligned(const Tensor& view) const { return view.is_aligned() ? view : copied(view); }
  Tensor copied(const Tensor& view) const;  // gives the file's pages back
  Tensor bytes(const std::string& name, const Shape& shape);

  const io::TensorArchive& archive_;
  const std::string path_;
  const Device device_;
  WeightScan scan_;
  const CancelToken* const cancel_;
  const bool narrow_;  // dense matrices become bf16 on a GPU
  std::optional<Uploader> uploader_;
  std::set<std::string> used_;
  std::vector<std::string> missing_;
};

}  // namespace trivium
