// What the forward and backward passes of LUT layers share: checks and argument blocks.
#pragma once

#include "ops/lut.h"

namespace trivium::lut {

inline void check_tensor(const Tensor& t, Dtype dtype, Device device, const char* what) {
  TRIVIUM_CHECK(t.defined(), what, " is missing");
  TRIVIUM_CHECK(t.dtype() == dtype, what, " is ", t.dtype(), ", expected ", dtype);
  TRIVIUM_CHECK(t.device() == device, what, " is on ", t.device(), ", expected ", device);
  TRIVIUM_CHECK(t.is_contiguous(), what, " is not contiguous");
}

// The caller's tensor where one is given, which must be as described; else new memory.
inline Tensor room_for(const Tensor& given, const Shape& shape, Dtype dtype, const char* what,
                       Workspace& work) {
  if (!given.defined()) return work.buffer(shape, dtype);
  check_tensor(given, dtype, work.device(), what);
  TRIVIUM_CHECK(given.shape() == shape && !given.read_only(), what, " is ", given.shape(),
                given.read_only() ? " and read-only" : "", ", expected a writable ", shape);
  return given;
}

inline void check_weights(const Layer& layer, const Tensor& weights, const char* op) {
  check_tensor(weights, Dtype::f32, layer.device(), concat(op, ": weight").c_str());
  TRIVIUM_CHECK(weights.shape() == layer.weight_shape(), op, ": weights are ", weights.shape(), ", expected ",
                layer.weight_shape());
}

inline void check_pe(const Layer& layer, const Tensor& pe, const char* op) {
  if (layer.options().positional_dim == 0) {
    TRIVIUM_CHECK(pe.numel() == 0, op, ": pe is ", pe.shape(), ", but positional_dim is 0");
    return;
  }
  TRIVIUM_CHECK(pe.defined(), op, ": pe is missing, positional_dim is ", layer.options().positional_dim);
  check_tensor(pe, Dtype::f32, layer.device(), concat(op, ": pe").c_str());
  TRIVIUM_CHECK(pe.shape() == layer.pe_shape(), op, ": pe is ", pe.shape(), ", expected ", layer.pe_shape());
}

inline void check_x(const Layer& layer, const Tensor& x) {
  check_tensor(x, Dtype::f32, layer.device(), "lut forward: x");
  const int64_t inputs = layer.options().inputs, longest = layer.options().sequence_length;
  if (!layer.is_sequence()) {
    TRIVIUM_CHECK(x.rank() == 2 && x.dim(1) == inputs, "lut forward: x is ", x.shape(), ", expected [batch, ",
                  inputs, "]");
    return;
  }
  TRIVIUM_CHECK(x.rank() == 3 && x.dim(2) == inputs && 1 <= x.dim(1) && x.dim(1) <= longest,
                "lut forward: x is ", x.shape(), ", expected [batch, 1 to ", longest, ", ", inputs, "]");
}

// Those of a layer with more anchors would lie outside of this one's tables.
inline void check_addresses(const Layer& layer, const Saved& s) {
  const int64_t anchors = layer.num_anchors(), positional_dim = layer.options().positional_dim;
  TRIVIUM_CHECK(s.num_anchors == 0 || (s.num_anchors == anchors && s.positional_dim == positional_dim),
                "lut backward: saved is of a layer with ", s.num_anchors, " anchors and positional_dim ",
                s.positional_dim, ", expected ", anchors, " and ", positional_dim);
}

void check_saved(const Layer& layer, const Saved& s);  // all but the values

// Saved tensors may come back from a caller who kept them, or made them. The constructor looks at every
// index, before anything else runs: on the CPU one outside of its range is an error there. A device does not
// stop the host for that: its kernels get a copy in which such an index is replaced by one that exists, and
// check() waits for the device to say whether there was one.
class AdmittedIndices {
 public:
  AdmittedIndices(const Layer& layer, const Saved& s, Workspace& work);
  const Saved& saved() const { return saved_; }
  void check() const;

 private:
  struct Side {
    const char *index_name, *min_index_name;
    Tensor index, min_index;  // as they came
    Tensor refused;
    int64_t num_tables, num_bits;
  };
  void admit(Side side, Tensor& index, Tensor& min_index, const int32_t* anchors, Workspace& work);

  Saved saved_;
  std::vector<Side> sides_;
};

inline LutSequence sequence_of(const Layer& layer, const Saved& s) {
  const bool training = s.min_index.numel() > 0, pe = s.pe_index.numel() > 0;
  return {.index = s.index.data_as<int32_t>(),
          .min_delta = training ? s.min_delta.data_as<float>() : nullptr,
          .min_index = training ? s.min_index.data_as<int32_t>() : nullptr,
          .pe_index = pe ? s.pe_index.data_as<int32_t>() : nullptr,
          .pe_min_delta = pe && training ? s.pe_min_delta.data_as<float>() : nullptr,
          .pe_min_index = pe && training ? s.pe_min_index.data_as<int32_t>() : nullptr,
          .batch = s.batch,
          .length = s.length,
          .num_anchors = static_cast<int32_t>(layer.num_anchors()),
          .num_pe = static_cast<int32_t>(layer.options().positional_dim)};
}

inline LutProductArgs product_args(const Layer& layer, const Tensor& weights, const Saved& s) {
  const LayerOptions& o = layer.options();
  LutProductArgs a{};
  a.table = layer.table(weights.data_as<float>());
  a.product = {.x = s.x.data_as<float>(),
               .anchors = layer.anchors().data_as<int32_t>(),
               .pe = s.pe.numel() ? s.pe.data_as<float>() : nullptr,
               .batch = s.batch,
               .length = s.length,
               .inputs = o.inputs,
               .num_tables = layer.num_tables(),
               .num_anchors = layer.num_anchors(),
               .num_pe = o.positional_dim,
               .cmp_eps = o.cmp_eps,
               .sliced = o.mode == Mode::sliced,
               .unified = o.unified_pe};
  a.pe_rows = o.sequence_length - 1;
  a.numerics = layer.numerics();
  return a;
}

inline LutStagedArgs staged_args(const Layer& layer, const Tensor& weights, const Saved& s) {
  LutStagedArgs a{};
  a.table = layer.table(weights.data_as<float>());
  a.group_size = layer.options().group_size;
  a.groups = std::max<int64_t>(1, (layer.longest_row() + a.group_size - 1) / a.group_size);
  a.index = s.index.data_as<int32_t>();
  if (s.min_index.numel()) {
    a.min_delta = s.min_delta.data_as<float>();
    a.min_index = s.min_index.data_as<int32_t>();
  }
  a.rows = s.batch * s.length;
  if (layer.is_sequence()) a.sequence = sequence_of(layer, s);
  return a;
}

inline void run_stage(Workspace& work, int stream, LutStagedArgs a, LutStage stage, const char* name) {
  a.stage = stage;
  work.run(stream, name, &Kernels::lut_staged, "lut_staged", a);
}

}  // namespace trivium::lut
