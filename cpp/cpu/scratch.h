// Scratch memory of the calling thread, 64-byte aligned, reused by the next call.
#pragma once

#include <cstdint>

namespace trivium::cpu {

// decode_rows uses the first, the callers of multiply() the second, attention both.
void* thread_scratch(int64_t bytes);
void* second_scratch(int64_t bytes);

}  // namespace trivium::cpu
