// Device memory of the emulator: host memory between guard zones, with a list of what is allocated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace trivium::emu {

// 256-byte aligned, filled with a NaN pattern.
void* allocate_device(int device, int64_t bytes);
void deallocate_device(void* memory);
int64_t allocated_bytes(int device);

struct Range {
  uintptr_t begin = 0, end = 0;
  bool holds(const void* p, size_t bytes) const {
    const auto address = reinterpret_cast<uintptr_t>(p);
    return begin <= address && address + bytes <= end;
  }
};
// The buffer of `device` that p points into; empty when there is none.
Range buffer_at(int device, const void* p);
// "past the end of a buffer of 64 bytes, at byte 64" when p lies near one, else that it lies in none of the
// device.
std::string describe_outside(int device, const void* p);
// "" or a sentence that says which buffer's neighbours were overwritten. The zones are mended.
std::string check_guards();

}  // namespace trivium::emu
