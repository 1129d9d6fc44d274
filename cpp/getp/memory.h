// How many sequences fit: sizes of the states against the memory that is free.
#pragma once

#include <string>

#include "models/model.h"

namespace trivium::getp {

struct MemoryRequest {
  int batch_size = 0;           // 0: automatic
  int64_t max_requests = 0;     // the batch is not larger than this; 0: no such limit
  int64_t max_length = 0;       // longest sequence, prompt + generated
  int64_t max_step_tokens = 0;  // prompt tokens in a step; 0: default_step_tokens()
  Dtype kv_dtype = Dtype::f32;
  int64_t budget_bytes = 0;    // 0: 80 % of what is free
  int64_t reserved_bytes = 0;  // of what is free, but spoken for: weights that are not there yet
};

struct MemoryPlan {
  StateOptions states;       // for Scheduler
  int64_t wanted_bytes = 0;  // so that every slot can hold max_length
  int64_t planned_bytes =
      0;  // what will be allocated: less when memory is short, then sequences are preempted
  int64_t free_bytes = 0;
};

// Most sequences an automatic batch has: a GPU reads its weights once for all of them.
int auto_batch(Device device);
int64_t default_step_tokens(Device device);

int64_t free_memory(Device device);

// What a scheduler makes its states for: a step holds a token of every decoding sequence beside the prompts'.
StateOptions with_decode_tokens(StateOptions options);

// OutOfMemory with the numbers when not even one sequence fits.
MemoryPlan plan_memory(const Model& model, const MemoryRequest& request);

std::string format_bytes(int64_t bytes);  // "4.5 GiB"
// "memory: weights 12.8 GiB, cache 1.5 GiB (batch 32, 1024 positions, bfloat16), 20.1 GiB free"
std::string describe(const Model& model, const MemoryPlan& plan);

}  // namespace trivium::getp
