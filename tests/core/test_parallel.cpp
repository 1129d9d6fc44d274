// The thread pool.
#include "core/parallel.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <numeric>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "support/backend.h"

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true, kAddressSanitizer = false;
#elif defined(__SANITIZE_ADDRESS__)
constexpr bool kThreadSanitizer = false, kAddressSanitizer = true;
#else
constexpr bool kThreadSanitizer = false, kAddressSanitizer = false;
#endif

namespace trivium::testing {
namespace {

// Runs `tasks` tasks and expects each exactly once, on workers below num_threads().
void expect_each_task_once(int64_t tasks) {
  const auto seen = std::make_unique<std::atomic<int>[]>(static_cast<size_t>(tasks) + 1);
  std::atomic<int> strange{0};
  const int workers = num_threads();
  parallel_for(tasks, [&](int64_t task, int worker) {
    if (task < 0 || task >= tasks || worker < 0 || worker >= workers)
      ++strange;
    else
      ++seen[static_cast<size_t>(task)];
  });
  EXPECT_EQ(strange, 0);
  for (int64_t i = 0; i < tasks; ++i)
    ASSERT_EQ(seen[static_cast<size_t>(i)], 1) << "task " << i << " of " << tasks;
}

TEST(Parallel, RunsEveryTaskOnceForAnyNumberOfThreads) {
  for (const int threads : {1, 2, 3, 5, 9}) {
    const Threads scope(threads);
    EXPECT_EQ(num_threads(), threads);
    for (const int64_t tasks : {-1, 0, 1, 2, 7, 64, 1000}) expect_each_task_once(std::max<int64_t>(tasks, 0));
  }
}

TEST(Parallel, ManySmallJobsInARowLoseNone) {
  const Threads scope(4);
  int64_t total = 0;
  for (int job = 0; job < 3000; ++job) {
    std::atomic<int64_t> sum{0};
    parallel_for(5, [&](int64_t task, int) { sum += task + 1; });
    total += sum;
  }
  EXPECT_EQ(total, 3000 * 15);
}

// Whether `threads` tasks run at the same time: each waits for all the others, 20 s at most.
bool tasks_meet(int threads) {
  std::atomic<int> started{0}, gave_up{0};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  parallel_for(threads, [&](int64_t, int) {
    ++started;
    while (started < threads && !gave_up) {
      std::this_thread::yield();
      if (std::chrono::steady_clock::now() > deadline) ++gave_up;
    }
  });
  return gave_up == 0;
}

TEST(Parallel, TasksReallyRunAtTheSameTime) {
  for (const int threads : {2, 4}) {
    const Threads scope(threads);
    for (int round = 0; round < 20; ++round) ASSERT_TRUE(tasks_meet(threads)) << threads << " threads";
  }
}

TEST(Parallel, ZeroThreadsRestoresTheDefaultAndLimitsHold) {
  set_num_threads(0);
  const int automatic = num_threads();
  EXPECT_GE(automatic, 1);
  set_num_threads(automatic + 3);
  EXPECT_EQ(num_threads(), automatic + 3);
  set_num_threads(1 << 30);
  EXPECT_EQ(num_threads(), 1024);
  set_num_threads(-5);
  EXPECT_EQ(num_threads(), automatic);
}

TEST(Parallel, AnExceptionReachesTheCallerAndThePoolWorksOn) {
  for (const int threads : {1, 4}) {
    const Threads scope(threads);
    for (int round = 0; round < 20; ++round) {
      std::atomic<int> ran{0};
      try {
        parallel_for(100, [&](int64_t task, int) {
          ++ran;
          if (task == 10) throw std::runtime_error("task ten");
        });
        ADD_FAILURE() << "no exception";
      } catch (const std::runtime_error& error) {
        EXPECT_STREQ(error.what(), "task ten");
      }
      EXPECT_GE(ran, 1);
      EXPECT_LE(ran, 100);
      expect_each_task_once(50);
    }
    EXPECT_THROW(parallel_for(64, [](int64_t, int) { throw InvalidArgument("all of them"); }),
                 InvalidArgument);
    expect_each_task_once(50);
  }
}

TEST(Parallel, NestedCallsRunInTheirCaller) {
  const Threads scope(4);
  std::atomic<int> inner{0}, elsewhere{0};
  parallel_for(16, [&](int64_t, int) {
    const auto self = std::this_thread::get_id();
    parallel_for(9, [&](int64_t, int) {
      ++inner;
      if (std::this_thread::get_id() != self) ++elsewhere;
    });
  });
  EXPECT_EQ(inner, 16 * 9);
  EXPECT_EQ(elsewhere, 0);
}

TEST(Parallel, CallersInManyThreadsEachGetTheirOwnResult) {
  const Threads scope(3);
  std::vector<std::thread> callers;
  std::vector<int64_t> sums(6, 0);
  for (size_t c = 0; c < sums.size(); ++c)
    callers.emplace_back([&, c] {
      for (int round = 0; round < 100; ++round) {
        std::vector<int64_t> squares(40);
        parallel_for(40, [&](int64_t task, int) { squares[static_cast<size_t>(task)] = task * task; });
        sums[c] += std::accumulate(squares.begin(), squares.end(), int64_t{0});
      }
    });
  for (auto& caller : callers) caller.join();
  for (const int64_t sum : sums) EXPECT_EQ(sum, 100 * 39 * 40 * 79 / 6);
}

TEST(Parallel, TheNumberOfThreadsMayChangeWhileOthersRun) {
  std::atomic<bool> stop{false};
  std::thread changer([&] {
    for (int n = 1; !stop; n = n % 5 + 1) set_num_threads(n);
  });
  for (int round = 0; round < 200; ++round) {
    std::atomic<int64_t> sum{0};
    parallel_for(20, [&](int64_t task, int) { sum += task; });
    ASSERT_EQ(sum, 190);
  }
  stop = true;
  changer.join();
  set_num_threads(0);
}

// Runs fn in a child process that is killed when it hangs; expects it to return true.
template <class Fn>
void expect_true_in_child(Fn&& fn) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(30);
    ::_exit(fn() ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
}

bool sums_right() {
  std::atomic<int64_t> sum{0};
  parallel_for(100, [&](int64_t task, int) { sum += task; });
  return sum == 4950;
}

TEST(Parallel, WorksInBothProcessesAfterFork) {
  if (kThreadSanitizer) GTEST_SKIP() << "ThreadSanitizer does not start threads after a fork";
  const Threads scope(4);
  EXPECT_TRUE(tasks_meet(4));
  for (int round = 0; round < 5; ++round) expect_true_in_child([] { return sums_right() && sums_right(); });
  EXPECT_TRUE(sums_right());
}

TEST(Parallel, WorksInAChildForkedWhileAnotherThreadRunsAJob) {
  if (kThreadSanitizer) GTEST_SKIP() << "ThreadSanitizer does not start threads after a fork";
  const Threads scope(3);
  std::atomic<bool> stop{false};
  // AddressSanitizer's allocator is not safe to fork (glibc's is): a thread of ours that is just starting
  // allocates, and the child could inherit the lock. There all threads run before the first fork; elsewhere
  // it may come while the pool is being made.
  std::atomic<bool> forks_may_begin{!kAddressSanitizer};
  std::thread busy([&] {
    if (kAddressSanitizer) {
      EXPECT_TRUE(tasks_meet(3));
    }
    forks_may_begin = true;
    while (!stop) sums_right();
  });
  while (!forks_may_begin) std::this_thread::yield();
  for (int round = 0; round < 20; ++round) expect_true_in_child([] { return sums_right() && tasks_meet(3); });
  stop = true;
  busy.join();
}

TEST(Parallel, WorksWithFewerThreadsWhereTheSystemRefusesMore) {
  if (kThreadSanitizer || kAddressSanitizer)
    GTEST_SKIP() << "sanitizers need the address space that this test takes away";
  expect_true_in_child([] {
    const rlimit limit{256 << 20, 256 << 20};  // a thread's stack takes 8 MiB
    if (::setrlimit(RLIMIT_AS, &limit) != 0) return false;
    set_num_threads(1000);
    return sums_right() && sums_right();
  });
}

}  // namespace
}  // namespace trivium::testing
