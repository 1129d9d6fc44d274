#include "core/dtype.h"

namespace trivium {
namespace {

struct DtypeInfo {
  const char* name;
  int64_t size;
};

constexpr DtypeInfo kInfo[] = {{"float32", 4}, {"bfloat16", 2}, {"float16", 2}, {"float64", 8},
                               {"int64", 8},   {"int32", 4},    {"int16", 2},   {"int8", 1},
                               {"uint8", 1},   {"uint16", 2},   {"uint32", 4},  {"bool", 1}};

}  // namespace

int64_t size_of(Dtype dtype) { return kInfo[static_cast<int>(dtype)].size; }

const char* name_of(Dtype dtype) { return kInfo[static_cast<int>(dtype)].name; }

Dtype parse_dtype(std::string_view name) {
  for (int i = 0; i < static_cast<int>(std::size(kInfo)); ++i)
    if (name == kInfo[i].name) return static_cast<Dtype>(i);
  throw InvalidArgument(
      concat("unknown dtype \"", printable(name), "\"; expected float32, bfloat16, float16, ..."));
}

std::ostream& operator<<(std::ostream& out, Dtype dtype) { return out << name_of(dtype); }

}  // namespace trivium
