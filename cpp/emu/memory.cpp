#include "emu/memory.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>

#include "core/error.h"
#include "emu/simt.h"

namespace trivium::emu {
namespace {

constexpr size_t kAlignment = 256, kGuard = 256;
constexpr unsigned char kGuardByte = 0xa7;
constexpr size_t kNear = 1 << 20;  // an address this close to a buffer is said to miss it

struct Buffer {
  size_t bytes;
  int device;
};

// Changed only while no kernel runs: the runtime's lock is held for both.
std::map<uintptr_t, Buffer>& buffers() {
  static std::map<uintptr_t, Buffer> all;
  return all;
}

unsigned char* pointer(uintptr_t address) { return reinterpret_cast<unsigned char*>(address); }

bool intact(unsigned char* zone) {
  static const auto pattern = [] {
    std::array<unsigned char, kGuard> bytes;
    bytes.fill(kGuardByte);
    return bytes;
  }();
  return std::memcmp(zone, pattern.data(), kGuard) == 0;
}

}  // namespace

void* allocate_device(int device, int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  void* raw = nullptr;
  if (::posix_memalign(&raw, kAlignment, size + 2 * kGuard) != 0) throw std::bad_alloc();
  auto* memory = static_cast<unsigned char*>(raw) + kGuard;
  std::memset(memory - kGuard, kGuardByte, kGuard);
  fill_pattern(memory, size, kUnwrittenGlobal);
  std::memset(memory + size, kGuardByte, kGuard);
  buffers()[reinterpret_cast<uintptr_t>(memory)] = {size, device};
  return memory;
}

void deallocate_device(void* memory) {
  const auto it = buffers().find(reinterpret_cast<uintptr_t>(memory));
  if (it == buffers().end()) throw InvalidArgument("deallocate: the address is not that of a buffer");
  const size_t bytes = it->second.bytes;
  buffers().erase(it);
  std::memset(memory, 0xdb, std::min<size_t>(bytes, 4096));  // a use after this shows
  std::free(static_cast<unsigned char*>(memory) - kGuard);
}

int64_t allocated_bytes(int device) {
  int64_t sum = 0;
  for (const auto& [address, buffer] : buffers())
    if (buffer.device == device) sum += static_cast<int64_t>(buffer.bytes);
  return sum;
}

Range buffer_at(int device, const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  auto it = buffers().upper_bound(address);
  if (it == buffers().begin()) return {};
  --it;
  const Range range{it->first, it->first + it->second.bytes};
  return it->second.device == device && address < range.end ? range : Range{};
}

std::string describe_outside(int device, const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const auto after = buffers().upper_bound(address);
  if (after != buffers().begin()) {
    const auto& [begin, buffer] = *std::prev(after);
    if (address < begin + buffer.bytes && buffer.device != device) return "in a buffer of another device";
    if (address < begin + buffer.bytes + kNear)
      return concat("past the end of a buffer of ", buffer.bytes, " bytes, at byte ", address - begin);
  }
  if (after != buffers().end() && after->first - address <= kNear)
    return concat(after->first - address, " bytes before a buffer of ", after->second.bytes, " bytes");
  return "in memory that is neither shared nor a buffer of this device";
}

std::string check_guards() {
  std::string found;
  for (const auto& [address, buffer] : buffers()) {
    unsigned char* zones[2] = {pointer(address) - kGuard, pointer(address) + buffer.bytes};
    for (int i = 0; i < 2; ++i) {
      if (intact(zones[i])) continue;
      const auto* end = zones[i] + kGuard;
      const auto* first =
          std::find_if(zones[i], zones[i] + kGuard, [](unsigned char c) { return c != kGuardByte; });
      found = i == 0 ? concat("wrote ", end - first, " bytes before a buffer of ", buffer.bytes, " bytes")
                     : concat("wrote past the end of a buffer of ", buffer.bytes, " bytes, at byte ",
                              static_cast<size_t>(first - zones[i]) + buffer.bytes);
      std::memset(zones[i], kGuardByte, kGuard);
    }
  }
  return found;
}

}  // namespace trivium::emu
