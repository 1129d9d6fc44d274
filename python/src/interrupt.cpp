#include "interrupt.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <future>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace trivium::python {
namespace {

namespace py = pybind11;
using namespace std::chrono_literals;

constexpr auto kSignalPoll = 20ms;
constexpr auto kExitPatience = 5s;  // a step of a large model can take a second; then give up waiting

// The tokens of all runs, so that interpreter exit can stop them.
struct Runs {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<CancelToken*> tokens;
  bool closed = false;
  std::thread::id exiting;  // who closed them
};

Runs& runs() {
  static Runs* const instance = new Runs;  // never destroyed: daemon threads may outlive static destructors
  return *instance;
}

// Python 3.11 ends a daemon thread that asks for the GIL during interpreter exit by unwinding it, and C++
// destructors that reacquire the GIL turn that into std::terminate. Such a thread stays here, without the
// GIL, until the process ends. The exiting thread itself, in a later atexit hook, does not.
void park_during_exit() {
  if (std::this_thread::get_id() == runs().exiting) return;
  PyEval_SaveThread();
  for (;;) std::this_thread::sleep_for(1h);
}

class ActiveRun {
 public:
  explicit ActiveRun(CancelToken& token) : token_(&token) {
    bool closed;
    {
      const std::lock_guard lock(runs().mutex);
      closed = runs().closed;
      if (!closed) runs().tokens.push_back(token_);
    }
    if (!closed) return;
    park_during_exit();
    throw Error("the interpreter is shutting down");
  }
  ~ActiveRun() {
    bool closed;
    {
      const std::lock_guard lock(runs().mutex);
      std::erase(runs().tokens, token_);
      runs().changed.notify_all();
      closed = runs().closed;
    }
    if (closed) park_during_exit();
  }
  ActiveRun(const ActiveRun&) = delete;
  ActiveRun& operator=(const ActiveRun&) = delete;

 private:
  CancelToken* token_;
};

void close_runs() {
  const py::gil_scoped_release release;
  std::unique_lock lock(runs().mutex);
  runs().closed = true;
  runs().exiting = std::this_thread::get_id();
  for (CancelToken* token : runs().tokens) token->cancel();
  runs().changed.wait_for(lock, kExitPatience, [] { return runs().tokens.empty(); });
}

}  // namespace

void run_interruptible(CancelToken& cancel, const std::function<void()>& work) {
  const ActiveRun active(cancel);
  std::optional<py::error_already_set> signal;
  std::packaged_task<void()> task(work);
  std::future<void> done = task.get_future();
  {
    const py::gil_scoped_release release;
    std::thread worker(std::move(task));
    while (done.wait_for(kSignalPoll) == std::future_status::timeout) {
      const py::gil_scoped_acquire gil;
      if (!signal && PyErr_CheckSignals() != 0) {
        signal.emplace();
        cancel.cancel();
      }
    }
    worker.join();
  }
  if (signal) throw std::move(*signal);
  done.get();
}

void register_interrupts() {
  py::module_::import("atexit").attr("register")(py::cpp_function(close_runs));
  // A forked child has none of its parent's runs, and must not inherit a lock another thread held.
  py::dict hooks;
  hooks["after_in_child"] = py::cpp_function([] { new (&runs()) Runs; });
  py::module_::import("os").attr("register_at_fork")(**hooks);
}

}  // namespace trivium::python
