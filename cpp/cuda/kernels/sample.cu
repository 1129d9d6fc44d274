// One token per row of logits: greedy, or a draw with temperature, top-k, top-p and min-p (ops/sampling.h).
//
// Every filter keeps a prefix of the candidates in rank order (descending logit, ascending id), so that each
// of them, and the draw itself, is one question: at which candidate does a running count or weight pass a
// target? It is answered without sorting the row, by histograms over ever smaller ranges of ranks until the
// candidates of one bin fit the block, a thread each. Weights are fixed-point integers: their sums are exact
// in any order, and a row's token depends on nothing else.
#include "core/random.h"
#include "cuda/block.cuh"
#include "cuda/gpu.cuh"
#include "cuda/kernels.h"
#include "cuda/rank.cuh"

namespace trivium::TRIVIUM_GPU_NS {
namespace {

constexpr int kMaxThreads = 1024;
constexpr float kNats = 32;  // of the first histogram: its bins cover weights down to e^-32 of the largest
constexpr float kZeroBelow = -104;  // exp of less is 0 in float32
constexpr int kNoBin = -1;

// Calls fn(logit, id) for all elements of a row, ascending in each thread; 16-byte loads, several under way.
template <class Fn>
GPU_DEVICE void for_each_logit(const float* z, int64_t vocab, Fn&& fn) {
  constexpr int kLoads = 4;
  const auto address = reinterpret_cast<uintptr_t>(z) / sizeof(float);
  const int64_t skew = static_cast<int64_t>((4 - address % 4) % 4), head = skew < vocab ? skew : vocab;
  const int64_t vectors = (vocab - head) / 4, threads = blockDim.x, thread = threadIdx.x;
  if (thread < head) fn(z[thread], thread);
  const float* body = z + head;
  int64_t i = thread;
  for (; i + (kLoads - 1) * threads < vectors; i += kLoads * threads) {
    Vec<float, 4> v[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) v[u] = load_vec<4>(body + 4 * (i + u * threads));
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
#pragma unroll
      for (int j = 0; j < 4; ++j) fn(v[u].x[j], head + 4 * (i + u * threads) + j);
  }
  for (; i < vectors; i += threads) {
    const auto v = load_vec<4>(body + 4 * i);
#pragma unroll
    for (int j = 0; j < 4; ++j) fn(v.x[j], head + 4 * i + j);
  }
  const int64_t tail = head + 4 * vectors + thread;
  if (tail < vocab) fn(z[tail], tail);
}

// The lowest key of the block's threads.
GPU_DEVICE uint64_t block_first(uint64_t key) {
  GPU_SHARED(uint64_t, parts, kMaxWarps);
  const auto lower = [](uint64_t a, uint64_t b) { return b < a ? b : a; };
  for (int m = 1; m < kWarpSize; m *= 2) key = lower(key, shfl_xor(key, m));
  sync_block();  // the previous call's parts have been read
  if (lane_id() == 0) parts[warp_id()] = key;
  sync_block();
  key = parts[0];
  for (int w = 1; w < num_warps(); ++w) key = lower(key, parts[w]);
  return key;
}

// The key of the first maximum; a NaN's when there is one.
GPU_DEVICE uint64_t first_maximum(const float* z, int64_t vocab) {
  float best = -INFINITY;
  int64_t at = vocab;
  bool nan = false;
  for_each_logit(z, vocab, [&](float logit, int64_t id) {
    nan |= logit != logit;
    if (logit > best || at == vocab) best = logit, at = id;
  });
  uint64_t key = ~uint64_t{0};  // of a thread without elements
  if (nan)
    key = kNanKey;
  else if (at < vocab)
    key = rank_key(best, static_cast<uint32_t>(at));
  return block_first(key);
}

// How many candidates, and their weight in units of the row.
struct Amount {
  uint64_t count, weight;
};
GPU_DEVICE Amount operator+(Amount a, Amount b) { return {a.count + b.count, a.weight + b.weight}; }
GPU_DEVICE Amount operator-(Amount a, Amount b) { return {a.count - b.count, a.weight - b.weight}; }

struct Row {
  const float* z;
  int64_t vocab;
  float maximum, inverse_temperature, min_p;
  float unit;    // weight of probability 1; sums over the vocabulary stay below 2^63
  bool counted;  // whether candidates of weight 0 matter

