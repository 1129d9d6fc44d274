#include "core/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "core/error.h"

namespace trivium {
namespace {

constexpr int kMaxThreads = 1024;
// A worker spins this often before it sleeps: the gap between two ops of one layer is a few microseconds.
constexpr int kSpins = 2000;

thread_local bool t_inside = false;  // this thread runs a task now: nested calls stay serial

struct Job {
  ParallelBody body = nullptr;
  void* context = nullptr;
  int64_t num_tasks = 0;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;

  void run(int worker) {
    for (;;) {
      const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= num_tasks) return;
      try {
        body(context, task, worker);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
        next.store(num_tasks, std::memory_order_relaxed);
      }
    }
  }
};

class Pool {
 public:
  // Where the system refuses more threads the pool works with fewer.
  explicit Pool(int num_threads) : wanted_(num_threads) {
    workers_.reserve(static_cast<size_t>(num_threads));
    try {
      for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error&) {
    }
  }

  ~Pool() {
    stop_.store(true);
    generation_.fetch_add(1);
    generation_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int wanted() const { return wanted_; }

  void run(Job& job) {
    job_ = &job;
    inside_.fetch_and(~kClosed, std::memory_order_release);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    t_inside = true;
    job.run(0);
    t_inside = false;
    // All tasks are taken: workers that have not woken up by now find the door closed and are not waited for,
    // or a busy machine would add a time slice to every job.
    inside_.fetch_or(kClosed, std::memory_order_acq_rel);
    for (int spin = 0;; ++spin) {
      const uint32_t state = inside_.load(std::memory_order_acquire);
      if (state == kClosed) break;
      if (spin >= kSpins) inside_.wait(state, std::memory_order_acquire);
      __builtin_ia32_pause();
    }
  }

 private:
  void work(int worker) {
    t_inside = true;
    uint32_t seen = 0;
    for (;;) {
      uint32_t now;
      for (int spin = 0; (now = generation_.load(std::memory_order_acquire)) == seen; ++spin) {
        if (spin >= kSpins) generation_.wait(seen, std::memory_order_acquire);
        __builtin_ia32_pause();
      }
      seen = now;
      if (stop_.load()) return;
      if (!(inside_.fetch_add(1, std::memory_order_acq_rel) & kClosed)) job_->run(worker);
      if (inside_.fetch_sub(1, std::memory_order_acq_rel) == kClosed + 1) inside_.notify_one();
    }
  }

  const int wanted_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;
  std::atomic<uint32_t> generation_{0};
  // The number of workers inside the current job, and a bit that keeps later ones out: job_ is valid for
  // those who enter without it.
  static constexpr uint32_t kClosed = 1u << 31;
  std::atomic<uint32_t> inside_{kClosed};
  std::atomic<bool> stop_{false};
};

std::mutex g_mutex;  // held while a job runs and while the pool is replaced
std::unique_ptr<Pool> g_pool;
std::atomic<int> g_requested{0};

// CPUs this process may use: affinity mask, then the cgroup quota (cpu.max: "quota period").
int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cpus = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (file >> quota >> period && quota != "max" && period > 0) {
    const double limit = std::strtod(quota.c_str(), nullptr) / period;
    if (limit > 0) cpus = std::min(cpus, std::max(1, static_cast<int>(limit + 0.5)));
  }
  return std::clamp(cpus, 1, kMaxThreads);
}

int default_threads() {
  const char* variable = std::getenv("TRIVIUM_NUM_THREADS");
  if (!variable) return available_cpus();
  const std::string_view text = variable;
  int n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  TRIVIUM_CHECK(error == std::errc() && end == text.data() + text.size() && n >= 1 && n <= kMaxThreads,
                "TRIVIUM_NUM_THREADS is \"", printable(text), "\", expected an integer from 1 to ",
                kMaxThreads);
  return n;
}

// A fork waits for the job of another thread, so that the child never inherits a pool that is half made.
void before_fork() {
  if (!t_inside) g_mutex.lock();
}

void after_fork_in_parent() {
  if (!t_inside) g_mutex.unlock();
}

// The child of a fork has none of the workers: it forgets the pool without joining them.
void after_fork_in_child() {
  [[maybe_unused]] Pool* lost = g_pool.release();
  new (&g_mutex) std::mutex;
}

[[maybe_unused]] const int g_fork_handlers =
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

}  // namespace

int num_threads() {
  const int requested = g_requested.load();
  if (requested > 0) return requested;
  static const int automatic = default_threads();
  return automatic;
}

void set_num_threads(int n) { g_requested.store(std::clamp(n, 0, kMaxThreads)); }

void run_parallel(int64_t num_tasks, ParallelBody body, void* context) {
  if (num_tasks <= 0) return;
  std::unique_lock lock(g_mutex, std::defer_lock);
  // One task, a nested call, or a pool busy for another thread: results do not depend on who computes.
  if (num_tasks == 1 || t_inside || num_threads() == 1 || !lock.try_lock()) {
    for (int64_t task = 0; task < num_tasks; ++task) body(context, task, 0);
    return;
  }
  if (!g_pool || g_pool->wanted() != num_threads()) {
    g_pool.reset();
    g_pool = std::make_unique<Pool>(num_threads());
  }
  Job job;
  job.body = body;
  job.context = context;
  job.num_tasks = num_tasks;
  g_pool->run(job);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace trivium
