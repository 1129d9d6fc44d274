// What the scheduler, getp and Python see of a model, whatever its family. A sequence's state is KV pages
// for one family, a constant-size recurrent state or a cache of indices for another: only its model
// knows, the scheduler reserves and releases slots.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/cancel.h"
#include "core/device.h"
#include "core/dtype.h"
#include "core/tensor.h"
#include "io/safetensors.h"

namespace trivium {

class Stream;
namespace io {
class Tokenizer;
}

enum class Precision { automatic, float32, bfloat16 };
const char* name_of(Precision precision);
Precision parse_precision(std::string_view text);  // "auto", "float32"/"fp32", "bfloat16"/"bf16"

struct LoadOptions {
  Device device;
  Precision precision = Precision::automatic;
  std::string tokenizer_path;  // empty: the model folder's own
  bool load_tokenizer = true;
  bool load_weights = true;                          // false: for planning memory; such a model cannot run
  io::LoadMode load_mode = io::LoadMode::automatic;  // getp --load
  // Full-attention layers see only this many last positions; 0: all. Changes results: for comparison with the
  // predecessor, whose --odd_win this is. InvalidArgument when the family has no such layers.
  int64_t odd_window = 0;
  // Whether ModelInfo::fingerprint is wanted: every byte of the files is hashed for it.
  bool fingerprint = false;
  bool check_weights = true;  // scans for NaN/Inf in dense weights and bad MXFP4 scales
  // Called now and then while loading, and while hashing.
  io::ByteProgress on_progress, on_hash_progress;
  const CancelToken* cancel = nullptr;
};

struct ModelInfo {
  std::string model_type;  // "gpt_oss"
  std::string path;
  int32_t vocab_size = 0;
  int64_t max_positions = 0;                 // prompt + generated
  std::vector<int32_t> stop_ids;             // generation_config.json (config.json's eos when that is absent)
  Precision precision = Precision::float32;  // resolved, never automatic
  Device device;
  int64_t weight_bytes = 0;
  uint64_t fingerprint = 0;  // of weights and config, for the journal; 0 unless LoadOptions ask for it
  std::string config_json;   // config.json as read; "{}" for formats without one
};

// One run of consecutive tokens of one sequence inside a step.
struct Segment {
  int slot = 0;       // state slot, in [0, num_slots)
  int64_t start = 0;  // position of the first token = tokens of the slot already processed
  int64_t count = 0;  // tokens of this segment, >= 1
  // maximum: as last, but elements of the row that are surely below its maximum may be -inf. Enough for a
  // greedy choice, and a model may save work by it.
  enum class Logits { none, last, all, maximum } logits = Logits::last;

  // Whether the segment's i-th position gets a row of logits.
  bool wants(int64_t i) const { return logits == Logits::all || (logits != Logits::none && i + 1 == count); }
};

struct Batch {
  std::span<const int32_t> tokens;    // all segments' tokens, one after another
  std::span<const Segment> segments;  // at most one segment a slot
  // Puts more work behind the step's logits, on the stream that computes them and before the step is waited
  // for, so that both cost one wait. A model that waits on the way, or runs on the CPU, does not call it.
  std::function<void(Stream& stream, const Tensor& logits)> follow_up = nullptr;
};

struct StateOptions {
  int num_slots = 1;
  int64_t max_length = 0;         // longest sequence (prompt + generated) any slot will hold
  int64_t max_step_tokens = 256;  // most tokens in one forward()
  Dtype kv_dtype = Dtype::f32;    // f32 or bf16
  int64_t budget_bytes = 0;       // 0: enough for num_slots sequences of max_length
};

// What the state of a sequence is made of, for people: "kv" in bfloat16.
struct StateKind {
  const char* name;
  Dtype dtype;
};

// The states of up to num_slots sequences.
class SequenceStates {
 public:
  virtual ~SequenceStates() = default;
  // Makes room in `slot` for positions [0, length). False when memory is exhausted: the scheduler then
  // preempts another sequence. Growing keeps what is there.
  virtual bool reserve(int slot, int64_t length) = 0;
  virtual void release(int slot) = 0;  // forgets the sequence; the slot is free again
  // Makes the released slot `to` a copy of slot `from`; both then grow apart. False when memory is exhausted
  // or the model cannot: `to` stays released. Lets a chat keep the state of its prompt while it generates.
  virtual bool copy(int /*from*/, int /*to*/) { return false; }
  virtual int64_t bytes() const = 0;  // allocated in all
  virtual int num_slots() const = 0;
  // Whether one sequence of `length` fits when all other slots are empty.
  virtual bool can_ever_hold(int64_t length) const = 0;
  virtual void touch() = 0;  // writes every page once, so that later steps never fault
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelInfo& info() const = 0;
  virtual Dtype default_kv_dtype() const = 0;  // follows the precision
  // What make_states makes when asked for `kv_dtype`, which families without keys and values do not follow.
  virtual StateKind state_kind(Dtype kv_dtype) const { return {"kv", kv_dtype}; }
  virtual int64_t state_bytes(const StateOptions& options) const = 0;  // what make_states would allocate
  virtual std::unique_ptr<SequenceStates> make_states(const StateOptions& options) const = 0;
  // Processes the batch and updates the states. Returns logits [rows, vocab_size] f32 on the model's
  // device, one row for each position asked for, in segment order; it stays valid until the next forward
  // with the same states. A row is bit-equal however the tokens are cut into segments and steps and
  // whatever else is in the batch. Throws Cancelled between layers: the states of the batch's slots are then
  // undefined and must be released. Calls on one `states` must not overlap.
  virtual Tensor forward(const Batch& batch, SequenceStates& states, const CancelToken* cancel = nullptr) = 0;
  // Reads all weights once, so that the first step is as fast as the next.
  virtual void warm_up(const CancelToken* /*cancel*/ = nullptr) {}
  const std::shared_ptr<const io::Tokenizer>& tokenizer() const {
    return tokenizer_;
  }  // null when there is none

 protected:
  std::shared_ptr<const io::Tokenizer> tokenizer_;
};

// What load_model would give, without weights and tokenizer: sizes, precision, memory to plan.
std::shared_ptr<Model> describe_model(const std::string& path, LoadOptions options = {});

// A model folder (config.json's model_type picks the family), OpenAI's original layout, or model.bin.
std::shared_ptr<Model> load_model(const std::string& path, const LoadOptions& options = {});

}  // namespace trivium
