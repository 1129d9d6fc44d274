#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>

#include "io/json.h"
#include "io/safetensors.h"
#include "io/safetensors_header.h"
#include "io/tokenizer.h"

namespace trivium::io {
namespace {

constexpr size_t kDataAlignment = 64;  // of the data region, by spaces at the end of the header
constexpr size_t kWriteBytes = 16 << 20;

using NamedTensor = std::pair<std::string, Tensor>;

void check_tensors(const std::string& path, const std::vector<NamedTensor>& tensors) {
  std::set<std::string_view> names;
  for (const auto& [name, tensor] : tensors) {
    const auto refuse = [&, &tensor_name = name](const char* why) {
      throw InvalidArgument(
          concat("save_safetensors ", path, ": tensor \"", printable(tensor_name), "\" ", why));
    };
    if (name == "__metadata__") refuse("has a reserved name");
    if (sanitize_utf8(name) != name) refuse("has a name that is not valid UTF-8");
    if (!names.insert(name).second) refuse("is given twice");
    if (tensor.device() != Device{}) refuse("is not on the cpu");
    if (!tensor.defined() || !tensor.is_contiguous()) refuse("is not contiguous");
  }
}

// Larger elements first, so that every tensor is aligned to its element size.
std::vector<const NamedTensor*> in_file_order(const std::vector<NamedTensor>& tensors) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& tensor : tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    return size_of(a->second.dtype()) > size_of(b->second.dtype());
  });
  return order;
}

// The first bytes of the file, up to the data. transformers wants the "format" key.
std::string make_header(const std::vector<const NamedTensor*>& order) {
  JsonWriter json;
  json.begin_object().key("__metadata__").begin_object().key("format").string("pt").end_object();
  int64_t offset = 0;
  for (const NamedTensor* named : order) {
    const Tensor& tensor = named->second;
    json.key(named->first).begin_object().key("dtype").string(tag_of(tensor.dtype()));
    json.key("shape").begin_array();
    for (const int64_t extent : tensor.shape()) json.integer(extent);
    json.end_array().key("data_offsets").begin_array().integer(offset).integer(offset + tensor.nbytes());
    json.end_array().end_object();
    offset += tensor.nbytes();
  }
  json.end_object();
  const size_t end = kSafetensorsPrefixBytes + json.text().size();
  const std::string padding((kDataAlignment - end % kDataAlignment) % kDataAlignment, ' ');
  const uint64_t length = json.text().size() + padding.size();
  TRIVIUM_CHECK(length <= static_cast<uint64_t>(kMaxSafetensorsHeaderBytes) && order.size() <= kMaxTensors,
                "save_safetensors: ", order.size(), " tensors make a header of ", length, " bytes, at most ",
                kMaxSafetensorsHeaderBytes, " are allowed");
  std::string header(sizeof length, '\0');
  std::memcpy(header.data(), &length, sizeof length);
  return header + json.text() + padding;
}

// Writes beside `path` under a temporary name, which is removed unless commit() is reached.
class NewFile {
 public:
  explicit NewFile(const std::string& path) : path_(path), temporary_(concat(path, ".", ::getpid(), ".tmp")) {
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0) fail("cannot be created");
  }
  ~NewFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!committed_) ::unlink(temporary_.c_str());
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void write(const char* data, size_t bytes) {
    while (bytes > 0) {
      const ssize_t written = ::write(descriptor_, data, std::min(bytes, kWriteBytes));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail("cannot be written");
      data += written;
      bytes -= static_cast<size_t>(written);
    }
  }

  void commit() {
    if (::fsync(descriptor_) != 0) fail("cannot be written");
    const int descriptor = descriptor_;
    descriptor_ = -1;
    if (::close(descriptor) != 0) fail("cannot be written");
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot be put in place");
    committed_ = true;
    // Without this the new name may not survive a power loss; the data does either way.
    const std::filesystem::path folder = std::filesystem::path(path_).parent_path();
    const int folder_descriptor = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC);
    if (folder_descriptor < 0) return;
    ::fsync(folder_descriptor);
    ::close(folder_descriptor);
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw IoError(concat(path_, ": ", what, ": ", std::strerror(errno)));
  }

  std::string path_, temporary_;
  int descriptor_ = -1;
  bool committed_ = false;
};

}  // namespace

void save_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors) {
  check_tensors(path, tensors);
  const std::vector<const NamedTensor*> order = in_file_order(tensors);
  const std::string header = make_header(order);
  NewFile file(path);
  file.write(header.data(), header.size());
  for (const NamedTensor* named : order)
    file.write(static_cast<const char*>(named->second.data()), static_cast<size_t>(named->second.nbytes()));
  file.commit();
}

}  // namespace trivium::io
