#include "getp/memory.h"

#include <algorithm>
#include <cstdio>

#include "core/registry.h"

namespace trivium::getp {

int auto_batch(Device device) { return is_gpu(device.kind) ? 256 : 32; }
int64_t default_step_tokens(Device device) { return is_gpu(device.kind) ? 2048 : 256; }

int64_t free_memory(Device device) { return device_properties(device).free_bytes; }

std::string format_bytes(int64_t bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text;
}

StateOptions with_decode_tokens(StateOptions options) {
  options.max_step_tokens += options.num_slots;
  return options;
}

MemoryPlan plan_memory(const Model& model, const MemoryRequest& request) {
  MemoryPlan plan;
  const Device device = model.info().device;
  plan.free_bytes = free_memory(device) - request.reserved_bytes;
  if (plan.free_bytes <= 0)
    throw OutOfMemory(concat(format_bytes(request.reserved_bytes), " of weights do not fit: ", device,
                             " has ", format_bytes(free_memory(device)), " free"));
  const int64_t budget = request.budget_bytes > 0 ? request.budget_bytes : plan.free_bytes / 10 * 8;
  plan.states = {
      .num_slots = request.batch_size,
      .max_length = request.max_length,
      .max_step_tokens = request.max_step_tokens > 0 ? request.max_step_tokens : default_step_tokens(device),
      .kv_dtype = request.kv_dtype,
      .budget_bytes = 0};
  const auto bytes = [&](const StateOptions& states) {
    return model.state_bytes(with_decode_tokens(states));
  };
  if (request.batch_size == 0) plan.states.num_slots = auto_batch(device);
  if (request.max_requests > 0)
    plan.states.num_slots = static_cast<int>(std::min<int64_t>(plan.states.num_slots, request.max_requests));
  plan.wanted_bytes = bytes(plan.states);
  plan.planned_bytes = plan.wanted_bytes;
  if (plan.wanted_bytes <= budget) return plan;
  StateOptions one = plan.states;
  one.num_slots = 1;
  const int64_t least = bytes(one);
  if (least > budget)
    throw OutOfMemory(concat("one sequence of ", request.max_length, " positions needs ", format_bytes(least),
                             " of cache beside ", format_bytes(model.info().weight_bytes), " of weights; ",
                             device, " has ", format_bytes(plan.free_bytes), " free of which ",
                             format_bytes(budget), " may be used: lower --steps or --max-tokens"));
  // Fewer slots when the batch size is ours to choose; else the slots share what there is.
  if (request.batch_size == 0) {
    while (plan.states.num_slots > 1 && bytes(plan.states) > 2 * budget) plan.states.num_slots /= 2;
    plan.wanted_bytes = bytes(plan.states);
  }
  plan.planned_bytes = std::min(plan.wanted_bytes, budget);
  if (plan.wanted_bytes > budget) plan.states.budget_bytes = budget;
  return plan;
}

std::string describe(const Model& model, const MemoryPlan& plan) {
  std::string text = concat("memory: weights ", format_bytes(model.info().weight_bytes), ", cache ",
                            format_bytes(plan.planned_bytes));
  if (plan.planned_bytes < plan.wanted_bytes)
    text += concat(" of ", format_bytes(plan.wanted_bytes), " (sequences will take turns)");
  return text + concat(" (batch ", plan.states.num_slots, ", ", plan.states.max_length, " positions, ",
                       model.state_kind(plan.states.kv_dtype).dtype, "), ", format_bytes(plan.free_bytes),
                       " free");
}

}  // namespace trivium::getp
