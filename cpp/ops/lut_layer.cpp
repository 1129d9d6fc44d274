// The structure of a LUT layer: every limit a kernel trusts is checked here, once.
#include <cmath>

#include "core/log.h"
#include "ops/lut.h"
#include "ops/lut_items.h"

namespace trivium::lut {

namespace {

constexpr int64_t kMaxAddressBits = 30;

bool is_host(const Tensor& t, Dtype dtype) {
  return t.dtype() == dtype && t.device() == Device{} && t.is_contiguous();
}

// A smaller rate would round every gradient of magnitude 1 to zero.
void check_quantum(const LayerOptions& o, const char* name, float rate) {
  TRIVIUM_CHECK(o.int_rescaler == 0 || rate == 0 || rate * kFixedUnit * o.int_rescaler >= 1,
                "lut layer: ", name, " ", rate, " is below one quantum (", 1 / (kFixedUnit * o.int_rescaler),
                ") of fixed-point mode");
}

}  // namespace

const char* name_of(Mode mode) {
  switch (mode) {
    case Mode::rows:
      return "rows";
    case Mode::sequence:
      return "sequence";
    case Mode::product:
      return "product";
    case Mode::sliced:
      return "sliced";
  }
  return "?";
}

Mode parse_mode(std::string_view text) {
  for (const Mode mode : {Mode::rows, Mode::sequence, Mode::product, Mode::sliced})
    if (text == name_of(mode)) return mode;
  throw InvalidArgument(
      concat("lut layer: mode is \"", printable(text), "\", expected rows, sequence, product or sliced"));
}

Layer::Layer(LayerOptions options, Device device) : options_(std::move(options)), device_(device) {
  const Tensor& anchors = options_.anchors;
  TRIVIUM_CHECK(anchors.rank() == 3 && anchors.dim(2) == 2 && is_host(anchors, Dtype::i32),
                "lut layer: anchors are ", anchors.shape(), " ", anchors.dtype(), " on ", anchors.device(),
                ", expected contiguous int32 [tables, pairs, 2] on cpu");
  check_sizes();
  const int64_t pairs = anchors.dim(1);
  cells_ = int64_t{1} << (options_.mode == Mode::sequence ? 2 * pairs + options_.positional_dim : pairs);
  TRIVIUM_CHECK(anchors.dim(0) < ((int64_t{1} << 32) / cells_), "lut layer: ", anchors.dim(0), " tables of ",
                cells_, " cells, expected fewer than 2^32 cells in all");
  check_anchors();
  check_targets();
  TRIVIUM_CHECK(!options_.rates.numel() ||
                    (options_.rates.numel() == weight_shape().numel() && is_host(options_.rates, Dtype::f32)),
                "lut layer: rates are ", options_.rates.shape(), " ", options_.rates.dtype(),
                ", expected contiguous float32 of ", weight_shape().numel(), " elements on cpu");
  float least = 1;
  for (int64_t i = 0; i < options_.rates.numel(); ++i) {
    const float rate = options_.rates.data_as<float>()[i];
    TRIVIUM_CHECK(rate >= 0 && rate <= 1, "lut layer: rates[", i, "] is ", rate, ", expected 0 to 1");
    if (rate > 0) least = std::min(least, rate);
  }
  if (options_.rates.numel()) check_quantum(options_, "the smallest of rates", least);
  anchors_ = anchors.to(device);
  if (options_.rates.numel()) rates_ = options_.rates.to(device);
}

void Layer::check_sizes() const {
  const LayerOptions& o = options_;
  const int64_t tables = o.anchors.dim(0), pairs = o.anchors.dim(1), npe = o.positional_dim;
  TRIVIUM_CHECK(o.inputs > 0, "lut layer: inputs is ", o.inputs, ", expected at least 1");
  TRIVIUM_CHECK(o.outputs > 0, "lut layer: outputs is ", o.outputs, ", expected at least 1");
  TRIVIUM_CHECK(o.inputs < (1 << 28) && o.outputs < (1 << 30), "lut layer: inputs is ", o.inputs,
                " and outputs ", o.outputs, ", expected fewer than 2^28 and 2^30");
  TRIVIUM_CHECK(tables > 0 && pairs > 0, "lut layer: anchors are ", o.anchors.shape(),
                ", expected at least one table and one pair");
  TRIVIUM_CHECK(o.sequence_length > 0, "lut layer: sequence_length is ", o.sequence_length,
                ", expected at least 1");
  TRIVIUM_CHECK(npe >= 0, "lut layer: positional_dim is ", npe, ", expected at least 0");
  const int64_t bits = o.mode == Mode::sequence ? 2 * pairs + npe : pairs;
  TRIVIUM_CHECK(bits <= kMaxAddressBits, "lut layer: ", pairs, " pairs and positional_dim ", npe,
                " make addresses of ", bits, " bits, expected at most ", kMaxAddressBits);
  if (o.mode == Mode::rows)
    TRIVIUM_CHECK(o.sequence_length == 1 && npe == 0, "lut layer: sequence_length is ", o.sequence_length,
                  " and positional_dim ", npe, ", expected 1 and 0 in mode rows");
  if (o.mode == Mode::product || o.mode == Mode::sliced)
    TRIVIUM_CHECK(o.sequence_length > 1, "lut layer: sequence_length is 1, expected at least 2 in mode ",
                  name_of(o.mode));
  if (o.mode == Mode::sliced)
    TRIVIUM_CHECK(npe == o.inputs, "lut layer: positional_dim is ", npe, ", expected inputs (", o.inputs,
                  ") in mode sliced");
  TRIVIUM_CHECK(!o.unified_pe || npe > 0, "lut layer: unified_pe with positional_dim 0");
  TRIVIUM_CHECK(o.cmp_eps >= 0 && std::isfinite(o.cmp_eps), "lut layer: cmp_eps is ", o.cmp_eps,
                ", expected a number of at least 0");
  TRIVIUM_CHECK(o.learning_rate >= 0 && o.learning_rate <= 1, "lut layer: learning_rate is ", o.learning_rate,
                ", expected 0 to 1");
  TRIVIUM_CHECK(o.int_rescaler >= 0 && std::isfinite(o.int_rescaler), "lut layer: int_rescaler is ",
                o.int_rescaler, ", expected a number of at least 0 (0: float mode)");
  TRIVIUM_CHECK(o.group_size > 0, "lut layer: group_size is ", o.group_size, ", expected at least 1");
  check_quantum(o, "learning_rate", o.learning_rate);
}

void Layer::check_anchors() {
  const Tensor& anchors = options_.anchors;
  const bool product = options_.mode == Mode::product || options_.mode == Mode::sliced;
  const int64_t limit = product ? 2 * options_.inputs + options_.positional_dim : options_.inputs;
  const int32_t* a = anchors.data_as<int32_t>();
  int64_t equal = 0;
  for (int64_t i = 0; i < anchors.numel(); i += 2) {
    for (int64_t k = i; k < i + 2; ++k)
      TRIVIUM_CHECK(a[k] < limit, "lut layer: anchors hold ", a[k], " in table ", i / (2 * anchors.dim(1)),
                    ", expected less than ", limit);
    equal += a[i] >= 0 && a[i] == a[i + 1];
    unused_pairs_ |= a[i] < 0 || a[i + 1] < 0;
  }
  if (equal)
    log(LogLevel::warning,
        concat("lut layer: ", equal, " anchor pairs compare an input with itself: their bit is always 0"));
}

void Layer::check_targets() {
  const LayerOptions& o = options_;
  const int64_t tables = o.anchors.dim(0);
  synapses_ = tables * cells_;
  longest_row_ = o.outputs;
  if (!o.pointers.numel() && !o.targets.numel()) {
    TRIVIUM_CHECK(!__builtin_mul_overflow(synapses_, o.outputs, &synapses_),
                  "lut layer: more than 2^63 weights");
    return;
  }
  TRIVIUM_CHECK(o.pointers.rank() == 1 && is_host(o.pointers, Dtype::i64) &&
                    (o.pointers.dim(0) == tables + 1 || o.pointers.dim(0) == tables * cells_ + 1),
                "lut layer: pointers are ", o.pointers.shape(), " ", o.pointers.dtype(),
                ", expected contiguous int64 [", tables + 1, "] or [", tables * cells_ + 1, "] on cpu");
  TRIVIUM_CHECK(o.targets.rank() == 1 && is_host(o.targets, Dtype::i32), "lut layer: targets are ",
                o.targets.shape(), " ", o.targets.dtype(), ", expected contiguous int32 [synapses] on cpu");
  form_ = o.pointers.dim(0) == tables + 1 ? LutForm::shared : LutForm::general;
  const int64_t* p = o.pointers.data_as<int64_t>();
  const int32_t* targets = o.targets.data_as<int32_t>();
  const int64_t rows = o.pointers.dim(0) - 1;
  TRIVIUM_CHECK(p[0] == 0 && p[rows] == o.targets.dim(0), "lut layer: pointers run from ", p[0], " to ",
                p[rows], ", expected 0 to ", o.targets.dim(0));
  longest_row_ = 0;
  for (int64_t r = 0; r < rows; ++r) {
    TRIVIUM_CHECK(p[r] <= p[r + 1] && p[r + 1] <= o.targets.dim(0), "lut layer: pointers[", r + 1, "] is ",
                  p[r + 1], " after ", p[r], ", expected them to ascend to ", o.targets.dim(0));
    longest_row_ = std::max(longest_row_, p[r + 1] - p[r]);
    for (int64_t k = p[r]; k < p[r + 1]; ++k) {
      TRIVIUM_CHECK(0 <= targets[k] && targets[k] < o.outputs, "lut layer: targets[", k, "] is ", targets[k],
                    ", expected 0 to ", o.outputs - 1);
      TRIVIUM_CHECK(k == p[r] || targets[k - 1] <= targets[k], "lut layer: targets[", k, "] is ", targets[k],
                    " after ", targets[k - 1], ", expected targets to ascend in a row");
    }
  }
  synapses_ = form_ == LutForm::shared ? o.targets.dim(0) * cells_ : o.targets.dim(0);
  pointers_ = o.pointers, targets_ = o.targets;
  if (form_ == LutForm::general) share_targets();
  list_reach();
  pointers_ = pointers_.to(device_);
  targets_ = targets_.to(device_);
}

// Weights lie in the same places either way.
void Layer::share_targets() {
  const int64_t tables = options_.anchors.dim(0);
  const Tensor pointers = Tensor::empty({tables + 1}, Dtype::i64);
  int64_t *shared = pointers.data_as<int64_t>(), total = 0;
  const int64_t* p = pointers_.data_as<int64_t>();
  const int32_t* targets = targets_.data_as<int32_t>();
  for (int64_t t = 0; t < tables; ++t) {
    const int64_t *rows = p + t * cells_, count = rows[1] - rows[0];
    const int32_t* first = targets + rows[0];
    for (int64_t c = 1; c < cells_; ++c)
      if (rows[c + 1] - rows[c] != count || !std::equal(first, first + count, targets + rows[c])) return;
    shared[t] = total;
    total += count;
  }
  shared[tables] = total;
  const Tensor lists = Tensor::empty({total}, Dtype::i32);
  for (int64_t t = 0; t < tables; ++t)
    std::copy_n(targets + p[t * cells_], shared[t + 1] - shared[t], lists.data_as<int32_t>() + shared[t]);
  form_ = LutForm::shared, pointers_ = pointers, targets_ = lists;
}

// A device computes output by output; the CPU scatters rows and needs no lists.
void Layer::list_reach() {
  if (device_.kind == DeviceKind::cpu) return;
  const int64_t outputs = options_.outputs, tables = options_.anchors.dim(0);
  const int64_t rows = form_ == LutForm::shared ? 1 : cells_;  // a table's lists
  const int64_t* p = pointers_.data_as<int64_t>();
  const int32_t* targets = targets_.data_as<int32_t>();
  std::vector<int64_t> last(static_cast<size_t>(outputs));
  const auto visit = [&](const auto& fn) {  // fn(output, t, place), once for each table that reaches it
    std::fill(last.begin(), last.end(), -1);
    for (int64_t t = 0; t < tables; ++t)
      for (int64_t k = p[t * rows]; k < p[(t + 1) * rows]; ++k) {
        const auto o = static_cast<size_t>(targets[k]);
        if (last[o] != t) fn(o, t, k - p[t * rows]);
        last[o] = t;
      }
  };
  std::vector<int64_t> starts(static_cast<size_t>(outputs) + 1);
  visit([&](size_t o, int64_t, int64_t) { ++starts[o + 1]; });
  for (size_t o = 0; o < static_cast<size_t>(outputs); ++o) starts[o + 1] += starts[o];
  const Tensor begin = Tensor::empty({outputs + 1}, Dtype::i64);
  std::copy(starts.begin(), starts.end(), begin.data_as<int64_t>());
  const Tensor reach = Tensor::empty({starts.back(), 2}, Dtype::i32);
  auto* list = reinterpret_cast<LutReach*>(reach.data_as<int32_t>());
  visit([&](size_t o, int64_t t, int64_t place) {
    list[starts[o]++] = {static_cast<int32_t>(t),
                         form_ == LutForm::shared ? static_cast<int32_t>(place) : -1};
  });
  reach_starts_ = begin.to(device_);
  reach_ = reach.to(device_);
}

Shape Layer::weight_shape() const {
  if (form_ == LutForm::fully_connected) return {options_.anchors.dim(0), cells_, options_.outputs};
  return {synapses_};
}

Shape Layer::pe_shape() const {
  const int64_t distances = options_.sequence_length - 1;
  if (options_.unified_pe) return {distances, options_.positional_dim};
  return {distances, num_tables(), options_.positional_dim};
}

LutTable Layer::table(const float* weights) const {
  return {.weights = weights,
          .pointers = form_ == LutForm::fully_connected ? nullptr : pointers_.data_as<int64_t>(),
          .targets = form_ == LutForm::fully_connected ? nullptr : targets_.data_as<int32_t>(),
          .num_tables = num_tables(),
          .cells = cells_,
          .outputs = options_.outputs,
          .form = form_,
          .longest = longest_row_,
          .reach_starts = reach_starts_.numel() ? reach_starts_.data_as<int64_t>() : nullptr,
          .reach =
              reach_starts_.numel() ? reinterpret_cast<const LutReach*>(reach_.data_as<int32_t>()) : nullptr};
}

}  // namespace trivium::lut
