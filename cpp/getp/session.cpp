#include "getp/session.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>

#include "getp/memory.h"
#include "getp/scheduler.h"

namespace trivium::getp {

namespace {

// How often a thread that waits for another one's step looks at its own cancel token.
constexpr auto kPoll = std::chrono::milliseconds(20);
constexpr int64_t kLengthStep = 256;  // states are made for multiples of this

struct Event {
  size_t index = 0;
  StreamPiece piece;
  std::optional<Result> result;  // set: the request ended
};

// The requests of one generate() call or stream, and what happened to them since its thread last looked.
struct Group {
  std::deque<Event> events;
  std::vector<int64_t> ids;
};

}  // namespace

struct Engine::Impl {
  struct Arrival {
    int64_t id;
    Request request;
  };

  std::shared_ptr<Model> model;
  EngineOptions options;

  std::mutex mutex;  // guards everything up to the next comment; never held during a step
  std::condition_variable stepped;
  bool stepping = false;
  int64_t next_id = 0;
  std::deque<Arrival> inbox;
  std::vector<int64_t> withdrawn;
  std::map<int64_t, std::pair<std::shared_ptr<Group>, size_t>> owners;

  // Of the thread that set `stepping`, or of a holder of the mutex while nobody steps.
  std::unique_ptr<Scheduler> scheduler;
  std::deque<Arrival> deferred;  // until the scheduler is idle and can be made larger
  std::vector<std::pair<int64_t, Event>> fresh;

  std::shared_ptr<Group> submit(std::vector<Request> requests);
  bool advance(Group& group, const CancelToken* cancel);
  void withdraw(Group& group);
  void apply_withdrawals();
  void run_step(std::deque<Arrival> arrivals, const CancelToken* cancel);
  void make_scheduler();
  bool fits(const Request& request) const;
  void deliver();
  StateOptions state_options(int64_t length, int64_t requests, bool keeps) const;
};

std::shared_ptr<Group> Engine::Impl::submit(std::vector<Request> requests) {
  auto group = std::make_shared<Group>();
  const std::lock_guard lock(mutex);
  for (size_t i = 0; i < requests.size(); ++i) {
    const int64_t id = next_id++;
    group->ids.push_back(id);
    owners[id] = {group, i};
    inbox.push_back({id, std::move(requests[i])});
  }
  return group;
}

// Returns after a step, or when something happened to the group; false when `cancel` fired first.
bool Engine::Impl::advance(Group& group, const CancelToken* cancel) {
  std::unique_lock lock(mutex);
  while (stepping && group.events.empty() && !(cancel && cancel->cancelled())) stepped.wait_for(lock, kPoll);
  if (!group.events.empty()) return true;
  if (cancel && cancel->cancelled()) return false;
  stepping = true;
  std::deque<Arrival> arrivals = std::exchange(inbox, {});
  apply_withdrawals();
  lock.unlock();
  std::exception_ptr failure;
  bool cancelled = false;
  try {
    run_step(std::move(arrivals), cancel);
  } catch (const Cancelled&) {
    cancelled = true;
  } catch (...) {
    failure = std::current_exception();
  }
  lock.lock();
  stepping = false;
  apply_withdrawals();
  deliver();
  stepped.notify_all();
  if (failure) std::rethrow_exception(failure);
  return !cancelled || !group.events.empty();
}

void Engine::Impl::deliver() {
  for (auto& [id, event] : fresh) {
    const auto owner = owners.find(id);
    if (owner == owners.end()) continue;
    event.index = owner->second.second;
    const bool ended = event.result.has_value();
    owner->second.first->events.push_back(std::move(event));
    if (ended) owners.erase(owner);
  }
  fresh.clear();
}

void Engine::Impl::withdraw(Group& group) {
  const std::lock_guard lock(mutex);
  for (const int64_t id : group.ids)
    if (owners.erase(id) > 0) withdrawn.push_back(id);
  if (!stepping) apply_withdrawals();
}

void Engine::Impl::apply_withdrawals() {
  if (withdrawn.empty()) return;
  const std::vector<int64_t> ids = std::exchange(withdrawn, {});
  const auto gone = [&](const Arrival& a) { return std::find(ids.begin(), ids.end(), a.id) != ids.end(); };
  std::erase_if(inbox, gone);
  std::erase_if(deferred, gone);
  if (scheduler)
    for (const int64_t id : ids) scheduler->cancel(id);
}

StateOptions Engine::Impl::state_options(int64_t length, int64_t requests, bool keeps) const {
  // A chat grows: room to spare saves its kept state from the next turn's larger states.
  const int64_t rounded = keeps ? static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(length)))
                                : (length + kLengthStep - 1) / kLengthStep * kLengthStep;
  const int64_t slots = requests + (keeps ? 1 : 0);  // one for the prompt's kept state
  const int64_t most = options.batch_size + (keeps ? 1 : 0);
  return plan_memory(*model,
                     {.batch_size = options.batch_size > 0 ? static_cast<int>(std::min(most, slots)) : 0,
                      .max_requests = slots,
                      .max_length = std::min(rounded, model->info().max_positions),
                      .max_step_tokens = options.max_step_tokens,
                      .kv_dtype = options.kv_dtype.value_or(model->default_kv_dtype()),
                      .budget_bytes = options.budget_bytes})
      .states;
}

