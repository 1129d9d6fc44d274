// Fibers: one stack for each GPU thread of a block, and the switch between them on one OS thread.
#pragma once

#include <cstddef>
#include <vector>

namespace trivium::emu {

// A suspended flow of control: of a fiber, or of the OS thread that started the first one.
struct Context {
  void* stack_pointer = nullptr;
  void* asan_fake_stack = nullptr;  // these three for AddressSanitizer alone
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
};

// Stacks with a guard page below each, kept for reuse by one OS thread.
class StackPool {
 public:
  StackPool() = default;
  ~StackPool();
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;

  // Makes `context` a fiber on stack `index` that starts with entry(), which must never return.
  void prepare(size_t index, Context& context, void (*entry)());
  // The frames that a fiber left behind when it was given up are forgotten.
  void forget_frames(size_t index);

 private:
  void grow(size_t count);
  std::vector<void*> stacks_;  // lowest usable address of each
};

void switch_context(Context& from, Context& to);
// The first thing an entry does.
void arrived_on_new_stack(Context& from);

}  // namespace trivium::emu
