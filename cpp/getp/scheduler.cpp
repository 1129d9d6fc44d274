#include "getp/scheduler.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "getp/memory.h"

namespace trivium::getp {

namespace {

// Positions beyond its present tokens that must be free before a sequence joins running ones; without
// them it would be preempted again a few steps later.
constexpr int64_t kHeadroom = 32;

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool starts_with(const std::vector<int32_t>& tokens, const std::vector<int32_t>& prefix) {
  return prefix.size() < tokens.size() && std::equal(prefix.begin(), prefix.end(), tokens.begin());
}

}  // namespace

const char* name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::error:
      return "error";
    case FinishReason::cancelled:
      return "cancelled";
  }
  return "?";
}

std::string refusal(const Model& model, const Request& request) {
  const int32_t vocab = model.info().vocab_size;
  if (request.prompt.empty()) return "the prompt is empty: at least one token is needed";
  for (size_t i = 0; i < request.prompt.size(); ++i)
    if (request.prompt[i] < 0 || request.prompt[i] >= vocab)
      return concat("prompt token ", i, " is ", request.prompt[i], ", expected 0 to ", vocab - 1);
  const auto length = static_cast<int64_t>(request.prompt.size());
  if (length > model.info().max_positions)
    return concat("the prompt has ", length, " tokens, the model takes at most ", model.info().max_positions);
  const ops::SamplingParams& s = request.sampling;
  if (!(s.temperature >= 0)) return concat("temperature is ", s.temperature, ", expected 0 or more");
  if (s.top_p != s.top_p) return "top_p is not a number";
  if (s.top_k < 0) return concat("top_k is ", s.top_k, ", expected 0 or more");
  if (!(s.min_p >= 0 && s.min_p <= 1)) return concat("min_p is ", s.min_p, ", expected 0 to 1");
  if (!request.stop.empty() && !model.tokenizer())
    return concat("stop strings need a tokenizer, and \"", model.info().path, "\" has none");
  for (const std::string& stop : request.stop) {
    if (stop.empty()) return "a stop string is empty";
    if (io::sanitize_utf8(stop) != stop) return "a stop string is not valid UTF-8";
  }
  return "";
}

int64_t position_limit(const Model& model, const Request& request) {
  int64_t limit = model.info().max_positions;
  if (request.max_positions > 0) limit = std::min(limit, request.max_positions);
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  if (request.max_tokens >= 0 && request.max_tokens < limit - prompt) limit = prompt + request.max_tokens;
  return limit;
}

Scheduler::Scheduler(std::shared_ptr<Model> model, StateOptions options, SchedulerEvents events)
    : model_(std::move(model)),
      options_(options),
      sampler_(model_->info().device, std::max(options.num_slots, 1)),
      events_(std::move(events)) {
  TRIVIUM_CHECK(options.num_slots >= 1, "scheduler: ", options.num_slots, " slots, expected at least 1");
  TRIVIUM_CHECK(options.max_step_tokens >= 1, "scheduler: max_step_tokens is ", options.max_step_tokens,
                ", expected at least 1");
  states_ = model_->make_states(with_decode_tokens(options));
  for (int slot = options.num_slots; slot-- > 0;) free_slots_.push_back(slot);
}

void Scheduler::submit(int64_t id, Request request) {
  auto sequence = std::make_unique<Sequence>();
  sequence->id = id;
  sequence->result.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  sequence->result.error = refusal(*model_, request);
  sequence->request = std::move(request);
  if (!sequence->result.error.empty()) return finish(*sequence, FinishReason::error);
  sequence->tokens = sequence->request.prompt;
  sequence->limit = position_limit(*model_, sequence->request);
  if (sequence->size() >= sequence->limit) return finish(*sequence, FinishReason::length);
  // The last generated token is never processed, so it needs no room.
  if (sequence->limit > options_.max_length || !states_->can_ever_hold(sequence->limit - 1)) {
    sequence->result.error =
        concat("the request may take ", sequence->limit, " positions, more than the cache of ",
               states_->bytes(), " bytes can hold; lower the number of tokens or give the cache more memory");
    return finish(*sequence, FinishReason::error);
  }
  const auto& tokenizer = model_->tokenizer();
  if (tokenizer && (sequence->request.want_text || !sequence->request.stop.empty()))
    sequence->text.emplace(*tokenizer, sequence->request.stop, sequence->request.harmony);
  waiting_.push_back(std::move(sequence));
}

void Scheduler::cancel(int64_t id) {
  const auto has_id = [id](const SequencePtr& s) { return s->id == id; };
  if (const auto it = std::find_if(waiting_.begin(), waiting_.end(), has_id); it != waiting_.end()) {
    const SequencePtr sequence = std::move(*it);
    waiting_.erase(it);
    finish(*sequence, FinishReason::cancelled);
  } else if (const auto at = std::find_if(running_.begin(), running_.end(), has_id); at != running_.end()) {
    const SequencePtr sequence = std::move(*at);
    running_.erase(at);
    finish(*sequence, FinishReason::cancelled);
  }
}