bool Engine::Impl::fits(const Request& request) const {
  if (!scheduler) return false;
  const int64_t limit = options.batch_size > 0 ? options.batch_size : auto_batch(model->info().device);
  const auto wanted = std::min(limit, static_cast<int64_t>(deferred.size()));
  if (scheduler->idle() && scheduler->options().num_slots < wanted) return false;
  if (request.keep_state && scheduler->options().num_slots < 2 && scheduler->idle()) return false;
  return position_limit(*model, request) <= scheduler->options().max_length;
}

void Engine::Impl::make_scheduler() {
  int64_t length = 2;
  bool keeps = false;
  for (const Arrival& a : deferred) {
    length = std::max(length, position_limit(*model, a.request));
    keeps |= a.request.keep_state;
  }
  const auto requests = static_cast<int64_t>(deferred.size());
  scheduler.reset();  // before the new one: two sets of states need not fit
  scheduler = std::make_unique<Scheduler>(model, state_options(length, requests, keeps),
                                          SchedulerEvents{.on_piece =
                                                              [this](int64_t id, const StreamPiece& p) {
                                                                fresh.push_back({id, {0, p, {}}});
                                                              },
                                                          .on_result =
                                                              [this](int64_t id, Result r) {
                                                                fresh.push_back({id, {0, {}, std::move(r)}});
                                                              }});
}

void Engine::Impl::run_step(std::deque<Arrival> arrivals, const CancelToken* cancel) {
  for (Arrival& a : arrivals) {
    Result refused;
    refused.prompt_tokens = static_cast<int64_t>(a.request.prompt.size());
    refused.error = refusal(*model, a.request);
    refused.finish_reason = FinishReason::error;
    if (refused.error.empty()) {
      deferred.push_back(std::move(a));
    } else {
      fresh.push_back({a.id, {0, {}, std::move(refused)}});
    }
  }
  while (!deferred.empty()) {
    if (!fits(deferred.front().request)) {
      if (scheduler && !scheduler->idle()) break;
      make_scheduler();
    }
    // All that fit go in before the next look: a batch arrives as one.
    const int64_t longest = scheduler->options().max_length;
    while (!deferred.empty() && position_limit(*model, deferred.front().request) <= longest) {
      Arrival a = std::move(deferred.front());
      deferred.pop_front();
      scheduler->submit(a.id, std::move(a.request));
    }
  }
  if (scheduler && !scheduler->idle()) scheduler->step(cancel);
}

Engine::Engine(std::shared_ptr<Model> model, EngineOptions options) : impl_(std::make_shared<Impl>()) {
  TRIVIUM_CHECK(model != nullptr, "engine: no model");
  TRIVIUM_CHECK(options.batch_size >= 0, "batch_size is ", options.batch_size,
                ", expected 0 (automatic) or more");
  TRIVIUM_CHECK(options.max_step_tokens >= 0, "max_step_tokens is ", options.max_step_tokens,
                ", expected 0 (automatic) or more");
  impl_->model = std::move(model);
  impl_->options = options;
}

Engine::~Engine() = default;

