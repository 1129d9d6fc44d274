// Checks of every load and store of a kernel. The kernels are compiled with the compiler's instrumentation
// for ThreadSanitizer, whose run-time library is not linked: the calls it inserts come here.
#include <link.h>

#include <algorithm>

#include "core/error.h"
#include "emu/block.h"

namespace trivium::emu {
namespace {

// The loaded image of this module: its constants and static variables.
Range own_image() {
  Range image;
  ::dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* found) {
        uintptr_t begin = ~uintptr_t{0}, end = 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& segment = info->dlpi_phdr[i];
          if (segment.p_type != PT_LOAD) continue;
          begin = std::min<uintptr_t>(begin, info->dlpi_addr + segment.p_vaddr);
          end = std::max<uintptr_t>(end, info->dlpi_addr + segment.p_vaddr + segment.p_memsz);
        }
        const auto here = reinterpret_cast<uintptr_t>(&own_image);
        if (here < begin || here >= end) return 0;
        *static_cast<Range*>(found) = {begin, end};
        return 1;
      },
      &image);
  return image;
}

const Range& image() {
  static const Range range = own_image();
  return range;
}

bool is_index(const void* p) {  // threadIdx and its like
  const auto inside = [p](const Dim3& d) {
    return Range{reinterpret_cast<uintptr_t>(&d), reinterpret_cast<uintptr_t>(&d + 1)}.holds(p, 1);
  };
  return inside(threadIdx) || inside(blockIdx) || inside(blockDim) || inside(gridDim);
}

}  // namespace

std::string describe(const Where& where) {
  if (where.place) return concat(" in ", where.what, " at ", describe(*where.place));
  return concat(", code at ",
                reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(where.code) - image().begin),
                " of the module (addr2line)");
}

// In a buffer of this device? The last ones found are remembered.
bool Block::in_buffer(const void* p, size_t bytes) {
  for (const Range& range : recent_)
    if (range.holds(p, bytes)) return true;
  const Range range = buffer_at(device_, p);
  if (!range.holds(p, bytes)) return false;
  recent_[oldest_++ % recent_.size()] = range;
  return true;
}

void Block::reject_outside(const void* p, size_t bytes, Access access, const Where& where) const {
  reject(concat("thread ", current_->index, access == Access::read ? " reads " : " writes ", bytes, " bytes ",
                describe_outside(device_, p), describe(where)));
}

void Block::access(const void* p, size_t bytes, Access access, const Where& where) {
  if (reinterpret_cast<uintptr_t>(p) % bytes)
    reject(concat("misaligned: the address is not a multiple of ", bytes, " bytes", describe(where)));
  if (shared_.covers(p)) {
    shared_.access(p, bytes, access, stamp_, where);
  } else if (!in_buffer(p, bytes)) {
    reject_outside(p, bytes, access, where);
  }
}

void Block::plain_access(const void* p, size_t bytes, Access access, const void* code) {
  if (!watching_) return;
  const Where where{.what = nullptr, .place = nullptr, .code = code};
  if (shared_.covers(p)) {
    shared_.access(p, bytes, access, stamp_, where);
    return;
  }
  if (in_buffer(p, bytes) || is_index(p) || image().holds(p, bytes) || arguments_.holds(p, bytes)) return;
  reject_outside(p, bytes, access, where);
}

void Block::begin_copy(const AsyncCopy& copy) {
  const Where where{.what = "async_copy16", .place = &copy.place};
  if (!shared_.covers(copy.shared))
    reject(concat("the destination does not lie in shared memory", describe(where)));
  if (reinterpret_cast<uintptr_t>(copy.shared) % 16)
    reject(concat("misaligned: the destination is not a multiple of 16 bytes", describe(where)));
  if (copy.valid) access(copy.global, 16, Access::read, where);
  shared_.begin_copy(copy.shared, 16, stamp_, where);
  fill_pattern(copy.shared, 16, kPendingCopy);
  current_->copies.push_back(copy);
}

void Block::end_copy(const AsyncCopy& copy) {
  unsigned char pending[16];
  fill_pattern(pending, 16, kPendingCopy);
  if (std::memcmp(copy.shared, pending, 16) != 0)
    reject(concat("shared memory was written while the async_copy16 at ", describe(copy.place),
                  " to it was under way"));
  if (copy.valid)
    std::memcpy(copy.shared, copy.global, 16);
  else
    std::memset(copy.shared, 0, 16);
  shared_.end_copy(copy.shared, 16, stamp_);
}

}  // namespace trivium::emu

// --- what the instrumentation calls ---

namespace {

using trivium::emu::Access;

// The compiler takes its calls for ones that cannot throw.
void check(trivium::emu::Block& block, const void* p, size_t bytes, Access access, const void* code) {
  std::string reason;
  try {
    block.plain_access(p, bytes, access, code);
    return;
  } catch (trivium::emu::Rejection& rejection) {
    reason = std::move(rejection.reason);
  }
  block.give_up(std::move(reason));
}

[[gnu::always_inline]] inline void watch(const void* p, size_t bytes, Access access) {
  auto* block = trivium::emu::t_block;
  if (block && !block->on_own_stack(p)) check(*block, p, bytes, access, __builtin_return_address(0));
}

}  // namespace

extern "C" {

void __tsan_init() {}
void __tsan_read1(void* p) { watch(p, 1, Access::read); }
void __tsan_read2(void* p) { watch(p, 2, Access::read); }
void __tsan_read4(void* p) { watch(p, 4, Access::read); }
void __tsan_read8(void* p) { watch(p, 8, Access::read); }
void __tsan_read16(void* p) { watch(p, 16, Access::read); }
void __tsan_write1(void* p) { watch(p, 1, Access::write); }
void __tsan_write2(void* p) { watch(p, 2, Access::write); }
void __tsan_write4(void* p) { watch(p, 4, Access::write); }
void __tsan_write8(void* p) { watch(p, 8, Access::write); }
void __tsan_write16(void* p) { watch(p, 16, Access::write); }
void __tsan_read_range(void* p, size_t bytes) { watch(p, bytes, Access::read); }
void __tsan_write_range(void* p, size_t bytes) { watch(p, bytes, Access::write); }
void __tsan_vptr_update(void**, void*) {}
// Of host code in the same files: the guards of static variables, reference counts.
unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
unsigned __tsan_atomic32_fetch_add(volatile unsigned* p, unsigned v, int) {
  return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}
}
