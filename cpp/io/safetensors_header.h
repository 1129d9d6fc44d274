// The header of a safetensors file: parsed and checked against the file's size, nothing mapped.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "io/safetensors.h"

namespace trivium::io {

inline constexpr int64_t kSafetensorsPrefixBytes = 8;               // little-endian length of the header
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // as in the format description
inline constexpr size_t kMaxTensors = 1'000'000;

// Bytes of the JSON header, from the first bytes of the file (at most 8 are read; fewer in a shorter file).
int64_t safetensors_header_bytes(std::string_view start, int64_t file_size, const std::string& file_name);

// The tensors in the order of their data. `header` is the JSON text. Throws ModelFormatError unless the data
// region, from the end of the header to the end of the file, is covered exactly: without overlap, hole or
// rest.
std::vector<TensorEntry> parse_safetensors_header(std::string_view header, int64_t file_size,
                                                  const std::string& file_name);

std::optional<Dtype> dtype_of_tag(std::string_view tag);  // nothing when we have no such dtype
std::string_view tag_of(Dtype dtype);

}  // namespace trivium::io