  GPU_DEVICE float exponent(float logit) const { return (logit - maximum) * inverse_temperature; }
  // What one candidate adds; nothing at all when min_p drops it. The largest has exactly one unit.
  GPU_DEVICE Amount amount(float x) const {
    float p = 0;
    if (x == 0)
      p = 1;
    else if (x > kZeroBelow)  // false for the NaN of -inf at infinite temperature
      p = exp(x);
    if (p < min_p) return {0, 0};
    const auto weight = static_cast<uint64_t>(p * unit);
    return {weight || counted, weight};
  }
};

// A monotone map from ranks to bins: the first over the whole row by exponent, the others over the keys of a
// range.
struct Binning {
  bool by_key;
  uint64_t first, last;  // keys
  int shift;
  GPU_DEVICE int bin(float x, uint64_t key) const {
    if (!by_key) {
      const int last_bin = static_cast<int>(blockDim.x) - 1;
      const float place = x * (static_cast<float>(blockDim.x) / -kNats);
      return place < static_cast<float>(last_bin) ? static_cast<int>(place) : last_bin;
    }
    return key < first || key > last ? kNoBin : static_cast<int>((key - first) >> shift);
  }
};

// A bin a thread. Sums of 64 bits are two words with 32-bit atomics: exactly one addition sees each wrap of
// the low word.
struct Histogram {
  uint32_t *count, *low, *high;
  GPU_DEVICE void add(int bin, Amount amount) const {
    atomic_add(&count[bin], static_cast<uint32_t>(amount.count));
    const auto word = static_cast<uint32_t>(amount.weight);
    const uint32_t old = atomic_add(&low[bin], word);
    const uint32_t more = static_cast<uint32_t>(amount.weight >> 32) + (old + word < old);
    if (more) atomic_add(&high[bin], more);
  }
  GPU_DEVICE Amount at(int bin) const {
    return {count[bin], static_cast<uint64_t>(high[bin]) << 32 | low[bin]};
  }
};

GPU_DEVICE void fill(const Row& row, const Binning& binning, const Histogram& histogram) {
  histogram.count[threadIdx.x] = histogram.low[threadIdx.x] = histogram.high[threadIdx.x] = 0;
  sync_block();
  for_each_logit(row.z, row.vocab, [&](float logit, int64_t id) {
    const float x = row.exponent(logit);
    const int bin = binning.bin(x, rank_key(logit, static_cast<uint32_t>(id)));
    if (bin == kNoBin) return;
    const Amount amount = row.amount(x);
    if (amount.count) histogram.add(bin, amount);
  });
  sync_block();
}

// What is asked: the first candidate at which the running count or weight is more than `target`.
struct Target {
  uint64_t value;
  bool by_count;
  GPU_DEVICE bool passed(Amount running) const { return (by_count ? running.count : running.weight) > value; }
};

GPU_DEVICE Amount scan(Amount amount) {
  Amount all;
  return {block_inclusive_scan(amount.count, all.count), block_inclusive_scan(amount.weight, all.weight)};
}

struct Found {
  int at;         // a bin or an id
  Amount amount;  // up to and including it
};

// The thread whose amount, added to those of lower threads and `before`, passes the target tells everybody.
GPU_DEVICE Found first_past(int at, Amount mine, Amount before, Target target) {
  GPU_SHARED(Found, found, 1);
  const Amount running = before + scan(mine);
  if (target.passed(running) && !target.passed(running - mine)) found[0] = {at, running};
  sync_block();
  const Found answer = found[0];
  sync_block();
  return answer;
}

struct Members {
  uint32_t count;
  uint64_t first, last;  // keys
};

// Gathers the keys of a bin's candidates, as many as the block has threads; their order is left to the sort.
GPU_DEVICE Members collect(const Row& row, const Binning& binning, int bin, uint64_t* keys) {
  GPU_SHARED(uint32_t, count, 1);
  if (threadIdx.x == 0) count[0] = 0;
  sync_block();
  uint64_t first = ~uint64_t{0}, last = 0;
  for_each_logit(row.z, row.vocab, [&](float logit, int64_t id) {
    const float x = row.exponent(logit);
    const uint64_t key = rank_key(logit, static_cast<uint32_t>(id));
    if (binning.bin(x, key) != bin) return;
    if (!row.amount(x).count) return;
    const uint32_t place = atomic_add(&count[0], 1u);
    if (place < blockDim.x) keys[place] = key;
    if (key < first) first = key;
    if (key > last) last = key;
  });
  sync_block();
  const Members members{count[0], block_first(first), ~block_first(~last)};
  sync_block();
  return members;
}

// Bitonic sort (Batcher 1968) of keys[0 .. size), a power of two.
GPU_DEVICE void sort(uint64_t* keys, int size) {
  for (int width = 2; width <= size; width *= 2)
    for (int distance = width / 2; distance > 0; distance /= 2) {
      sync_block();
      const int i = static_cast<int>(threadIdx.x), j = i ^ distance;
      if (i < size && i < j) {
        const uint64_t a = keys[i], b = keys[j];
        if ((a > b) == ((i & width) == 0)) keys[i] = b, keys[j] = a;
      }
    }
  sync_block();
}

// The answer among `count` collected candidates.
GPU_DEVICE Found pick(const Row& row, uint64_t* keys, int count, Amount before, Target target) {
  const int thread = static_cast<int>(threadIdx.x);
  int size = 1;
  while (size < count) size *= 2;
  if (count <= thread && thread < size) keys[thread] = ~uint64_t{0};
  sort(keys, size);
  const uint64_t key = thread < count ? keys[thread] : 0;
  const Amount mine = thread < count ? row.amount(row.exponent(value_of_key(key))) : Amount{0, 0};
  return first_past(static_cast<int>(index_of_key(key)), mine, before, target);
}

struct Workspace {
  Histogram whole, part;
  uint64_t* keys;  // [threads]
};

// The first candidate at which the running amount passes the target; there must be one. `whole` is filled.
GPU_DEVICE Found search(const Row& row, const Workspace& work, Target target) {
  Binning binning{false, 0, 0, 0};
  Histogram histogram = work.whole;
  Amount before{0, 0};
  for (;;) {
    const int thread = static_cast<int>(threadIdx.x);
    const Found bin = first_past(thread, histogram.at(thread), before, target);
    before = bin.amount - histogram.at(bin.at);
    const Members members = collect(row, binning, bin.at, work.keys);
    if (members.count <= blockDim.x)
      return pick(row, work.keys, static_cast<int>(members.count), before, target);
    binning = {true, members.first, members.last, 0};
    while ((members.last - members.first) >> binning.shift >= blockDim.x) ++binning.shift;
    histogram = work.part;
    fill(row, binning, histogram);
  }
}

// floor(weight * fraction / 2^24) without overflow
GPU_DEVICE uint64_t scaled(uint64_t weight, uint32_t fraction) {
  return (weight >> 24) * fraction + (((weight & 0xffffffu) * fraction) >> 24);
}

GPU_DEVICE Amount total(const Histogram& histogram) {
  const Amount mine = histogram.at(static_cast<int>(threadIdx.x));
  return {block_sum(mine.count), block_sum(mine.weight)};
}

// Three questions, the last of which is the draw; each cut leaves the weight of a shorter prefix.
GPU_DEVICE int32_t draw(const Row& row, const SampleParams& params, const Workspace& work) {
  enum { kTopK, kTopP, kDraw, kQuestions };
  fill(row, {false, 0, 0, 0}, work.whole);
  const Amount all = total(work.whole);
  Found found{0, all};
  for (int question = 0; question < kQuestions; ++question) {
    const uint64_t weight = found.amount.weight;
    Target target{};
    if (question == kTopK) {
      if (params.top_k <= 0 || static_cast<uint64_t>(params.top_k) >= all.count) continue;
      target = {static_cast<uint64_t>(params.top_k) - 1, true};
    } else if (question == kTopP) {
      if (!(params.top_p > 0 && params.top_p < 1)) continue;
      target = {static_cast<uint64_t>(static_cast<double>(params.top_p) * static_cast<double>(weight)),
                false};
    } else {
      target = {scaled(weight, philox(params.seed, params.step).x[0] >> 8), false};
    }
    found = search(row, work, target);
  }
  return found.at;
}

// One block a row. Shared memory: two histograms, and a key for each thread.
GPU_KERNEL(kMaxThreads) void sample_kernel(SampleArgs a, float unit) {
  GPU_SHARED(uint32_t, bins, 6 * kMaxThreads);
  GPU_SHARED(uint64_t, keys, kMaxThreads);
  const int64_t index = blockIdx.x;
  const float* z = a.logits + index * a.vocab;
  const SampleParams params = a.params[index];
  const uint64_t best = first_maximum(z, a.vocab);
  const float maximum = value_of_key(best), inverse = 1.0f / params.temperature;
  int32_t token = best == kNanKey ? -1 : static_cast<int32_t>(index_of_key(best));
  // An infinite maximum, or a temperature whose inverse overflows, leaves no distribution to draw from.
  if (token >= 0 && params.temperature > 0 && inverse < INFINITY && abs(maximum) < INFINITY) {
    const Row row{z, a.vocab, maximum, inverse, params.min_p, unit, params.top_k > 0};
    token = draw(row, params,
                 {{bins, bins + kMaxThreads, bins + 2 * kMaxThreads},
                  {bins + 3 * kMaxThreads, bins + 4 * kMaxThreads, bins + 5 * kMaxThreads},
                  keys});
  }
  if (threadIdx.x == 0) a.tokens[index] = token;
}

}  // namespace

void sample(Stream stream, const SampleArgs& a) {
  float unit = 0x1p62f;  // vocab * unit <= 2^62
  for (int64_t v = 1; v < a.vocab; v *= 2) unit *= 0.5f;
  const int threads = a.vocab <= 1024 ? 64 : a.vocab <= 16384 ? 256 : kMaxThreads;
  launch(stream, {.grid = {a.rows}, .block = threads}, sample_kernel, a, unit);
}

}  // namespace trivium::TRIVIUM_GPU_NS
