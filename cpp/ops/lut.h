// LUT layers (Izhikevich, Spiking Manifesto, arXiv 2512.11843): Nt tables, each addressed by comparisons of
// inputs, whose addressed rows are added up; trained through a surrogate gradient of the address.
//
// All results are float32 and deterministic. In float mode they have the same bits on every backend as long
// as the device divides exactly; with int_rescaler > 0 sums are whole quanta 1 / ((2^20 - 1) int_rescaler)
// and equal everywhere. Sums of y, gx and gpe are 64 bits wide; one of a weight gradient that would leave
// +-(2^31 - 1) quanta stays at that end.
//
// Calls on a GPU return before their work is done: results are queued on the device's default stream, where
// ops, Tensor::to and DLPack find them. The host waits in four places: to count the rows of a row-sparse
// gradient, to check the indices given to fill_outputs, or those of a Saved that is not `unchanged`, and to
// copy the slots and positions of decode.
#pragma once

#include <memory>

#include "core/tensor.h"
#include "ops/lut_args.h"
#include "ops/lut_streams.h"

namespace trivium::lut {

enum class Mode {
  rows,      // x [B, I] -> y [B, O], C = 2^Nc
  sequence,  // x [B, S, I] -> y [B, S, O]: causal pairs, C = 2^(2 Nc + Npe)
  product,   // the same with detectors across (x_i, x_j, pe), C = 2^Nc
  sliced     // product with the coordinates interleaved; inputs == positional_dim
};
const char* name_of(Mode mode);
Mode parse_mode(std::string_view text);

struct LayerOptions {
  int64_t inputs = 0, outputs = 0;
  Mode mode = Mode::rows;
  Tensor anchors;               // i32 [Nt, Nc, 2] on the CPU; a negative entry: unused pair
  int64_t sequence_length = 1;  // longest sequence
  int64_t positional_dim = 0;   // Npe
  bool unified_pe = false;
  float cmp_eps = 0;
  float learning_rate = 1;  // factor of weight gradients, in [0, 1]
  double int_rescaler = 0;  // > 0: fixed point
  int64_t group_size = 32;  // tables of one fixed-point contribution; synapses of a forward group
  // Sparse: i64 [Nt + 1] or [Nt * C + 1] and i32 on the CPU; undefined: connected fully.
  Tensor pointers, targets;
  Tensor rates;  // f32, the learning rate of each weight; undefined: all learning_rate
};

// An immutable structure; the weights are the caller's.
class Layer {
 public:
  Layer(LayerOptions options, Device device);

  const LayerOptions& options() const { return options_; }
  Device device() const { return device_; }
  int64_t num_tables() const { return anchors_.dim(0); }
  int64_t num_anchors() const { return anchors_.dim(1); }
  int64_t cells() const { return cells_; }
  bool is_sequence() const { return options_.mode != Mode::rows; }
  bool is_product() const { return options_.mode == Mode::product || options_.mode == Mode::sliced; }
  Shape weight_shape() const;  // [Nt, C, O], sparse [synapses]
  Shape pe_shape() const;      // [S - 1, Nt, Npe], unified [S - 1, Npe]
  const Tensor& anchors() const { return anchors_; }
  const Tensor& rates() const { return rates_; }
  LutTable table(const float* weights) const;
  LutNumerics numerics() const { return {options_.int_rescaler, options_.group_size}; }
  int64_t longest_row() const { return longest_row_; }
  bool has_unused_pairs() const { return unused_pairs_; }

 private:
  void check_sizes() const;
  void check_anchors();
  void check_targets();
  void share_targets();  // stores lists once that are the same for all rows of a table
  void list_reach();

  LayerOptions options_;
  Device device_;
  int64_t cells_ = 0, synapses_ = 0, longest_row_ = 0;
  bool unused_pairs_ = false;
  LutForm form_ = LutForm::fully_connected;
  Tensor anchors_, pointers_, targets_, rates_;  // on the device, like:
  Tensor reach_starts_, reach_;                  // i64 [O + 1], i32 [sources, 2]
};

// What a backward needs of its forward.
struct Saved {
  Tensor index, min_delta, min_index;           // [B, (S,) Nt]
  Tensor pe_index, pe_min_delta, pe_min_index;  // [S - 1, Nt]
  Tensor x, pe;                                 // product mode recomputes its addresses
  int64_t batch = 0, length = 1;
  int64_t num_anchors = 0, positional_dim = 0;  // of the layer whose addresses these are; 0: not known
  bool unchanged = false;                       // as forward gave it; clear it when you change a value
};

struct Forward {
  Tensor y;
  Saved saved;  // without deltas in evaluation
};

// W is the caller's weight tensor. `pe` is undefined when Npe is 0. Staged: every buffer of the data flow is
// written out (float mode, small sizes). Tensors that `into` has are written, and returned, instead of new
// ones; those of its `saved` in training.
Forward forward(const Layer& layer, const Tensor& weights, const Tensor& x, const Tensor& pe, bool training,
                Workspace& work, bool staged = false, const Forward& into = {});
// The outputs for given indices: rows mode only.
Tensor fill_outputs(const Layer& layer, const Tensor& weights, const Tensor& index, Workspace& work);

enum class WeightPolicy { none, dense, rows, internal };
struct BackwardOptions {
  WeightPolicy policy = WeightPolicy::dense;
  bool normalized = false;  // gradients /= max(max |gradient|, 1e-16)
  float eta = 0;            // internal: W -= eta * gradient, after the gradient of x was taken with the old W
  bool need_x = true;
  Tensor gw = {};  // dense: where to write it, or undefined; gx and gpe alike
  Tensor gx = {}, gpe = {};
};
struct Gradients {
  Tensor gx, gpe;
  Tensor gw;    // dense: like the weights; rows: the rows' weights, one after another
  Tensor rows;  // rows: i64 [count], t * C + c, ascending; on the CPU
};
Gradients backward(const Layer& layer, const Tensor& weights, const Tensor& gy, const Saved& saved,
                   const BackwardOptions& options, Workspace& work, bool staged = false);

// Indices of the last positions of sequences, for one new position at a time.
struct DecodeCache {
  Tensor index;  // i32 [slots, ring, Nt]
  int64_t ring = 0;
  int64_t num_anchors = 0;  // of the layer
};
DecodeCache make_cache(const Layer& layer, int64_t slots, int64_t max_step_rows = 1);
// Row r of x [rows, I] is position positions[r] of slot slots[r] (i32, on the CPU); rows of a slot come in
// order of position. It attends to the S - 1 positions before it.
Tensor decode(const Layer& layer, const Tensor& weights, const Tensor& x, const Tensor& pe,
              const Tensor& slots, const Tensor& positions, DecodeCache& cache, Workspace& work);

}  // namespace trivium::lut
