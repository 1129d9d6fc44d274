// Continuous batching. A step holds one token of every decoding sequence and up to max_step_tokens prompt
// tokens of others (chunked prefill); a slot is refilled as soon as its request ends. When the states run out
// of memory the newest sequence is preempted: its slot is released and later its prompt and generated tokens
// are processed again, which gives the same tokens because a position's logits and its draw do not depend on
// the batch. Not thread-safe: one thread at a time. Engine (session.h) is the thread-safe front.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "core/cancel.h"
#include "getp/request.h"
#include "getp/stop_text.h"
#include "models/model.h"
#include "ops/sampling.h"

namespace trivium::getp {

struct SchedulerEvents {
  std::function<void(int64_t id, const StreamPiece& piece)> on_piece;  // optional
  std::function<void(int64_t id, Result result)> on_result;            // optional
};

struct SchedulerStats {
  int64_t steps = 0;
  int64_t prompt_tokens = 0;  // of requests whose prompt has been processed
  int64_t generated_tokens = 0;
  int64_t processed_tokens = 0;  // through the model, replays included
  int64_t reused_tokens = 0;     // taken from a kept state
  int64_t preemptions = 0;
  double forward_seconds = 0;
  double sample_seconds = 0;  // where it is not part of the forward pass, as on a GPU

  SchedulerStats& operator+=(const SchedulerStats& other);
};

class Scheduler {
 public:
  // `options.max_step_tokens` counts prompt tokens; the states are made for num_slots more (one decoded token
  // a slot). Throws OutOfMemory when the states cannot be had.
  Scheduler(std::shared_ptr<Model> model, StateOptions options, SchedulerEvents events);

  // `id` is the caller's and comes back in the events. A request that cannot run or has nothing to generate
  // ends at once, inside this call.
  void submit(int64_t id, Request request);
  void cancel(int64_t id);  // ends it with FinishReason::cancelled; unknown ids are ignored
  bool idle() const { return waiting_.empty() && running_.empty(); }
  // One step. Throws Cancelled when the token fires and whatever the model throws; the sequences of the step
  // then go back to the queue and a later step() computes them anew.
  void step(const CancelToken* cancel = nullptr);

  SequenceStates& states() { return *states_; }
  const StateOptions& options() const { return options_; }  // as given
  const SchedulerStats& stats() const { return stats_; }
  int64_t pending() const { return static_cast<int64_t>(waiting_.size() + running_.size()); }
  int64_t running() const { return static_cast<int64_t>(running_.size()); }

 private:
  struct Sequence {
    int64_t id = 0;
    Request request;
    std::vector<int32_t> tokens;  // prompt, then generated
    int64_t limit = 0;            // most tokens it may have
    int64_t processed = 0;        // tokens whose state is in the slot
    int slot = -1;
    bool counted = false;  // its prompt is in stats_
    bool kept = false;     // the prompt's state was copied for later
    std::optional<StopText> text;
    Result result;

    int64_t size() const { return static_cast<int64_t>(tokens.size()); }
    int64_t remaining() const { return size() - processed; }
    int64_t generated() const { return size() - static_cast<int64_t>(request.prompt.size()); }
  };
  using SequencePtr = std::unique_ptr<Sequence>;
  struct Kept {  // a slot whose state a later prompt may extend
    int slot;
    std::vector<int32_t> tokens;
  };

  void admit();
  bool place(Sequence& sequence);
  int take_slot(Sequence& sequence);
  bool drop_oldest_kept();
  void grow();
  void preempt(size_t index);
  void build_batch();
  void forward(const CancelToken* cancel);
  void consume();
  void accept(Sequence& sequence, int32_t token);
  void keep_prompt(Sequence& sequence);
  void finish(Sequence& sequence, FinishReason reason);
  void remove_finished();
  void free_slot(int slot);

  std::shared_ptr<Model> model_;
  StateOptions options_;
  std::unique_ptr<SequenceStates> states_;
  ops::Sampler sampler_;
  SchedulerEvents events_;
  SchedulerStats stats_;
  std::deque<SequencePtr> waiting_;
  std::vector<SequencePtr> running_;  // by admission, oldest first
  std::deque<Kept> kept_;             // oldest first
  std::vector<int> free_slots_;

  std::vector<int32_t> step_tokens_;  // the step being built
  std::vector<Segment> step_segments_;
  std::vector<Sequence*> step_members_;    // of each segment
  std::vector<ops::SampleRow> step_rows_;  // of segments that end in logits
};

// Why `request` cannot run on this model, as one sentence; empty when it can (memory aside).
std::string refusal(const Model& model, const Request& request);

// Most tokens, prompt included, that a request may have on this model.
int64_t position_limit(const Model& model, const Request& request);

}  // namespace trivium::getp