void Scheduler::step(const CancelToken* cancel) {
  if (cancel) cancel->check();
  admit();
  grow();
  build_batch();
  if (step_members_.empty()) return;
  forward(cancel);
  consume();
  remove_finished();
}

void Scheduler::free_slot(int slot) {
  states_->release(slot);
  free_slots_.push_back(slot);
}

bool Scheduler::drop_oldest_kept() {
  if (kept_.empty()) return false;
  free_slot(kept_.front().slot);
  kept_.pop_front();
  return true;
}

// A slot for the sequence, -1 when all are busy. One whose kept state the sequence extends is preferred.
int Scheduler::take_slot(Sequence& sequence) {
  auto best = kept_.end();
  for (auto it = kept_.begin(); it != kept_.end(); ++it)
    if (starts_with(sequence.tokens, it->tokens) &&
        (best == kept_.end() || it->tokens.size() > best->tokens.size()))
      best = it;
  if (best != kept_.end()) {
    const int slot = best->slot;
    sequence.processed = static_cast<int64_t>(best->tokens.size());
    kept_.erase(best);
    return slot;
  }
  if (free_slots_.empty() && !drop_oldest_kept()) return -1;
  const int slot = free_slots_.back();
  free_slots_.pop_back();
  return slot;
}

// Gives the sequence a slot with room for its present tokens; false when it has to wait.
bool Scheduler::place(Sequence& sequence) {
  sequence.processed = 0;
  const int slot = take_slot(sequence);
  if (slot < 0) return false;
  const int64_t room =
      running_.empty() ? sequence.size() : std::min(sequence.limit - 1, sequence.size() + kHeadroom);
  while (!states_->reserve(slot, room)) {
    if (drop_oldest_kept()) continue;
    free_slot(slot);
    sequence.processed = 0;
    return false;
  }
  stats_.reused_tokens += sequence.processed;
  sequence.slot = slot;
  return true;
}

void Scheduler::admit() {
  while (!waiting_.empty()) {
    if (!place(*waiting_.front())) {
      if (!running_.empty()) return;
      // Everything is free and it still does not fit: can_ever_hold() promised otherwise.
      SequencePtr lost = std::move(waiting_.front());
      waiting_.pop_front();
      lost->result.error = concat("no memory for the state of ", lost->size(), " tokens");
      finish(*lost, FinishReason::error);
      continue;
    }
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

void Scheduler::preempt(size_t index) {
  SequencePtr sequence = std::move(running_[index]);
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
  free_slot(sequence->slot);
  sequence->slot = -1;
  sequence->processed = 0;
  waiting_.push_front(std::move(sequence));
  ++stats_.preemptions;
}

// Room for the next token of every decoding sequence, oldest first; the newest are preempted for it.
void Scheduler::grow() {
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.remaining() != 1) continue;  // a prompt's room was reserved on admission
    while (!states_->reserve(sequence.slot, sequence.size())) {
      if (drop_oldest_kept()) continue;
      if (running_.size() == 1) {
        sequence.result.error = concat("no memory for the state of ", sequence.size(), " tokens");
        const SequencePtr lost = std::move(running_.front());
        running_.clear();
        return finish(*lost, FinishReason::error);
      }
      const bool itself = i + 1 == running_.size();
      preempt(running_.size() - 1);
      if (itself) return;
    }
  }
}

void Scheduler::build_batch() {
  step_tokens_.clear();
  step_segments_.clear();
  step_members_.clear();
  step_rows_.clear();
  const auto add = [this](Sequence& s, int64_t count) {
    const bool last = count == s.remaining();
    const auto wanted =
        s.request.sampling.temperature == 0 ? Segment::Logits::maximum : Segment::Logits::last;
    step_segments_.push_back({.slot = s.slot,
                              .start = s.processed,
                              .count = count,
                              .logits = last ? wanted : Segment::Logits::none});
    step_tokens_.insert(step_tokens_.end(), s.tokens.begin() + s.processed,
                        s.tokens.begin() + s.processed + count);
    step_members_.push_back(&s);
    if (last)
      step_rows_.push_back({.params = s.request.sampling, .step = static_cast<uint64_t>(s.generated())});
  };
  for (const SequencePtr& s : running_)
    if (s->remaining() == 1) add(*s, 1);
  int64_t budget = options_.max_step_tokens;
  for (const SequencePtr& s : running_) {
    if (s->remaining() == 1 || budget == 0) continue;
    const int64_t count = std::min(budget, s->remaining());
    budget -= count;
    add(*s, count);
  }
}

