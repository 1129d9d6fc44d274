// Argument blocks of the LUT kernels. A layer is Nt tables of C rows; a detector addresses a row by Nc
// comparisons of two inputs (Izhikevich, Spiking Manifesto, arXiv 2512.11843). Included by core/backend.h.
#pragma once

#include <cstdint>

namespace trivium {

// Rows of all tables and what they are connected to. Fully connected: row (t, c) has one weight for each
// output. Shared: all rows of table t reach targets[pointers[t] .. pointers[t + 1]). General: row t * C + c
// reaches targets[pointers[row] .. pointers[row + 1]). Targets ascend in a row and may repeat.
enum class LutForm : int32_t { fully_connected = 0, shared = 1, general = 2 };

// A table that has output o among its targets, and the first of its synapses there, counted within a row; -1
// in the general form, where rows differ.
struct LutReach {
  int32_t table, place;
};

struct LutTable {
  const float* weights;     // [Nt, C, O], or one value a synapse in the order above
  const int64_t* pointers;  // [Nt + 1], [Nt * C + 1] or null
  const int32_t* targets;   // null when fully connected
  int64_t num_tables, cells, outputs;
  LutForm form;
  int64_t longest;              // synapses of the longest row
  const int64_t* reach_starts;  // [O + 1]; sparse tables of devices have it, else null, like:
  const LutReach* reach;        // those of output o: reach[reach_starts[o] .. reach_starts[o + 1]), ascending
};

// Sums of float32, or of whole quanta 1 / ((2^20 - 1) rescale) when rescale > 0: exact in any order.
struct LutNumerics {
  double rescale;         // 0: float mode
  int64_t forward_block;  // fixed point: tables whose float64 sum is one contribution of a fully connected y
};

struct LutDetectArgs {     // check_detectors: bit r of index = x[a_r] - x[b_r] > 0
  const float* x;          // [rows, inputs]
  const int32_t* anchors;  // [Nt, Nc, 2]; a negative entry: unused pair
  int32_t* index;          // [rows, Nt]
  float* min_delta;        // [rows, Nt] the difference of smallest magnitude; null in evaluation, like:
  int32_t* min_index;      // [rows, Nt] its pair, -1 when there is none
  int64_t rows, inputs, num_tables, num_anchors;
  float cmp_eps;  // > 0: a bit also needs |difference| >= cmp_eps
};

struct LutDetectPeArgs {  // check_positional_embeddings: the coordinates themselves are compared with 0
  const float* pe;        // [distances, Nt, Npe], unified: [distances, Npe]
  int32_t* index;         // [distances, Nt]
  float* min_delta;       // [distances, Nt] or null
  int32_t* min_index;
  int64_t distances, num_tables, num_pe;
  float cmp_eps;
  int32_t unified;
};

struct LutForwardArgs {  // y[b] = sum_t W[t, index[b, t]]: fill_outputs_fully_connected and its sparse form
  LutTable table;
  const int32_t* index;  // [rows, Nt]
  float* y;              // [rows, O]
  int64_t rows;
  LutNumerics numerics;
  int32_t accumulate;  // y += the sum
};

// gather_x_gradients: delta[b, t] = s(u) gy[b] . (W[t, main] - W[t, alternative]).
struct LutXGradientArgs {
  LutTable table;
  const float* gy;           // [rows, O]
  const int32_t* index;      // [rows, Nt]
  const float* min_delta;    // [rows, Nt]
  const int32_t* min_index;  // [rows, Nt]
  void* delta;               // [rows, Nt] float, int64 quanta in fixed point
  int64_t rows;
  LutNumerics numerics;
};

struct LutPropagateArgs {  // propagate_through_detectors: gx[b, a] += delta, gx[b, b'] -= delta, t ascending
  const int32_t* anchors;  // [Nt, Nc, 2]
  const int32_t* min_index;  // [rows, Nt]
  const void* delta;         // [rows, Nt] float or int64
  float* gx;                 // [rows, inputs]
  int64_t* sums;             // [rows, inputs] in fixed point, else null
  int64_t rows, inputs, num_tables, num_anchors;
  LutNumerics numerics;
};

// Sets of rows: bit c % 32 of word t * words + c / 32 stands for row (t, c).
inline constexpr int64_t lut_mark_words(int64_t cells) { return (cells + 31) / 32; }

// The rows that a packed gradient holds, one after another in the order of the table.
struct LutRowPlaces {
  const uint32_t* marks;  // [Nt, words] the rows; null: all of them
  const int64_t* ranks;   // [Nt, words] marked rows before those of the word
  const int64_t* starts;  // [marked rows] where a row begins; null: all have O elements
};

// Where weight gradients go: out[row] = sum of contributions (every element is written), or only the rows
// that have one, packed; or W -= eta * contribution when `sgd`.
struct LutWeightTarget {
  float* out;
  LutRowPlaces places;
  const float* rates;  // learning rate of each weight, or null
  float rate;          // learning rate of all
  float eta;           // with sgd: step size
  int32_t sgd;
};

struct LutWGradientArgs {  // gather_w_gradients: gW[t, index[b, t]] += rate gy[b], b ascending
  LutTable table;
  const float* gy;       // [rows, O]
  const int32_t* index;  // [rows, Nt]
  LutWeightTarget target;
  int64_t rows;
  LutNumerics numerics;
};

// The detectors of sequences. Pair i < j of table t addresses
// cell = index[j] << (Nc + Npe) | index[i] << Npe | pe_index[j - i - 1].
struct LutSequence {
  const int32_t* index;         // [batch, length, Nt]
  const float* min_delta;       // [batch, length, Nt], null in evaluation
  const int32_t* min_index;     // the same
  const int32_t* pe_index;      // [distances, Nt], null when num_pe is 0
  const float* pe_min_delta;    // [distances, Nt], null in evaluation
  const int32_t* pe_min_index;  // the same
  int64_t batch, length;
  int32_t num_anchors, num_pe;
};

struct LutSequenceForwardArgs {  // y[b, j] = sum_t sum_{i < j} W[t, cell(b, i, j, t)]
  LutTable table;
  LutSequence sequence;
  float* y;  // [batch, length, O]
  LutNumerics numerics;
};

// gather_x_gradients of sequences: delta[b, s, t] sums s(u) g . (W[main] - W[alternative]) over the pairs
// whose flip is position s's, pe_delta[b, d - 1, t] over those where the embedding of distance d flips.
struct LutSequenceXGradientArgs {
  LutTable table;
  LutSequence sequence;
  const float* gy;  // [batch, length, O]
  void* delta;      // [batch, length, Nt] float or int64
  void* pe_delta;   // [batch, length - 1, Nt] float or int64; null when num_pe is 0
  LutNumerics numerics;
};

struct LutPeGradientArgs {      // gpe[d, t, min_index] = sum_b pe_delta[b, d, t]
  const void* pe_delta;         // [batch, distances, Nt] float or int64
  const int32_t* pe_min_index;  // [distances, Nt]
  float* gpe;                   // [rows, Nt, Npe], unified [rows, Npe]; rows from `distances` on are zeroed
  int64_t batch, distances, rows, num_tables, num_pe;
  LutNumerics numerics;
  int32_t unified;
};

struct LutSequenceWGradientArgs {  // gW[t, cell(b, i, j, t)] += rate gy[b, j], (b, j, i) ascending
  LutTable table;
  LutSequence sequence;
  const float* gy;  // [batch, length, O]
  LutWeightTarget target;
  LutNumerics numerics;
};

// One new position at a time, or a few: row r is position positions[r] of slot slots[r], attends to the
// last `window` positions before it, and its index joins the ring of its slot.
struct LutDecodeArgs {
  LutTable table;
  const int32_t* index;      // [rows, Nt]
  const int32_t* slots;      // [rows]
  const int32_t* positions;  // [rows]
  const int32_t* pe_index;   // [window, Nt] or null
  int32_t* cache;            // [slots, ring, Nt] indices of positions modulo ring
  float* y;                  // [rows, O]
  int64_t rows, ring, window;
  LutNumerics numerics;
  int32_t num_anchors, num_pe;
  int32_t accumulate;  // y += the sum
};

// Product mode: the detector of pair i < j looks at (x[i], x[j], pe[j - i - 1, t]), concatenated or, sliced,
// interleaved coordinate by coordinate; C = 2^Nc.
struct LutProduct {
  const float* x;          // [batch, length, inputs]
  const int32_t* anchors;  // [Nt, Nc, 2] over 2 inputs + Npe coordinates
  const float* pe;         // [distances, Nt, Npe], unified: [distances, Npe]
  int64_t batch, length, inputs, num_tables, num_anchors, num_pe;
  float cmp_eps;
  int32_t sliced, unified;
};

struct LutProductArgs {
  LutTable table;
  LutProduct product;
  float* y;         // forward: [batch, length, O]
  const float* gy;  // backward, like y
  float* gx;        // [batch, length, inputs]
  float* gpe;       // [pe_rows, Nt, Npe] or [pe_rows, Npe]
  int64_t pe_rows;  // rows of gpe; those from length - 1 on are zeroed
  int64_t* sums;    // as many as gx or gpe has elements, in fixed point; else null
  LutWeightTarget target;
  LutNumerics numerics;
};

struct LutMarkRowsArgs {  // the set of addressed rows
  uint32_t* marks;        // [Nt, words]
  int64_t num_tables, cells;
  int32_t kind;          // 0: rows of `index`; 1: pairs of `sequence`; 2: pairs of `product`
  const int32_t* index;  // [rows, Nt]
  int64_t rows;
  LutSequence sequence;
  LutProduct product;
};

// Indices that come back from a caller. A part of them looks at its share and notes where the first lies that
// is outside of its range; copies, where they are asked for, hold an index that exists in its place.
struct LutAdmitArgs {
  const int32_t* index;      // [rows, Nt], 0 up to 2^num_bits
  const int32_t* min_index;  // [rows, Nt], -1 up to num_bits, the number of a pair that is used
  const int32_t* anchors;    // [Nt, num_bits, 2], null where all pairs are used
  int32_t* kept_index;       // [rows, Nt] or null, like:
  int32_t* kept_min_index;
  int64_t* refused;  // [2][kLutAdmitParts] places in index, then in min_index; -1: none
  int64_t rows, num_tables, num_bits;
};
inline constexpr int64_t kLutAdmitParts = 1024;

struct LutNormalizeArgs {  // values /= max(max |values|, 1e-16)
  float* values;           // [count]
  float* scratch;          // [kLutNormalizeParts + 1]
  int64_t count;
};
inline constexpr int64_t kLutNormalizeParts = 1024;

// The staged data flow: buffers between stages are written out in full. A cross-check at small sizes; float
// mode only.
enum class LutStage : int32_t {
  fire_detectors = 0,                // index -> events [rows, Nt, groups]
  fire_detectors_by_lookup_indices,  // index, min_index -> events [rows, Nt, 2, groups]: main, alternative
  fill_outputs_by_forward_groups,    // events [rows, Nt, groups] -> y
  gather_gradients,                  // events [.., 2, ..] -> dots[rows, Nt, part], part 0 main, 1 alternative
  gather_w_gradients,                // main events -> target
  propagate_through_detectors,       // dots, min_delta, min_index -> delta [rows, Nt]
  fill_after_detectors_firing_stat,  // sequence -> firing_stat
  densify_firing_stat,               // firing_stat -> events, alternatives
  fill_outputs_by_sparse_firings,    // events -> y
  gather_gradients_for_sequence,     // events or alternatives (part 0, 1) -> dots [batch, length, Nt, C]
  gather_w_gradients_for_sequence,   // events -> target
  propagate_through_detectors_for_sequence,  // dots -> delta, pe_delta
};

struct LutEvent {    // a row that fires; payload 0: an empty place
  int32_t position;  // b, or b * length + j
  float payload;     // multiplicity
  int64_t group;     // row * groups + group number; row = t * C + c
};
static_assert(sizeof(LutEvent) == 16);

inline constexpr int32_t kLutAlternative = 1 << 30;  // of a firing statistic: some pair's alternative

struct LutStagedArgs {
  LutStage stage;
  LutTable table;
  int64_t group_size, groups;  // synapses a forward group holds; groups of the longest row
  const int32_t* index;        // [rows, Nt]
  const float* min_delta;
  const int32_t* min_index;
  int64_t rows;
  LutSequence sequence;
  int32_t* firing_stat;  // [batch, length, Nt, C]: pairs i < j, plus kLutAlternative
  LutEvent* events;  // sequences: j places for (b, j, t), in the order (b, j, t): batch * Nt * S (S-1) / 2
  LutEvent* alternatives;  // 2 j places for (b, j, t)
  float* dots;
  const float* gy;
  float* y;
  float* delta;
  float* pe_delta;
  LutWeightTarget target;
  int32_t part;
};

}  // namespace trivium
