#include "emu/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define TRIVIUM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TRIVIUM_ASAN 1
#endif
#endif
#ifdef TRIVIUM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifndef __x86_64__
#define TRIVIUM_EMU_UCONTEXT  // may be defined elsewhere too, to test this form
#endif
#ifdef TRIVIUM_EMU_UCONTEXT
#include <ucontext.h>
#endif

namespace trivium::emu {
namespace {

#ifdef TRIVIUM_ASAN
constexpr size_t kStackBytes = 512 << 10;  // its frames are several times larger
#else
constexpr size_t kStackBytes = 128 << 10;
#endif

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

#ifndef TRIVIUM_EMU_UCONTEXT
// Stores the callee-saved registers of the System V ABI on the old stack and loads them from the new one.
extern "C" void trivium_emu_switch(void** save, void* load);
asm(R"(
.text
.hidden trivium_emu_switch
.globl trivium_emu_switch
.type trivium_emu_switch, @function
trivium_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size trivium_emu_switch, .-trivium_emu_switch
)");
#endif

StackPool::~StackPool() {
  for (void* stack : stacks_) ::munmap(static_cast<char*>(stack) - page_bytes(), kStackBytes + page_bytes());
}

void StackPool::grow(size_t count) {
  while (stacks_.size() < count) {
    void* memory = ::mmap(nullptr, kStackBytes + page_bytes(), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    ::mprotect(memory, page_bytes(), PROT_NONE);
    stacks_.push_back(static_cast<char*>(memory) + page_bytes());
  }
}

void StackPool::prepare(size_t index, Context& context, void (*entry)()) {
  grow(index + 1);
  context = {};
  context.stack_bottom = stacks_[index];
  context.stack_bytes = kStackBytes;
#ifndef TRIVIUM_EMU_UCONTEXT
  // Tops at different offsets within a page, or all fibers would compete for the same sets of the cache.
  char* top = static_cast<char*>(stacks_[index]) + kStackBytes - (index % 32) * 320;
  auto* frame = reinterpret_cast<void**>(top - 64);
  std::memset(frame, 0, 64);
  frame[6] = reinterpret_cast<void*>(entry);
  context.stack_pointer = frame;
#else
  static thread_local std::vector<ucontext_t> contexts(1024 + 1);
  ucontext_t* c = &contexts.at(index);
  ::getcontext(c);
  c->uc_stack.ss_sp = stacks_[index];
  c->uc_stack.ss_size = kStackBytes;
  c->uc_link = nullptr;
  ::makecontext(c, entry, 0);
  context.stack_pointer = c;
#endif
}

void StackPool::forget_frames([[maybe_unused]] size_t index) {
#ifdef TRIVIUM_ASAN
  ASAN_UNPOISON_MEMORY_REGION(stacks_[index], kStackBytes);
#endif
}

void switch_context(Context& from, Context& to) {
#ifdef TRIVIUM_ASAN
  __sanitizer_start_switch_fiber(&from.asan_fake_stack, to.stack_bottom, to.stack_bytes);
#endif
#ifndef TRIVIUM_EMU_UCONTEXT
  trivium_emu_switch(&from.stack_pointer, to.stack_pointer);
#else
  ucontext_t own;
  if (!from.stack_pointer) from.stack_pointer = &own;  // an OS thread's, as long as it is away
  const bool lent = from.stack_pointer == &own;
  ::swapcontext(static_cast<ucontext_t*>(from.stack_pointer), static_cast<ucontext_t*>(to.stack_pointer));
  if (lent) from.stack_pointer = nullptr;
#endif
#ifdef TRIVIUM_ASAN
  __sanitizer_finish_switch_fiber(from.asan_fake_stack, nullptr, nullptr);
#endif
}

void arrived_on_new_stack([[maybe_unused]] Context& from) {
#ifdef TRIVIUM_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &from.stack_bottom, &from.stack_bytes);
#endif
}

}  // namespace trivium::emu
