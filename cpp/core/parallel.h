// The CPU thread pool: one pool a process, static workers, dynamic chunks. Results never depend on the
// number of threads: kernels give every output element to exactly one task.
#pragma once

#include <cstdint>
#include <type_traits>

namespace trivium {

// Workers used by parallel_for, the caller included. Default: TRIVIUM_NUM_THREADS, else the CPUs in the
// affinity mask capped by the cgroup quota; InvalidArgument for a variable that is not 1 to 1024.
// set_num_threads(0) restores the default.
int num_threads();
void set_num_threads(int n);

using ParallelBody = void (*)(void* context, int64_t task, int worker);

// Runs body(context, task, worker) for every task in [0, num_tasks); worker in [0, num_threads()) is
// stable during one task. Blocks until all are done; nested calls run serially in the caller. The first
// exception of a body is rethrown here. Safe after fork(): the child starts a new pool.
void run_parallel(int64_t num_tasks, ParallelBody body, void* context);

template <class Fn>
void parallel_for(int64_t num_tasks, Fn&& fn) {
  run_parallel(
      num_tasks,
      [](void* context, int64_t task, int worker) {
        (*static_cast<std::remove_reference_t<Fn>*>(context))(task, worker);
      },
      const_cast<void*>(static_cast<const void*>(&fn)));
}

}  // namespace trivium
