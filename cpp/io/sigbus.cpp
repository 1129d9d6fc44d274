// A page of a mapped file that is no longer there raises SIGBUS in the thread that reads it. Unwinding out of
// a signal handler is not portable, so inside guarded() the handler puts zero pages there, lets the code run
// on with wrong data, and the error is thrown once that code has returned. Outside guarded() a program may
// choose to end with one sentence (install_sigbus_handler); else zeros are put there too, and
// check_readable() of the archive says so afterwards.
#include "io/sigbus.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>

#include "io/mmap.h"

namespace trivium::io {

// Nodes are never freed, so that the handler can walk the list without a lock; a removed one has begin 0.
struct MappedRange {
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};  // rounded up to a page
  std::atomic<bool> damaged{false};
  std::string path;
  MappedRange* next = nullptr;
};

namespace {

static_assert(std::atomic<uintptr_t>::is_always_lock_free && std::atomic<MappedRange*>::is_always_lock_free);

std::mutex ranges_mutex;  // for changes of the list
std::atomic<MappedRange*> ranges{nullptr};
std::atomic<bool> exit_on_fault{false};
struct sigaction previous_action;

// Of one thread: how many guarded() calls are active, and the first fault in them.
struct GuardState {
  volatile int depth;
  MappedRange* volatile range;
  volatile int64_t offset;
};
thread_local GuardState guard_state;

uintptr_t page_size() { return static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE)); }

MappedRange* find_range(uintptr_t address) {
  for (MappedRange* range = ranges.load(); range != nullptr; range = range->next) {
    const uintptr_t begin = range->begin.load();
    if (begin != 0 && address >= begin && address < range->end.load()) return range;
  }
  return nullptr;
}

bool replace_with_zeros(MappedRange* range, uintptr_t address) {
  const uintptr_t from = address / page_size() * page_size();
  range->damaged.store(true);
  return ::mmap(reinterpret_cast<void*>(from), range->end.load() - from, PROT_READ,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

void write_text(const char* text) {
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text, std::strlen(text));
}

void call_previous(int signal, siginfo_t* info, void* context) {
  if ((previous_action.sa_flags & SA_SIGINFO) != 0) {
    previous_action.sa_sigaction(signal, info, context);
  } else if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN) {
    previous_action.sa_handler(signal);
  } else if (previous_action.sa_handler == SIG_DFL || info->si_code > 0) {
    std::signal(signal, SIG_DFL);  // takes effect when this handler returns
    std::raise(signal);
  }
}

void on_sigbus(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  const bool is_fault = info->si_code > 0;  // not sent by kill()
  if (MappedRange* range = is_fault ? find_range(address) : nullptr; range != nullptr) {
    if (guard_state.depth > 0 && replace_with_zeros(range, address)) {
      if (guard_state.range == nullptr) {
        guard_state.offset = static_cast<int64_t>(address - range->begin.load());
        guard_state.range = range;
      }
      errno = saved_errno;
      return;
    }
    if (exit_on_fault.load()) {
      write_text("error: ");
      write_text(range->path.c_str());
      write_text(
          ": a part of the file could not be read; it was truncated or its disk failed while in use\n");
      ::_exit(1);
    }
    // A library must not end the process: its reader asks is_damaged() when it is done.
    if (replace_with_zeros(range, address)) {
      errno = saved_errno;
      return;
    }
  }
  call_previous(signal, info, context);
  errno = saved_errno;
}

void install_once() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    ::sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, &previous_action);
  });
}

// Ends one guarded() call; throws when it was the one that saw a fault.
void leave_guard() {
  guard_state.depth = guard_state.depth - 1;
  const MappedRange* range = guard_state.range;
  if (range == nullptr) return;
  guard_state.range = nullptr;
  throw ModelFormatError(
      concat(range->path, ": byte ", guard_state.offset,
             " could not be read; the file was truncated or its disk failed while in use"));
}

}  // namespace

MappedRange* add_mapped_range(const char* begin, int64_t bytes, const std::string& path) {
  const std::lock_guard lock(ranges_mutex);
  MappedRange* range = ranges.load();
  while (range != nullptr && range->begin.load() != 0) range = range->next;
  const bool is_new = range == nullptr;
  if (is_new) range = new MappedRange;
  range->path = path;
  range->damaged.store(false);
  const auto address = reinterpret_cast<uintptr_t>(begin);
  range->end.store((address + static_cast<uintptr_t>(bytes) + page_size() - 1) / page_size() * page_size());
  range->begin.store(address);
  if (is_new) {
    range->next = ranges.load();
    ranges.store(range);
  }
  return range;
}

void remove_mapped_range(MappedRange* range) {
  const std::lock_guard lock(ranges_mutex);
  range->begin.store(0);
}

bool is_damaged(const MappedRange* range) { return range->damaged.load(); }

void guarded(const std::function<void()>& fn) {
  install_once();
  guard_state.depth = guard_state.depth + 1;
  try {
    fn();
  } catch (...) {
    leave_guard();  // what `fn` made of the zeros matters less than why they are there
    throw;
  }
  leave_guard();
}

void install_sigbus_handler() {
  exit_on_fault.store(true);
  install_once();
}

}  // namespace trivium::io
