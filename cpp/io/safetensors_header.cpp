#include "io/safetensors_header.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "io/json.h"

namespace trivium::io {
namespace {

struct Tag {
  std::string_view name;
  int64_t bits;
  std::optional<Dtype> dtype;
};

constexpr Tag kTags[] = {
    {"F32", 32, Dtype::f32},          {"BF16", 16, Dtype::bf16},    {"F16", 16, Dtype::f16},
    {"F64", 64, Dtype::f64},          {"I64", 64, Dtype::i64},      {"I32", 32, Dtype::i32},
    {"I16", 16, Dtype::i16},          {"I8", 8, Dtype::i8},         {"U8", 8, Dtype::u8},
    {"U16", 16, Dtype::u16},          {"U32", 32, Dtype::u32},      {"BOOL", 8, Dtype::boolean},
    {"U64", 64, std::nullopt},        {"C64", 64, std::nullopt},    {"F8_E4M3", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt},     {"F8_E8M0", 8, std::nullopt}, {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E5M2FNUZ", 8, std::nullopt}, {"F6_E2M3", 6, std::nullopt}, {"F6_E3M2", 6, std::nullopt},
    {"F4", 4, std::nullopt},
};

const Tag* find_tag(std::string_view name) {
  for (const Tag& tag : kTags)
    if (tag.name == name) return &tag;
  return nullptr;
}

// {"NAME": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {"key": "value"}}
// Fields that the format does not name are skipped with all they contain.
class HeaderHandler final : public JsonHandler {
 public:
  HeaderHandler(const std::string& file, int64_t data_begin) : file_(file), data_begin_(data_begin) {}
  std::vector<TensorEntry> take() { return std::move(entries_); }

  void on_null() override {
    if (place_ == Place::metadata_value) return void(place_ = Place::root);
    scalar();
  }
  void on_bool(bool) override { scalar(); }
  void on_number(double) override { scalar(); }
  void on_integer(int64_t value) override {
    if (place_ != Place::shape && place_ != Place::offsets) return scalar();
    if (value < 0) bad_numbers();
    numbers().push_back(value);
    if (numbers().size() > (place_ == Place::shape ? size_t{Shape::kMaxRank} : 2)) bad_numbers();
  }
  void on_unsigned(uint64_t) override {
    if (place_ == Place::shape || place_ == Place::offsets) bad_numbers();
    scalar();
  }
  void on_string(std::string_view value) override {
    if (place_ == Place::metadata) return;
    if (place_ != Place::dtype) return scalar();
    tag_ = value;
    place_ = Place::tensor;
  }
  void on_start_object() override {
    switch (place_) {
      case Place::start:
        place_ = Place::root;
        break;
      case Place::metadata_value:
        place_ = Place::metadata;
        break;
      case Place::tensor_value:
        place_ = Place::tensor;
        break;
      default:
        open_nested();
    }
  }
  void on_start_array() override {
    if (place_ == Place::shape_value)
      place_ = Place::shape;
    else if (place_ == Place::offsets_value)
      place_ = Place::offsets;
    else
      open_nested();
  }
  void on_end_array() override {
    if (place_ == Place::skip)
      close_nested();
    else
      place_ = Place::tensor;
  }
  void on_end_object() override {
    if (place_ == Place::skip) return close_nested();
    if (place_ == Place::tensor) finish_tensor();
    place_ = place_ == Place::root ? Place::start : Place::root;
  }
  void on_key(std::string_view key) override {
    if (place_ == Place::root) return start_member(key);
    if (place_ == Place::tensor) start_field(key);
  }

 private:
  enum class Place {
    start,           // before and after the root object
    root,            // in the root object
    metadata_value,  // after "__metadata__"
    metadata,        // in its object
    tensor_value,    // after a tensor's name
    tensor,          // in its object
    dtype,           // after "dtype"
    shape_value,     // after "shape"
    shape,           // in its array
    offsets_value,   // after "data_offsets"
    offsets,         // in its array
    skip             // in or before the value of a field that is ignored
  };

  [[noreturn]] void fail(const std::string& why) const {
    throw ModelFormatError(concat(file_, ": the safetensors header is invalid: ", why));
  }
  [[noreturn]] void fail_tensor(const std::string& why) const {
    throw ModelFormatError(concat(file_, ": tensor \"", printable(name_), "\": ", why));
  }
  std::vector<int64_t>& numbers() { return place_ == Place::shape ? shape_ : offsets_; }

  [[noreturn]] void bad_numbers() const {
    if (place_ == Place::shape)
      fail_tensor(concat("shape must have at most ", Shape::kMaxRank, " extents, each from 0 to 2^63 - 1"));
    fail_tensor("data_offsets must be two integers from 0 to 2^63 - 1");
  }

  // A value that is not what its place asks for, unless it is ignored.
  void unexpected() const {
    switch (place_) {
      case Place::start:
        fail("expected an object");
      case Place::metadata_value:
        fail("__metadata__ must be an object");
      case Place::metadata:
        fail("__metadata__ must hold strings only");
      case Place::tensor_value:
        fail_tensor("must be an object with dtype, shape and data_offsets");
      case Place::dtype:
        fail_tensor("dtype must be a string");
      case Place::shape_value:
      case Place::shape:
        fail_tensor("shape must be a list of integers");
      case Place::offsets_value:
      case Place::offsets:
        fail_tensor("data_offsets must be two integers");
      default:
        break;
    }
  }
  void scalar() {
    unexpected();
    if (nested_ == 0) place_ = Place::tensor;
  }
  void open_nested() {
    unexpected();
    ++nested_;
  }
  void close_nested() {
    if (--nested_ == 0) place_ = Place::tensor;
  }

  void start_member(std::string_view key) {
    if (key == "__metadata__") {
      if (has_metadata_) fail("__metadata__ appears twice");
      has_metadata_ = true;
      place_ = Place::metadata_value;
      return;
    }
    if (entries_.size() == kMaxTensors) fail(concat("it has more than ", kMaxTensors, " tensors"));
    name_ = key;
    has_dtype_ = has_shape_ = has_offsets_ = false;
    shape_.clear();
    offsets_.clear();
    place_ = Place::tensor_value;
  }

  void start_field(std::string_view key) {
    if (key == "dtype") return start_field(key, has_dtype_, Place::dtype);
    if (key == "shape") return start_field(key, has_shape_, Place::shape_value);
    if (key == "data_offsets") return start_field(key, has_offsets_, Place::offsets_value);
    place_ = Place::skip;
  }
  void start_field(std::string_view key, bool& seen, Place place) {
    if (seen) fail_tensor(concat(key, " appears twice"));
    seen = true;
    place_ = place;
  }

  void finish_tensor() {
    if (!has_dtype_ || !has_shape_ || offsets_.size() != 2)
      fail_tensor("needs dtype, shape and two data_offsets");
    const int64_t begin = offsets_[0];
    const int64_t end = offsets_[1];
    if (begin > end) fail_tensor(concat("data_offsets [", begin, ", ", end, "] run backwards"));
    const Shape shape{std::span<const int64_t>(shape_)};
    check_bytes(shape, end - begin);
    TensorEntry entry{name_, tag_, shape, 0, 0, 0};
    if (__builtin_add_overflow(begin, data_begin_, &entry.begin) ||
        __builtin_add_overflow(end, data_begin_, &entry.end))
      fail_tensor(concat("data_offsets [", begin, ", ", end, "] are out of range"));
    entries_.push_back(std::move(entry));
  }

  void check_bytes(const Shape& shape, int64_t bytes) const {
    uint64_t elements = 1;
    for (const int64_t extent : shape)
      if (__builtin_mul_overflow(elements, static_cast<uint64_t>(extent), &elements) || elements > INT64_MAX)
        fail_tensor(concat("shape ", shape, " has more than 2^63 elements"));
    const Tag* tag = find_tag(tag_);
    if (tag == nullptr) return;
    uint64_t bits = 0;
    if (__builtin_mul_overflow(elements, static_cast<uint64_t>(tag->bits), &bits))
      fail_tensor(concat("shape ", shape, " ", tag_, " is larger than any file"));
    if (bits % 8 != 0) fail_tensor(concat("shape ", shape, " ", tag_, " does not fill whole bytes"));
    if (bits / 8 != static_cast<uint64_t>(bytes))
      fail_tensor(
          concat("shape ", shape, " ", tag_, " needs ", bits / 8, " bytes, data_offsets span ", bytes));
  }

  const std::string& file_;
  int64_t data_begin_;
  std::vector<TensorEntry> entries_;
  Place place_ = Place::start;
  int nested_ = 0;  // open arrays and objects of an ignored field
  bool has_metadata_ = false;
  // The tensor being read.
  std::string name_, tag_;
  std::vector<int64_t> shape_, offsets_;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
};

void check_names_differ(const std::vector<TensorEntry>& entries, const std::string& file) {
  std::vector<std::string_view> names;
  names.reserve(entries.size());
  for (const TensorEntry& entry : entries) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end())
    throw ModelFormatError(concat(file, ": tensor \"", printable(*twice), "\" appears twice"));
}

// `entries` are sorted by their place in the file.
void check_cover(const std::vector<TensorEntry>& entries, int64_t data_begin, int64_t file_size,
                 const std::string& file) {
  int64_t covered = data_begin;
  for (const TensorEntry& entry : entries) {
    if (entry.begin != covered)
      throw ModelFormatError(concat(file, ": tensor \"", printable(entry.name), "\" begins at data byte ",
                                    entry.begin - data_begin, ", expected ", covered - data_begin,
                                    entry.begin < covered ? " (tensors overlap)" : " (a hole in the data)"));
    covered = entry.end;
    if (covered > file_size)
      throw ModelFormatError(concat(file, ": file ends at byte ", file_size, " but tensor \"",
                                    printable(entry.name), "\" needs ", covered,
                                    ". The download is probably incomplete."));
  }
  if (covered != file_size)
    throw ModelFormatError(concat(file, ": ", file_size - covered,
                                  " bytes follow the last tensor, which ends at byte ", covered));
}

}  // namespace

std::optional<Dtype> dtype_of_tag(std::string_view tag) {
  const Tag* found = find_tag(tag);
  return found == nullptr ? std::nullopt : found->dtype;
}

std::string_view tag_of(Dtype dtype) {
  for (const Tag& tag : kTags)
    if (tag.dtype == dtype) return tag.name;
  throw InvalidArgument(concat("dtype ", dtype, " has no safetensors name"));
}

int64_t safetensors_header_bytes(std::string_view start, int64_t file_size, const std::string& file_name) {
  if (file_size < kSafetensorsPrefixBytes || start.size() < kSafetensorsPrefixBytes)
    throw ModelFormatError(concat(file_name, ": has ", file_size, " bytes, a safetensors file at least 8",
                                  ". The download is probably incomplete."));
  if (start.starts_with("version "))
    throw ModelFormatError(
        concat(file_name, ": is a Git LFS pointer, not the weights; fetch them with \"git lfs pull\""));
  uint64_t length = 0;
  std::memcpy(&length, start.data(), sizeof length);  // little-endian, as every machine we build for
  if (length == 0 || length > kMaxSafetensorsHeaderBytes)
    throw ModelFormatError(concat(file_name, ": the header length is ", length, ", expected 1 to ",
                                  kMaxSafetensorsHeaderBytes, " bytes; this is not a safetensors file"));
  const auto end = kSafetensorsPrefixBytes + static_cast<int64_t>(length);
  if (end > file_size)
    throw ModelFormatError(concat(file_name, ": file ends at byte ", file_size, " but its header needs ", end,
                                  ". The download is probably incomplete."));
  return static_cast<int64_t>(length);
}

std::vector<TensorEntry> parse_safetensors_header(std::string_view header, int64_t file_size,
                                                  const std::string& file_name) {
  const int64_t data_begin = kSafetensorsPrefixBytes + static_cast<int64_t>(header.size());
  HeaderHandler handler(file_name, data_begin);
  parse_json(header, file_name, {.max_bytes = kMaxSafetensorsHeaderBytes, .max_depth = 64}, handler);
  std::vector<TensorEntry> entries = handler.take();
  check_names_differ(entries, file_name);
  std::sort(entries.begin(), entries.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  check_cover(entries, data_begin, file_size, file_name);
  return entries;
}

}  // namespace trivium::io
