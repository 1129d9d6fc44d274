// The mappings of this process that the SIGBUS handler knows. Used by FileBytes only.
#pragma once

#include <cstdint>
#include <string>

namespace trivium::io {

struct MappedRange;

MappedRange* add_mapped_range(const char* begin, int64_t bytes, const std::string& path);
void remove_mapped_range(MappedRange* range);  // before munmap
bool is_damaged(const MappedRange* range);     // a read found pages gone

}  // namespace trivium::io