Model& Engine::model() const { return *impl_->model; }

void Engine::check(const Request& request) const {
  const std::string why = refusal(*impl_->model, request);
  TRIVIUM_CHECK(why.empty(), why);
}

void Engine::release_states() {
  const std::lock_guard lock(impl_->mutex);
  TRIVIUM_CHECK(!impl_->stepping && impl_->inbox.empty() && impl_->deferred.empty() &&
                    (!impl_->scheduler || impl_->scheduler->idle()),
                "release_states: requests are running");
  impl_->scheduler.reset();
}

std::vector<Result> Engine::generate(std::vector<Request> requests, const GenerateCallbacks& callbacks,
                                     const CancelToken* cancel) {
  std::vector<Result> results(requests.size());
  EngineProgress progress{.requests = static_cast<int64_t>(requests.size())};
  for (size_t i = 0; i < requests.size(); ++i)
    results[i].prompt_tokens = static_cast<int64_t>(requests[i].prompt.size());
  const std::shared_ptr<Group> group = impl_->submit(std::move(requests));
  struct Withdraw {
    Impl& impl;
    Group& group;
    ~Withdraw() { impl.withdraw(group); }
  } withdraw{*impl_, *group};

  while (progress.requests_done < progress.requests) {
    if (!impl_->advance(*group, cancel)) break;
    std::deque<Event> events;
    {
      const std::lock_guard lock(impl_->mutex);
      events.swap(group->events);
    }
    for (Event& event : events) {
      Result& result = results[event.index];
      if (event.result) {
        result = std::move(*event.result);
        ++progress.requests_done;
        if (callbacks.on_result) callbacks.on_result(event.index, result);
        continue;
      }
      result.text += event.piece.text;
      if (event.piece.token < 0) continue;
      if (result.tokens.empty()) progress.prompt_tokens += result.prompt_tokens;
      result.tokens.push_back(event.piece.token);
      result.completion_tokens = static_cast<int64_t>(result.tokens.size());
      ++progress.generated_tokens;
      if (callbacks.on_token) callbacks.on_token(event.index, event.piece.token);
    }
    if (callbacks.on_progress) callbacks.on_progress(progress);
  }
  return results;
}

struct TokenStream::State {
  std::shared_ptr<Engine::Impl> engine;
  std::shared_ptr<Group> group;
  Result result;
  bool ended = false;
};

TokenStream::TokenStream(std::unique_ptr<State> state) : state_(std::move(state)) {}

TokenStream::~TokenStream() { state_->engine->withdraw(*state_->group); }

std::unique_ptr<TokenStream> Engine::stream(Request request) {
  auto state = std::make_unique<TokenStream::State>();
  state->result.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  std::vector<Request> one;
  one.push_back(std::move(request));
  state->engine = impl_;
  state->group = impl_->submit(std::move(one));
  return std::unique_ptr<TokenStream>(new TokenStream(std::move(state)));
}

std::optional<StreamPiece> TokenStream::next(const CancelToken* cancel) {
  State& s = *state_;
  while (!s.ended) {
    std::optional<Event> event;
    {
      const std::lock_guard lock(s.engine->mutex);
      if (!s.group->events.empty()) {
        event = std::move(s.group->events.front());
        s.group->events.pop_front();
      }
    }
    if (!event) {
      bool alive = false;
      try {
        alive = s.engine->advance(*s.group, cancel);
      } catch (...) {
        s.ended = true;
        s.engine->withdraw(*s.group);
        throw;
      }
      if (alive) continue;
      s.ended = true;
      s.engine->withdraw(*s.group);
      throw Cancelled("cancelled");
    }
    if (event->result) {
      s.ended = true;
      s.result = std::move(*event->result);
      if (s.result.finish_reason == FinishReason::error) throw InvalidArgument(s.result.error);
      return std::nullopt;
    }
    s.result.text += event->piece.text;
    if (event->piece.token >= 0) s.result.tokens.push_back(event->piece.token);
    s.result.completion_tokens = static_cast<int64_t>(s.result.tokens.size());
    return std::move(event->piece);
  }
  return std::nullopt;
}

const Result& TokenStream::result() const { return state_->result; }

}  // namespace trivium::getp
