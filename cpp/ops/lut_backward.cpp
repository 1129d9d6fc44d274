// Backward passes of LUT layers: surrogate gradient of x and of the positional embeddings, weight gradients.
#include <bit>
#include <cmath>

#include "core/parallel.h"
#include "ops/lut.h"
#include "ops/lut_checks.h"
#include "ops/lut_items.h"

namespace trivium::lut {
namespace {

// One backward: its inputs, results and the buffers that must live until the streams are done.
struct Pass {
  const Layer& layer;
  const Tensor& weights;
  const Tensor& gy;
  Saved saved;
  const BackwardOptions& options;
  Workspace& work;
  bool staged;
  Gradients out = {};
  LutWeightTarget target = {};
  Tensor delta = {}, pe_delta = {}, sums = {};
  Tensor marks = {}, ranks = {}, starts = {};                   // row-sparse
  Tensor events = {}, alternatives = {}, stat = {}, dots = {};  // staged path

  bool fixed() const { return layer.options().int_rescaler > 0; }
  int64_t rows() const { return saved.batch * saved.length; }
  bool has_pe() const { return layer.options().positional_dim > 0; }
  Tensor accumulators(const Shape& shape) const {
    return work.buffer(shape, fixed() ? Dtype::i64 : Dtype::f32);
  }
  bool wants_weights() const { return options.policy != WeightPolicy::none; }
  // Internal updates follow the gradient of x, which needs the old weights.
  int w_stream() const { return options.policy == WeightPolicy::internal ? 0 : 1; }
};

void check(const Pass& p) {
  const Layer& layer = p.layer;
  const BackwardOptions& o = p.options;
  check_weights(layer, p.weights, "lut backward");
  TRIVIUM_CHECK(
      layer.is_product() ? p.saved.x.defined() : p.saved.min_index.defined() && p.saved.min_delta.defined(),
      "lut backward: nothing was saved; call forward with training=True first");
  check_saved(layer, p.saved);
  check_tensor(p.gy, Dtype::f32, layer.device(), "lut backward: gy");
  const int64_t outputs = layer.options().outputs;
  const Shape expected =
      layer.is_sequence() ? Shape{p.saved.batch, p.saved.length, outputs} : Shape{p.saved.batch, outputs};
  TRIVIUM_CHECK(p.gy.shape() == expected, "lut backward: gy is ", p.gy.shape(), ", expected ", expected);
  TRIVIUM_CHECK(!p.staged || (!p.fixed() && !layer.is_product()),
                "lut backward: the staged path has float mode and no product modes");
  if (o.policy == WeightPolicy::internal) {
    TRIVIUM_CHECK(std::isfinite(o.eta) && o.eta >= 0, "lut backward: eta is ", o.eta,
                  ", expected a finite number of at least 0");
    TRIVIUM_CHECK(!o.normalized, "lut backward: normalized gradients cannot go with the internal policy");
    TRIVIUM_CHECK(!p.fixed(), "lut backward: fixed-point mode cannot go with the internal policy");
    TRIVIUM_CHECK(!p.weights.read_only(),
                  "lut backward: the internal policy updates weights, but they are "
                  "read-only");
  }
  TRIVIUM_CHECK(!o.gw.numel() || o.policy == WeightPolicy::dense,
                "lut backward: gw goes with the dense policy");
  TRIVIUM_CHECK(p.work.device() == layer.device(), "lut backward: the workspace is on ", p.work.device(),
                ", the layer on ", layer.device());
}

// The marks of the addressed rows, on the device.
Tensor mark_rows(const Pass& p) {
  const Layer& layer = p.layer;
  Tensor marks = p.work.buffer({layer.num_tables() * lut_mark_words(layer.cells())}, Dtype::i32);
  LutMarkRowsArgs args{};
  args.marks = reinterpret_cast<uint32_t*>(marks.data_as<int32_t>());
  args.num_tables = layer.num_tables(), args.cells = layer.cells();
  args.kind = layer.is_product() ? 2 : layer.is_sequence() ? 1 : 0;
  if (args.kind == 0) args.index = p.saved.index.data_as<int32_t>(), args.rows = p.rows();
  if (args.kind == 1) args.sequence = sequence_of(layer, p.saved);
  if (args.kind == 2) args.product = product_args(layer, p.weights, p.saved).product;
  p.work.run_first(&Kernels::lut_mark_rows, "lut_mark_rows", args);
  return marks;
}

// Where the listed rows of a sparse layer begin in gw; returns its size.
int64_t place_sparse_rows(Pass& p) {
  const Tensor& pointers = p.layer.options().pointers;
  const int64_t cells = p.layer.cells(), *at = pointers.data_as<int64_t>();
  const bool general = pointers.dim(0) == p.layer.num_tables() * cells + 1;
  const Tensor starts = Tensor::empty({p.out.rows.numel()}, Dtype::i64);
  int64_t size = 0;
  for (int64_t k = 0; k < p.out.rows.numel(); ++k) {
    const int64_t row = p.out.rows.data_as<int64_t>()[k], list = general ? row : row / cells;
    starts.data_as<int64_t>()[k] = size;
    size += at[list + 1] - at[list];
  }
  p.starts = p.work.put(starts);
  p.target.places.starts = p.starts.data_as<int64_t>();
  return size;
}

// Lists the addressed rows and gives each its place in gw.
void find_rows(Pass& p) {
  const int64_t tables = p.layer.num_tables(), cells = p.layer.cells(), words = lut_mark_words(cells);
  p.marks = mark_rows(p);
  const Tensor host = p.marks.to(Device{}), ranks = Tensor::empty({tables * words}, Dtype::i64);
  const auto* marks = reinterpret_cast<const uint32_t*>(host.data_as<int32_t>());
  int64_t *rank = ranks.data_as<int64_t>(), count = 0;
  for (int64_t k = 0; k < tables * words; ++k) rank[k] = count, count += count_bits(marks[k]);
  p.out.rows = Tensor::empty({count}, Dtype::i64);
  parallel_for(tables, [&](int64_t t, int) {
    int64_t *to = p.out.rows.data_as<int64_t>() + rank[t * words], first = t * cells;
    const int64_t end = (t + 1) * words;
    // Two words at a time: the branch at the end of the inner loop is mispredicted once for each.
    for (int64_t k = t * words; k < end; k += 2, first += 64) {
      const uint64_t next = k + 1 < end ? marks[k + 1] : 0;
      for (uint64_t left = marks[k] | next << 32; left; left &= left - 1)
        *to++ = first + std::countr_zero(left);
    }
  });
  p.ranks = p.work.put(ranks);
  const auto* on_device = reinterpret_cast<const uint32_t*>(p.marks.data_as<int32_t>());
  p.target.places = {on_device, p.ranks.data_as<int64_t>(), nullptr};
  const bool sparse = p.layer.options().pointers.numel() > 0;
  p.out.gw = p.work.result({sparse ? place_sparse_rows(p) : count * p.layer.options().outputs});
}

void set_target(Pass& p) {
  if (!p.wants_weights()) return;
  p.target.rate = p.layer.options().learning_rate;
  p.target.rates = p.layer.rates().numel() ? p.layer.rates().data_as<float>() : nullptr;
  switch (p.options.policy) {
    case WeightPolicy::dense:
      p.out.gw = p.options.gw.numel()
                     ? room_for(p.options.gw, p.weights.shape(), Dtype::f32, "lut backward: gw", p.work)
                     : p.work.result(p.weights.shape());
      break;
    case WeightPolicy::rows:
      find_rows(p);
      break;
    default:
      p.target.sgd = 1;
      p.target.eta = p.options.eta;
      p.target.out = p.weights.data_as<float>();
      return;
  }
  p.target.out = p.out.gw.data_as<float>();
}

// Scatters delta [rows, Nt] into gx on stream 0.
void propagate(Pass& p) {
  const int64_t inputs = p.layer.options().inputs;
  if (p.fixed()) p.sums = p.work.buffer({p.rows(), inputs}, Dtype::i64);
  const LutPropagateArgs args{.anchors = p.layer.anchors().data_as<int32_t>(),
                              .min_index = p.saved.min_index.data_as<int32_t>(),
                              .delta = p.delta.data(),
                              .gx = p.out.gx.data_as<float>(),
                              .sums = p.fixed() ? p.sums.data_as<int64_t>() : nullptr,
                              .rows = p.rows(),
                              .inputs = inputs,
                              .num_tables = p.layer.num_tables(),
                              .num_anchors = p.layer.num_anchors(),
                              .numerics = p.layer.numerics()};
  p.work.run(
      0, p.layer.is_sequence() ? "propagate_through_detectors_for_sequence" : "propagate_through_detectors",
      &Kernels::lut_propagate_through_detectors, "lut_propagate_through_detectors", args);
}

void gather_pe(Pass& p) {
  if (!p.has_pe()) return;
  const LayerOptions& o = p.layer.options();
  const LutPeGradientArgs args{.pe_delta = p.pe_delta.data(),
                               .pe_min_index = p.saved.pe_min_index.data_as<int32_t>(),
                               .gpe = p.out.gpe.data_as<float>(),
                               .batch = p.saved.batch,
                               .distances = p.saved.length - 1,
                               .rows = o.sequence_length - 1,
                               .num_tables = p.layer.num_tables(),
                               .num_pe = o.positional_dim,
                               .numerics = p.layer.numerics(),
                               .unified = o.unified_pe};
  p.work.run(0, "gather_pe_gradients", &Kernels::lut_gather_pe_gradients, "lut_gather_pe_gradients", args);
}

void gather_w(Pass& p) {
  if (!p.wants_weights()) return;
  if (p.layer.is_sequence()) {
    const LutSequenceWGradientArgs args{.table = p.layer.table(p.weights.data_as<float>()),
                                        .sequence = sequence_of(p.layer, p.saved),
                                        .gy = p.gy.data_as<float>(),
                                        .target = p.target,
                                        .numerics = p.layer.numerics()};
    p.work.run(p.w_stream(), "gather_w_gradients_for_sequence", &Kernels::lut_gather_w_gradients_for_sequence,
               "lut_gather_w_gradients_for_sequence", args);
    return;
  }
  const LutWGradientArgs args{.table = p.layer.table(p.weights.data_as<float>()),
                              .gy = p.gy.data_as<float>(),
                              .index = p.saved.index.data_as<int32_t>(),
                              .target = p.target,
                              .rows = p.rows(),
                              .numerics = p.layer.numerics()};
  p.work.run(p.w_stream(), "gather_w_gradients", &Kernels::lut_gather_w_gradients, "lut_gather_w_gradients",
             args);
}

void fused(Pass& p) {
  const bool sequence = p.layer.is_sequence();
  if (p.wants_weights() && p.w_stream() != 0) gather_w(p);
  if (sequence && (p.options.need_x || p.has_pe())) {
    const LutSequenceXGradientArgs args{.table = p.layer.table(p.weights.data_as<float>()),
                                        .sequence = sequence_of(p.layer, p.saved),
                                        .gy = p.gy.data_as<float>(),
                                        .delta = p.delta.data(),
                                        .pe_delta = p.has_pe() ? p.pe_delta.data() : nullptr,
                                        .numerics = p.layer.numerics()};
    p.work.run(0, "gather_x_gradients_for_sequence", &Kernels::lut_gather_x_gradients_for_sequence,
               "lut_gather_x_gradients_for_sequence", args);
    if (p.options.need_x) propagate(p);
    gather_pe(p);
  } else if (!sequence && p.options.need_x) {
    const LutXGradientArgs args{.table = p.layer.table(p.weights.data_as<float>()),
                                .gy = p.gy.data_as<float>(),
                                .index = p.saved.index.data_as<int32_t>(),
                                .min_delta = p.saved.min_delta.data_as<float>(),
                                .min_index = p.saved.min_index.data_as<int32_t>(),
                                .delta = p.delta.data(),
                                .rows = p.rows(),
                                .numerics = p.layer.numerics()};
    p.work.run(0, "gather_x_gradients", &Kernels::lut_gather_x_gradients, "lut_gather_x_gradients", args);
    propagate(p);
  }
  if (p.wants_weights() && p.w_stream() == 0)
    gather_w(p);
  else if (p.wants_weights())
    p.work.join(0, 1);
}

// Streams 0 and 1: dot products with the addressed and the alternative rows; 2: weight gradients.
void staged_rows(Pass& p) {
  LutStagedArgs a = staged_args(p.layer, p.weights, p.saved);
  const int64_t detectors = p.rows() * p.layer.num_tables();
  p.events = p.work.buffer({detectors * 2 * a.groups, 16}, Dtype::u8);
  p.dots = p.work.buffer({detectors, 2}, Dtype::f32);
  a.events = static_cast<LutEvent*>(p.events.data());
  a.dots = p.dots.data_as<float>();
  a.gy = p.gy.data_as<float>();
  a.delta = p.delta.data_as<float>();
  a.target = p.target;
  run_stage(p.work, 0, a, LutStage::fire_detectors_by_lookup_indices, "fire_detectors_by_lookup_indices");
  p.work.join(1, 0);
  p.work.join(2, 0);
  run_stage(p.work, 0, a, LutStage::gather_gradients, "gather_gradients (main)");
  a.part = 1;
  run_stage(p.work, 1, a, LutStage::gather_gradients, "gather_gradients (alternative)");
  p.work.join(0, 1);
  const bool internal = p.options.policy == WeightPolicy::internal;
  if (internal) p.work.join(2, 0);  // the update follows both reads of the old weights
  if (p.wants_weights()) run_stage(p.work, 2, a, LutStage::gather_w_gradients, "gather_w_gradients");
  run_stage(p.work, 0, a, LutStage::propagate_through_detectors, "surrogate slopes");
  propagate(p);
  p.work.join(0, 2);
}

// Streams 0 and 2: dot products with the fired and the alternative rows; 1: weight gradients.
void staged_sequence(Pass& p) {
  LutStagedArgs a = staged_args(p.layer, p.weights, p.saved);
  const int64_t cells = p.layer.cells(), detectors = p.rows() * p.layer.num_tables();
  const int64_t pairs = p.saved.batch * p.layer.num_tables() * p.saved.length * (p.saved.length - 1) / 2;
  p.stat = p.work.buffer({detectors, cells}, Dtype::i32);
  p.events = p.work.buffer({pairs, 16}, Dtype::u8);
  p.alternatives = p.work.buffer({2 * pairs, 16}, Dtype::u8);
  p.dots = p.work.buffer({detectors, cells}, Dtype::f32);
  a.firing_stat = p.stat.data_as<int32_t>();
  a.events = static_cast<LutEvent*>(p.events.data());
  a.alternatives = static_cast<LutEvent*>(p.alternatives.data());
  a.dots = p.dots.data_as<float>();
  a.gy = p.gy.data_as<float>();
  a.delta = p.delta.data_as<float>();
  a.pe_delta = p.has_pe() ? p.pe_delta.data_as<float>() : nullptr;
  a.target = p.target;
  run_stage(p.work, 0, a, LutStage::fill_after_detectors_firing_stat, "fill_after_detectors_firing_stat");
  run_stage(p.work, 0, a, LutStage::densify_firing_stat, "densify_firing_stat");
  p.work.join(1, 0);
  p.work.join(2, 0);
  run_stage(p.work, 0, a, LutStage::gather_gradients_for_sequence, "gather_gradients (main)");
  LutStagedArgs second = a;
  second.part = 1;
  run_stage(p.work, 2, second, LutStage::gather_gradients_for_sequence, "gather_gradients (alternative)");
  p.work.join(0, 2);
  if (p.options.policy == WeightPolicy::internal) p.work.join(1, 0);
  if (p.wants_weights())
    run_stage(p.work, 1, a, LutStage::gather_w_gradients_for_sequence, "gather_w_gradients");
  run_stage(p.work, 0, a, LutStage::propagate_through_detectors_for_sequence, "surrogate slopes");
  propagate(p);
  gather_pe(p);
  p.work.join(0, 1);
}

void product(Pass& p) {
  LutProductArgs a = product_args(p.layer, p.weights, p.saved);
  a.gy = p.gy.data_as<float>();
  a.gx = p.options.need_x ? p.out.gx.data_as<float>() : nullptr;
  if (a.gx) {
    if (p.fixed()) p.sums = p.work.buffer(p.out.gx.shape(), Dtype::i64);
    a.sums = p.fixed() ? p.sums.data_as<int64_t>() : nullptr;
    p.work.run(0, "gather_x_gradients_by_product", &Kernels::lut_product_backward, "lut_product_backward", a);
  }
  a.gx = nullptr;
  if (p.has_pe()) {
    if (p.fixed()) p.pe_delta = p.work.buffer(p.out.gpe.shape(), Dtype::i64);
    a.sums = p.fixed() ? p.pe_delta.data_as<int64_t>() : nullptr;
    a.gpe = p.out.gpe.data_as<float>();
    p.work.run(0, "gather_pe_gradients_by_product", &Kernels::lut_product_backward, "lut_product_backward",
               a);
  }
  a.gpe = nullptr;
  if (!p.wants_weights()) return;
  a.target = p.target;
  p.work.run(p.w_stream(), "gather_w_gradients_by_product", &Kernels::lut_product_backward,
             "lut_product_backward", a);
  if (p.w_stream() != 0) p.work.join(0, p.w_stream());
}

void normalize(Pass& p, Tensor& values) {
  if (!values.numel()) return;
  const Tensor scratch = p.work.buffer({kLutNormalizeParts + 1}, Dtype::f32);
  const LutNormalizeArgs args{values.data_as<float>(), scratch.data_as<float>(), values.numel()};
  p.work.run(0, "normalize", &Kernels::lut_normalize, "lut_normalize", args);
}

}  // namespace

Gradients backward(const Layer& layer, const Tensor& weights, const Tensor& gy, const Saved& saved,
                   const BackwardOptions& options, Workspace& work, bool staged) {
  Pass p{.layer = layer,
         .weights = weights,
         .gy = gy,
         .saved = saved,
         .options = options,
         .work = work,
         .staged = staged};
  check(p);
  const AdmittedIndices admitted(layer, p.saved, work);
  p.saved = admitted.saved();
  // An update writes into the caller's weights; rows wait for the device in any case, which says how many.
  const bool checks_first = options.policy == WeightPolicy::internal || options.policy == WeightPolicy::rows;
  if (!saved.unchanged && checks_first) admitted.check();
  const LayerOptions& o = layer.options();
  if (options.need_x)
    p.out.gx = room_for(
        options.gx,
        layer.is_sequence() ? Shape{saved.batch, saved.length, o.inputs} : Shape{saved.batch, o.inputs},
        Dtype::f32, "lut backward: gx", work);
  if (p.has_pe()) p.out.gpe = room_for(options.gpe, layer.pe_shape(), Dtype::f32, "lut backward: gpe", work);
  if (!layer.is_product()) {
    p.delta = p.accumulators({p.rows(), layer.num_tables()});
    if (p.has_pe()) p.pe_delta = p.accumulators({saved.batch, saved.length - 1, layer.num_tables()});
  }
  set_target(p);
  const Operation operation(work);
  if (layer.is_product())
    product(p);
  else if (staged && layer.is_sequence())
    staged_sequence(p);
  else if (staged)
    staged_rows(p);
  else
    fused(p);
  if (options.normalized) {
    normalize(p, p.out.gw);
    normalize(p, p.out.gpe);
  }
  if (!saved.unchanged && !checks_first) admitted.check();
  return std::move(p.out);
}

}  // namespace trivium::lut