SchedulerStats& SchedulerStats::operator+=(const SchedulerStats& o) {
  steps += o.steps;
  prompt_tokens += o.prompt_tokens;
  generated_tokens += o.generated_tokens;
  processed_tokens += o.processed_tokens;
  reused_tokens += o.reused_tokens;
  preemptions += o.preemptions;
  forward_seconds += o.forward_seconds;
  sample_seconds += o.sample_seconds;
  return *this;
}

// Runs the model and samples, on the model's stream where it lets us.
void Scheduler::forward(const CancelToken* cancel) {
  const auto start = Clock::now();
  bool sampled = step_rows_.empty();
  Batch batch{.tokens = step_tokens_, .segments = step_segments_};
  batch.follow_up = [&](Stream& stream, const Tensor& logits) {
    sampler_.enqueue(&stream, logits, step_rows_);
    sampled = true;
  };
  try {
    const Tensor logits = model_->forward(batch, *states_, cancel);
    ++stats_.steps;
    stats_.processed_tokens += static_cast<int64_t>(step_tokens_.size());
    stats_.forward_seconds += seconds_since(start);
    if (sampled) return;
    const auto forwarded = Clock::now();
    sampler_.sample(logits, step_rows_);
    stats_.sample_seconds += seconds_since(forwarded);
  } catch (...) {
    // The states of the step's slots are undefined now; every running sequence may be among them.
    stats_.preemptions -= static_cast<int64_t>(running_.size());
    while (!running_.empty()) preempt(running_.size() - 1);
    throw;
  }
}

void Scheduler::consume() {
  std::vector<Sequence*> owners;
  for (size_t i = 0; i < step_segments_.size(); ++i) {
    Sequence& s = *step_members_[i];
    s.processed += step_segments_[i].count;
    if (s.request.keep_state && !s.kept && s.processed == s.result.prompt_tokens) keep_prompt(s);
    if (step_segments_[i].logits != Segment::Logits::none) owners.push_back(&s);
  }
  for (size_t i = 0; i < owners.size(); ++i) accept(*owners[i], sampler_.tokens()[i]);
}

void Scheduler::accept(Sequence& s, int32_t token) {
  if (!s.counted) stats_.prompt_tokens += s.result.prompt_tokens;
  s.counted = true;
  if (token < 0) {
    s.result.error = concat("the model's logits after ", s.size(), " tokens are not numbers (NaN)");
    return finish(s, FinishReason::error);
  }
  s.tokens.push_back(token);
  s.result.tokens.push_back(token);
  ++stats_.generated_tokens;
  const auto& ids = s.request.stop_ids;
  const bool stop_id = !s.request.ignore_eos && std::find(ids.begin(), ids.end(), token) != ids.end();
  StreamPiece piece{.token = token, .text = ""};
  if (s.text && !stop_id) piece.text = s.text->push(token);
  s.result.text += piece.text;
  if (events_.on_piece) events_.on_piece(s.id, piece);
  if (stop_id || (s.text && s.text->stopped())) return finish(s, FinishReason::stop);
  if (s.size() >= s.limit) finish(s, FinishReason::length);
}

// Copies the state of the whole prompt aside. Harmony drops the analysis of earlier turns, so the next prompt
// of a chat extends this prompt but not what was generated after it.
void Scheduler::keep_prompt(Sequence& s) {
  if (free_slots_.empty() && !drop_oldest_kept()) return;
  const int slot = free_slots_.back();
  if (!states_->copy(s.slot, slot)) return;
  free_slots_.pop_back();
  kept_.push_back({.slot = slot, .tokens = s.request.prompt});
  s.kept = true;
}

// Reports the end of a sequence and frees its slot; remove_finished() drops it from running_.
void Scheduler::finish(Sequence& s, FinishReason reason) {
  if (s.slot >= 0) {
    if (s.request.keep_state && !s.kept && reason != FinishReason::error && s.processed > 0) {
      kept_.push_back({.slot = s.slot, .tokens = {s.tokens.begin(), s.tokens.begin() + s.processed}});
    } else {
      free_slot(s.slot);
    }
    s.slot = -1;
  }
  if (s.text) {
    StreamPiece rest{.token = -1, .text = s.text->finish()};
    s.result.text += rest.text;
    if (!rest.text.empty() && events_.on_piece) events_.on_piece(s.id, rest);
    if (s.request.harmony) s.result.analysis = s.text->analysis();
  }
  s.result.finish_reason = reason;
  s.result.completion_tokens = static_cast<int64_t>(s.result.tokens.size());
  s.limit = 0;
  if (events_.on_result) events_.on_result(s.id, std::move(s.result));
}

void Scheduler::remove_finished() {
  std::erase_if(running_, [](const SequencePtr& s) { return s->limit == 0; });
}

}  // namespace trivium::getp
