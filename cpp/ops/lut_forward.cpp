// Forward passes of LUT layers: fused, staged and one position at a time.
#include <algorithm>

#include "ops/lut.h"
#include "ops/lut_checks.h"

namespace trivium::lut {

namespace {

// Where the detectors of x's rows, `shape`, and of `distances` embeddings leave their results: the tensors of
// `saved` that are given, or new ones.
void make_room(const Layer& layer, const Shape& shape, int64_t distances, bool training, Saved& saved,
               Workspace& work) {
  const auto make = [&](Tensor& t, const Shape& s, Dtype dtype, const char* what) {
    t = room_for(t, s, dtype, what, work);
  };
  make(saved.index, shape, Dtype::i32, "lut forward: index");
  if (training) {
    make(saved.min_delta, shape, Dtype::f32, "lut forward: min_delta");
    make(saved.min_index, shape, Dtype::i32, "lut forward: min_index");
  }
  if (layer.options().positional_dim == 0) return;
  const Shape pe_shape{distances, layer.num_tables()};
  make(saved.pe_index, pe_shape, Dtype::i32, "lut forward: pe_index");
  if (training) {
    make(saved.pe_min_delta, pe_shape, Dtype::f32, "lut forward: pe_min_delta");
    make(saved.pe_min_index, pe_shape, Dtype::i32, "lut forward: pe_min_index");
  }
}

// check_detectors on stream 0.
void detect(const Layer& layer, const Tensor& x, const Saved& saved, Workspace& work) {
  const bool training = saved.min_index.defined();
  const LutDetectArgs args{.x = x.data_as<float>(),
                           .anchors = layer.anchors().data_as<int32_t>(),
                           .index = saved.index.data_as<int32_t>(),
                           .min_delta = training ? saved.min_delta.data_as<float>() : nullptr,
                           .min_index = training ? saved.min_index.data_as<int32_t>() : nullptr,
                           .rows = saved.index.numel() / layer.num_tables(),
                           .inputs = layer.options().inputs,
                           .num_tables = layer.num_tables(),
                           .num_anchors = layer.num_anchors(),
                           .cmp_eps = layer.options().cmp_eps};
  work.run(0, layer.is_sequence() ? "check_detectors_for_sequence" : "check_detectors",
           &Kernels::lut_check_detectors, "lut_check_detectors", args);
}

// check_positional_embeddings on stream 1, joined by stream 0.
void detect_pe(const Layer& layer, const Tensor& pe, const Saved& saved, Workspace& work) {
  if (layer.options().positional_dim == 0) return;
  const bool training = saved.pe_min_index.defined();
  const LutDetectPeArgs args{.pe = pe.data_as<float>(),
                             .index = saved.pe_index.data_as<int32_t>(),
                             .min_delta = training ? saved.pe_min_delta.data_as<float>() : nullptr,
                             .min_index = training ? saved.pe_min_index.data_as<int32_t>() : nullptr,
                             .distances = saved.pe_index.dim(0),
                             .num_tables = layer.num_tables(),
                             .num_pe = layer.options().positional_dim,
                             .cmp_eps = layer.options().cmp_eps,
                             .unified = layer.options().unified_pe};
  work.run(1, "check_positional_embeddings", &Kernels::lut_check_positional_embeddings,
           "lut_check_positional_embeddings", args);
  work.join(0, 1);
}

void fill_outputs(const Layer& layer, const Tensor& weights, const Tensor& index, int64_t rows, Tensor& y,
                  Workspace& work) {
  const LutForwardArgs args{.table = layer.table(weights.data_as<float>()),
                            .index = index.data_as<int32_t>(),
                            .y = y.data_as<float>(),
                            .rows = rows,
                            .numerics = layer.numerics(),
                            .accumulate = 0};
  const bool sparse = args.table.form != LutForm::fully_connected;
  work.run(0, sparse ? "fill_outputs_by_sparse_rows" : "fill_outputs_fully_connected",
           &Kernels::lut_fill_outputs, "lut_fill_outputs", args);
}

// fire_detectors and fill_outputs_by_forward_groups with the event buffer between them.
void staged_rows(const Layer& layer, const Tensor& weights, const Saved& saved, Tensor& y, Workspace& work,
                 Tensor& events) {
  LutStagedArgs a = staged_args(layer, weights, saved);
  events = work.buffer({saved.batch * layer.num_tables() * a.groups, 16}, Dtype::u8);
  a.events = static_cast<LutEvent*>(events.data());
  a.y = y.data_as<float>();
  run_stage(work, 0, a, LutStage::fire_detectors, "fire_detectors");
  run_stage(work, 0, a, LutStage::fill_outputs_by_forward_groups, "fill_outputs_by_forward_groups");
}

void staged_sequence(const Layer& layer, const Tensor& weights, const Saved& saved, Tensor& y,
                     Workspace& work, Tensor& stat, Tensor& events) {
  LutStagedArgs a = staged_args(layer, weights, saved);
  const int64_t pairs = saved.batch * layer.num_tables() * saved.length * (saved.length - 1) / 2;
  stat = work.buffer({saved.batch * saved.length, layer.num_tables(), layer.cells()}, Dtype::i32);
  events = work.buffer({pairs, 16}, Dtype::u8);
  a.firing_stat = stat.data_as<int32_t>();
  a.events = static_cast<LutEvent*>(events.data());
  a.y = y.data_as<float>();
  run_stage(work, 0, a, LutStage::fill_after_detectors_firing_stat, "fill_after_detectors_firing_stat");
  run_stage(work, 0, a, LutStage::densify_firing_stat, "densify_firing_stat");
  run_stage(work, 0, a, LutStage::fill_outputs_by_sparse_firings, "fill_outputs_by_sparse_firings");
}

void sequence_forward(const Layer& layer, const Tensor& weights, const Saved& saved, Tensor& y,
                      Workspace& work) {
  if (layer.is_product()) {
    LutProductArgs args = product_args(layer, weights, saved);
    args.y = y.data_as<float>();
    work.run(0, "fill_outputs_by_product", &Kernels::lut_product_forward, "lut_product_forward", args);
    return;
  }
  const LutSequenceForwardArgs args{.table = layer.table(weights.data_as<float>()),
                                    .sequence = sequence_of(layer, saved),
                                    .y = y.data_as<float>(),
                                    .numerics = layer.numerics()};
  work.run(0, "fill_outputs_for_sequence", &Kernels::lut_fill_outputs_for_sequence,
           "lut_fill_outputs_for_sequence", args);
}

}  // namespace

Forward forward(const Layer& layer, const Tensor& weights, const Tensor& x, const Tensor& pe, bool training,
                Workspace& work, bool staged, const Forward& into) {
  check_weights(layer, weights, "lut forward");
  check_pe(layer, pe, "lut forward");
  check_x(layer, x);
  TRIVIUM_CHECK(work.device() == layer.device(), "lut forward: the workspace is on ", work.device(),
                ", the layer on ", layer.device());
  TRIVIUM_CHECK(!staged || (layer.options().int_rescaler == 0 && !layer.is_product()),
                "lut forward: the staged path has float mode and no product modes");
  Forward f;
  if (training && !layer.is_product()) f.saved = into.saved;
  f.saved.batch = x.dim(0);
  f.saved.length = layer.is_sequence() ? x.dim(1) : 1;
  f.saved.num_anchors = layer.num_anchors();
  f.saved.positional_dim = layer.options().positional_dim;
  f.saved.unchanged = true;
  const int64_t rows = f.saved.batch * f.saved.length, outputs = layer.options().outputs;
  f.y = room_for(
      into.y,
      layer.is_sequence() ? Shape{f.saved.batch, f.saved.length, outputs} : Shape{f.saved.batch, outputs},
      Dtype::f32, "lut forward: y", work);
  Tensor stat, events;
  if (layer.is_product()) {
    f.saved.x = x;
    f.saved.pe = pe;
  } else {
    make_room(layer,
              layer.is_sequence() ? Shape{f.saved.batch, f.saved.length, layer.num_tables()}
                                  : Shape{rows, layer.num_tables()},
              f.saved.length - 1, training, f.saved, work);
  }
  const Operation operation(work);
  if (!layer.is_product()) {
    detect(layer, x, f.saved, work);
    detect_pe(layer, pe, f.saved, work);
  }
  if (!layer.is_sequence() && staged)
    staged_rows(layer, weights, f.saved, f.y, work, events);
  else if (!layer.is_sequence())
    fill_outputs(layer, weights, f.saved.index, rows, f.y, work);
  else if (staged)
    staged_sequence(layer, weights, f.saved, f.y, work, stat, events);
  else
    sequence_forward(layer, weights, f.saved, f.y, work);
  return f;
}

Tensor fill_outputs(const Layer& layer, const Tensor& weights, const Tensor& index, Workspace& work) {
  check_weights(layer, weights, "lut fill_outputs");
  TRIVIUM_CHECK(!layer.is_sequence(), "lut fill_outputs: the layer's mode is ", name_of(layer.options().mode),
                ", expected rows");
  check_tensor(index, Dtype::i32, layer.device(), "lut fill_outputs: index");
  TRIVIUM_CHECK(index.rank() == 2 && index.dim(1) == layer.num_tables(), "lut fill_outputs: index is ",
                index.shape(), ", expected [batch, ", layer.num_tables(), "]");
  const Tensor host = index.to(Device{});
  const std::span<const int32_t> cells(host.data_as<int32_t>(), static_cast<size_t>(host.numel()));
  int32_t least = 0, largest = 0;
  for (const int32_t cell : cells) least = std::min(least, cell), largest = std::max(largest, cell);
  TRIVIUM_CHECK(least >= 0 && largest < layer.cells(), "lut fill_outputs: index holds ",
                least < 0 ? least : largest, ", expected 0 to ", layer.cells() - 1);
  Tensor y = work.buffer({index.dim(0), layer.options().outputs}, Dtype::f32);
  const Operation operation(work);
  fill_outputs(layer, weights, index, index.dim(0), y, work);
  return y;
}

DecodeCache make_cache(const Layer& layer, int64_t slots, int64_t max_step_rows) {
  TRIVIUM_CHECK(layer.options().mode == Mode::sequence, "lut make_cache: the layer's mode is ",
                name_of(layer.options().mode), ", expected sequence");
  TRIVIUM_CHECK(slots > 0 && max_step_rows > 0, "lut make_cache: slots is ", slots, " and max_step_rows ",
                max_step_rows, ", expected at least 1");
  // Rows of one step enter the ring before any of them is read: what the first still sees must survive.
  const int64_t ring = layer.options().sequence_length - 1 + max_step_rows;
  return {Tensor::zeros({slots, ring, layer.num_tables()}, Dtype::i32, layer.device()), ring,
          layer.num_anchors()};
}

Tensor decode(const Layer& layer, const Tensor& weights, const Tensor& x, const Tensor& pe,
              const Tensor& slots, const Tensor& positions, DecodeCache& cache, Workspace& work) {
  check_weights(layer, weights, "lut decode");
  check_pe(layer, pe, "lut decode");
  check_tensor(x, Dtype::f32, layer.device(), "lut decode: x");
  const int64_t inputs = layer.options().inputs, window = layer.options().sequence_length - 1;
  TRIVIUM_CHECK(layer.options().mode == Mode::sequence && x.rank() == 2 && x.dim(1) == inputs,
                "lut decode: x is ", x.shape(), ", expected [rows, ", inputs,
                "] of a layer in mode sequence");
  const int64_t rows = x.dim(0);
  TRIVIUM_CHECK(cache.index.rank() == 3 && cache.index.dim(2) == layer.num_tables() && cache.ring > window &&
                    cache.num_anchors == layer.num_anchors() && cache.index.device() == layer.device(),
                "lut decode: the cache is of a layer with other tables, anchors or a shorter sequence");
  for (const Tensor* t : {&slots, &positions}) {
    check_tensor(*t, Dtype::i32, Device{}, t == &slots ? "lut decode: slots" : "lut decode: positions");
    TRIVIUM_CHECK(t->rank() == 1 && t->dim(0) == rows, "lut decode: ", t == &slots ? "slots" : "positions",
                  " is ", t->shape(), ", expected [", rows, "]");
  }
  std::vector<int64_t> rows_of(static_cast<size_t>(cache.index.dim(0)));
  for (int64_t r = 0; r < rows; ++r) {
    TRIVIUM_CHECK(0 <= slots.data_as<int32_t>()[r] && slots.data_as<int32_t>()[r] < cache.index.dim(0),
                  "lut decode: slots[", r, "] is ", slots.data_as<int32_t>()[r], ", expected 0 to ",
                  cache.index.dim(0) - 1);
    TRIVIUM_CHECK(positions.data_as<int32_t>()[r] >= 0, "lut decode: positions[", r, "] is ",
                  positions.data_as<int32_t>()[r], ", expected at least 0");
    ++rows_of[static_cast<size_t>(slots.data_as<int32_t>()[r])];
  }
  const int64_t most = rows_of.empty() ? 0 : *std::max_element(rows_of.begin(), rows_of.end());
  TRIVIUM_CHECK(most <= cache.ring - window, "lut decode: ", most,
                " rows of one slot in a step, the cache was made for ", cache.ring - window);
  const Tensor device_slots = work.put(slots), device_positions = work.put(positions);
  Tensor y = work.buffer({rows, layer.options().outputs}, Dtype::f32);
  Saved saved;
  make_room(layer, {rows, layer.num_tables()}, window, false, saved, work);
  const Operation operation(work);
  detect(layer, x, saved, work);
  detect_pe(layer, pe, saved, work);
  const LutDecodeArgs args{.table = layer.table(weights.data_as<float>()),
                           .index = saved.index.data_as<int32_t>(),
                           .slots = device_slots.data_as<int32_t>(),
                           .positions = device_positions.data_as<int32_t>(),
                           .pe_index = saved.pe_index.numel() ? saved.pe_index.data_as<int32_t>() : nullptr,
                           .cache = cache.index.data_as<int32_t>(),
                           .y = y.data_as<float>(),
                           .rows = rows,
                           .ring = cache.ring,
                           .window = window,
                           .numerics = layer.numerics(),
                           .num_anchors = static_cast<int32_t>(layer.num_anchors()),
                           .num_pe = static_cast<int32_t>(layer.options().positional_dim),
                           .accumulate = 0};
  work.run(0, "decode", &Kernels::lut_decode, "lut_decode", args);
  return y;
}

}  // namespace trivium::lut
