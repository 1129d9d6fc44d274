// A batch job's work: one replica of the model on each device, all fed from one queue.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <thread>
#include <utility>

#include "core/log.h"
#include "getp/batch_job.h"
#include "getp/files.h"

namespace trivium::getp {

using Clock = std::chrono::steady_clock;

MemoryPlan Job::plan(const Model& model, int batch_size, int64_t reserved_bytes) const {
  const auto requests = static_cast<int64_t>(input_.items.size()),
             parts = static_cast<int64_t>(replica_count_);
  return plan_memory(model, {.batch_size = batch_size,
                             .max_requests = std::max<int64_t>(1, (requests + parts - 1) / parts),
                             .max_length = longest_length(input_.items, options_, model.info().max_positions),
                             .max_step_tokens = options_.step_tokens,
                             .kv_dtype = options_.kv_dtype.value_or(model.default_kv_dtype()),
                             .budget_bytes = 0,
                             .reserved_bytes = reserved_bytes});
}

// On a GPU the weights come out of the same memory as the cache: refuse what cannot fit before reading them.
void Job::plan_before_loading(Device device) {
  if (!is_gpu(device.kind)) return;
  const auto model = describe_model(options_.model, load_options(options_, device, *cancel_));
  const MemoryPlan planned = plan(*model, options_.batch_size, model->info().weight_bytes);
  if (!options_.quiet) std::fprintf(stderr, "%s beside the weights\n", describe(*model, planned).c_str());
}

void Job::make_scheduler(Replica& replica, int batch_size) {
  const MemoryPlan planned = plan(*replica.model, batch_size, 0);
  if (!options_.quiet && !is_gpu(replica.model->info().device.kind))
    std::fprintf(stderr, "%s\n", describe(*replica.model, planned).c_str());
  report_.batch_size = planned.states.num_slots;
  report_.cache_bytes = planned.planned_bytes;
  replica.scheduler = std::make_unique<Scheduler>(
      replica.model, planned.states,
      SchedulerEvents{.on_piece = {}, .on_result = [this](int64_t id, Result result) {
                        on_result(static_cast<size_t>(id), std::move(result));
                      }});
  replica.scheduler->states().touch();
}

// Loads, allocates and touches everything, so that inference() measures inference only.
void Job::warm_up() {
  const auto start = Clock::now();
  const std::vector<Device> devices = chosen_devices(options_);
  replica_count_ = devices.size();
  announce(options_, devices, *cancel_);
  for (const Device device : devices) {
    plan_before_loading(device);
    // A journal and a part name the weights they were made with; all replicas have the same ones.
    const bool fingerprint = replicas_.empty() && is_plain_target(options_.output);
    replicas_.push_back({load(options_, device, *cancel_, fingerprint), nullptr});
  }
  model_ = replicas_.front().model;
  report_.load_seconds = seconds_since(start);
  open_journal();
  for (Replica& replica : replicas_) {
    cancel_->check();
    int batch = options_.batch_size;
    while (!replica.scheduler) {
      try {
        make_scheduler(replica, batch);
      } catch (const OutOfMemory& error) {
        replica.scheduler.reset();
        batch = std::exchange(report_.batch_size, 0) / 2;
        if (batch == 0) throw;
        warn(concat(error.what(), "; trying batch ", batch));
      }
    }
    replica.model->warm_up(cancel_);
  }
  report_.warm_up_seconds = seconds_since(start);
}

// Works through the shared queue. A few requests more than there are slots keep them busy; the rest stays for
// the other replicas.
void Job::run(Replica& replica, std::vector<Request>& requests, Progress& progress) {
  Scheduler& scheduler = *replica.scheduler;
  const int64_t enough = 2 * scheduler.options().num_slots;
  for (;;) {
    std::vector<size_t> taken;
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
      while (!queue_.empty() && scheduler.pending() + static_cast<int64_t>(taken.size()) < enough) {
        taken.push_back(queue_.front());
        queue_.pop_front();
      }
    }
    for (const size_t i : taken) scheduler.submit(static_cast<int64_t>(i), std::move(requests[i]));
    if (scheduler.idle() && taken.empty()) return;
    const int64_t before = scheduler.stats().generated_tokens;
    if (!scheduler.idle()) scheduler.step(cancel_);
    const std::lock_guard lock(mutex_);
    generated_tokens_ += scheduler.stats().generated_tokens - before;
    progress.update(report_.requests_done, generated_tokens_);
    if (journal_) journal_->sync_if_due();
  }
}

// A thread for each replica; the first failure stops all of them at their next step and is thrown here.
void Job::run_all(std::vector<Request>& requests, Progress& progress) {
  if (replicas_.size() == 1) return run(replicas_.front(), requests, progress);
  std::exception_ptr failure;
  {
    std::vector<std::jthread> threads;
    for (Replica& replica : replicas_)
      threads.emplace_back([&] {
        try {
          run(replica, requests, progress);
        } catch (...) {
          const std::lock_guard lock(mutex_);
          if (!failure) failure = std::current_exception();
          stopping_ = true;
        }
      });
  }
  if (failure) std::rethrow_exception(failure);
}

void Job::inference() {
  const auto start = Clock::now();
  std::vector<Request> requests;
  std::vector<size_t> open = make_requests(requests);
  resume(requests, open);
  report_.tokenize_seconds = seconds_since(start);
  // Longest first: the last requests to run are short, so slots stay busy to the end.
  std::stable_sort(open.begin(), open.end(),
                   [&](size_t a, size_t b) { return requests[a].prompt.size() > requests[b].prompt.size(); });
  Progress progress(static_cast<int64_t>(open.size()), !options_.quiet && !options_.no_progress);
  queue_.assign(open.begin(), open.end());
  run_all(requests, progress);
  progress.finish(generated_tokens_);
  report_.inference_seconds = seconds_since(start);
  for (const Replica& replica : replicas_) report_.scheduler += replica.scheduler->stats();
}

}  // namespace trivium::getp
