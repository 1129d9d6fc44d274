#include "models/weight_source.h"

#include "core/log.h"

namespace trivium {
namespace {

// Dense matrices of this size are read in full for every token and are worth huge pages; experts stay mapped.
constexpr int64_t kCopiedBytes = 2 << 20;

}  // namespace

WeightSource::WeightSource(const io::TensorArchive& archive, const std::string& path,
                           const LoadOptions& options)
    : archive_(archive),
      path_(path),
      device_(options.device),
      scan_(options),
      cancel_(options.cancel),
      narrow_(options.precision == Precision::bfloat16) {
  scan_.expect(archive.total_bytes());
  if (is_gpu(options.device.kind)) uploader_.emplace(options.device, options.cancel);
}

Tensor WeightSource::place(const Tensor& t) {
  if (!uploader_ || !t.data()) return t;
  const Tensor out = uploader_->upload(t);
  if (archive_.is_mapped(t)) archive_.drop_pages(t);
  return out;
}

ops::Weight WeightSource::place_matrix(const Tensor& t, const std::string& name) {
  if (!t.data()) return {};
  return ops::Weight::dense(place(uploader_ && narrow_ ? t.to(Dtype::bf16) : t), name.c_str());
}

Tensor WeightSource::copied(const Tensor& view) const {
  return copy_to_memory(
      view, [&](const Tensor& done) { archive_.drop_pages(done); }, cancel_);
}

Tensor WeightSource::dense(const TensorNames& names, const Shape& shape) {
  return aligned(dense_view(names, shape));
}

Tensor WeightSource::dense_view(const TensorNames& names, const Shape& shape) {
  for (const std::string& name : names.list) {
    if (!archive_.contains(name)) continue;
    used_.insert(name);
    const Tensor t = archive_.view(name);
    if (!(t.shape() == shape))
      throw ModelFormatError(
          concat(archive_.file_of(name), ": tensor \"", name, "\" is ", t.shape(), ", expected ", shape));
    if (t.dtype() != Dtype::bf16 && t.dtype() != Dtype::f16 && t.dtype() != Dtype::f32)
      throw ModelFormatError(concat(archive_.file_of(name), ": tensor \"", name, "\" is ", t.dtype(),
                                    ", expected bfloat16, float16 or float32"));
    scan_.dense(t, archive_.file_of(name), name);
    return t;
  }
  missing_.push_back(names.list.front());
  return {};
}

Tensor WeightSource::host_matrix(const TensorNames& names, const Shape& shape) {
  const Tensor t = dense_view(names, shape);
  if (!t.data()) return t;
  const bool moves = !on_gpu() && shape.rank() == 2 && t.nbytes() >= kCopiedBytes && archive_.is_mapped(t);
  return moves ? copied(t) : aligned(t);
}

ops::Weight WeightSource::mxfp4(const std::string& blocks_name, const std::string& scales_name,
                                const Shape& shape) {
  if (shape[2] % kMxBlock != 0)
    throw ModelFormatError(concat(archive_.file_of(blocks_name), ": tensor \"", blocks_name,
                                  "\" is MXFP4, but its rows have ", shape[2],
                                  " columns, expected a multiple of ", kMxBlock));
  const Shape blocks_shape{shape[0], shape[1], shape[2] / kMxBlock, kMxBlockBytes};
  const Tensor blocks = bytes(blocks_name, blocks_shape);
  const Tensor scales = bytes(scales_name, {shape[0], shape[1], shape[2] / kMxBlock});
  if (!blocks.data() || !scales.data()) return {};
  scan_.scales(scales, archive_.file_of(scales_name), scales_name);
  scan_.skip(blocks.nbytes());
  return ops::Weight::mxfp4(place(blocks), place(scales), blocks_name.c_str());
}

ops::Weight WeightSource::transposed(const std::string& name, const Shape& shape) {
  const Tensor stored = dense_view(name, {shape[0], shape[2], shape[1]});
  if (!stored.data()) return {};
  return place_matrix(transpose_experts(
                          stored, [&](const Tensor& done) { archive_.drop_pages(done); }, cancel_),
                      name);
}

Tensor WeightSource::stored(const std::string& name, const Shape& shape, Dtype dtype) {
  used_.insert(name);
  const Tensor t = archive_.view(name);
  if (!(t.shape() == shape) || t.dtype() != dtype)
    throw ModelFormatError(concat(archive_.file_of(name), ": tensor \"", name, "\" is ", t.dtype(), ' ',
                                  t.shape(), ", expected ", dtype, ' ', shape));
  return aligned(t);
}

Tensor WeightSource::scanned(const std::string& name, const Shape& shape) {
  const Tensor t = stored(name, shape, Dtype::f32);
  scan_.dense(t, archive_.file_of(name), name);
  return t;
}

void WeightSource::finish(Unused unused) {
  wait();
  if (!missing_.empty()) {
    std::string list;
    for (size_t i = 0; i < missing_.size() && i < 5; ++i) list += (i ? ", " : "") + missing_[i];
    if (missing_.size() > 5) list += concat(" and ", missing_.size() - 5, " more");
    throw ModelFormatError(concat(path_, ": missing tensors: ", list));
  }
  size_t extra = 0;
  std::string first;
  for (const auto& [name, entry] : archive_.entries())
    if (!used_.contains(name) && extra++ == 0) first = name;
  if (extra == 0) return;
  const std::string what = concat(archive_.file_of(first), ": ", extra,
                                  " tensor(s) are not used, the first is \"", printable(first), "\"");
  if (unused == Unused::is_refused) throw ModelFormatError(what);
  warn(what);
}

Tensor WeightSource::bytes(const std::string& name, const Shape& shape) {
  used_.insert(name);
  if (!archive_.contains(name)) {
    missing_.push_back(name);
    return {};
  }
  const Tensor t = archive_.tensor(name);
  if (t.dtype() != Dtype::u8 || !(t.shape() == shape))
    throw ModelFormatError(concat(archive_.file_of(name), ": tensor \"", name, "\" is ", t.shape(), " ",
                                  t.dtype(), ", expected ", shape, " uint8"));
  return t;
}

}  // namespace trivium
