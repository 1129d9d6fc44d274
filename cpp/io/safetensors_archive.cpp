#include "io/safetensors_archive.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "io/hash.h"
#include "io/safetensors_header.h"

namespace trivium::io {
namespace {

// A fingerprint looks at this many tensors at most, at the start, the middle and the end of each.
constexpr size_t kSampledTensors = 4096;
constexpr int64_t kSampleBytes = 64;

uint64_t hash_samples(std::string_view data, uint64_t seed) {
  const auto size = static_cast<int64_t>(data.size());
  const int64_t last = std::max<int64_t>(0, size - kSampleBytes);
  for (const int64_t offset : {int64_t{0}, last / 2, last})
    seed = hash64(data.substr(static_cast<size_t>(offset), kSampleBytes), seed);
  return seed;
}

}  // namespace

FileArchive::FileArchive(std::vector<WeightFile> files, LoadMode mode) {
  files_.reserve(files.size());
  for (WeightFile& file : files) {
    const int index = static_cast<int>(files_.size());
    for (TensorEntry& tensor : file.tensors) {
      tensor.file = index;
      const auto [place, added] =
          entries_.try_emplace(tensor.name, std::move(tensor));  // moved only if added
      if (!added)
        throw ModelFormatError(concat(file.input.path(), ": tensor \"", printable(tensor.name),
                                      "\" is also in ",
                                      files_[static_cast<size_t>(place->second.file)].input.path()));
    }
    files_.push_back({std::move(file.input), std::move(file.header), nullptr});
  }
  for (File& file : files_) {
    const bool copy = mode == LoadMode::read || (mode == LoadMode::automatic && file.input.is_remote());
    file.bytes = copy ? FileBytes::read(file.input, static_cast<int64_t>(file.header.size()))
                      : FileBytes::map(file.input);
  }
}

const TensorEntry& FileArchive::entry(std::string_view name) const {
  const auto found = entries_.find(name);
  if (found != entries_.end()) return found->second;
  const std::string where = files_.size() == 1 ? files_[0].input.path()
                            : files_.empty()
                                ? std::string("the archive")
                                : std::filesystem::path(files_[0].input.path()).parent_path().string();
  throw ModelFormatError(concat(where, ": tensor \"", printable(name), "\" is missing"));
}

Tensor FileArchive::tensor(std::string_view name) const {
  const TensorEntry& found = entry(name);
  const File& file = files_[static_cast<size_t>(found.file)];
  const std::optional<Dtype> dtype = dtype_of_tag(found.dtype_tag);
  if (!dtype)
    throw ModelFormatError(concat(file.input.path(), ": tensor \"", printable(name), "\" has dtype \"",
                                  printable(found.dtype_tag), "\", which is not supported"));
  char* data = const_cast<char*>(file.bytes->data()) + found.begin;
  const std::shared_ptr<void> owner = file.bytes;
  const bool aligned = reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(size_of(*dtype)) == 0;
  if (aligned) return Tensor::wrap(data, found.shape, *dtype, Device{}, owner, {}, true);
  // The format does not promise alignment; elements that straddle their natural place have to be copied.
  const Tensor copy = Tensor::empty(found.shape, *dtype);
  guarded([&] { std::memcpy(copy.data(), data, static_cast<size_t>(copy.nbytes())); });
  return Tensor::wrap(copy.data(), found.shape, *dtype, Device{}, copy.owner(), {}, true);
}

int64_t FileArchive::total_bytes() const {
  int64_t total = 0;
  for (const File& file : files_) total += file.input.size();
  return total;
}

std::string FileArchive::file_of(std::string_view name) const {
  return files_[static_cast<size_t>(entry(name).file)].input.path();
}

uint64_t FileArchive::fingerprint() const {
  uint64_t hash = hash64("trivium weights 1");
  for (const File& file : files_) {
    hash = hash64(std::filesystem::path(file.input.path()).filename().string(), hash);
    const int64_t size = file.input.size();
    hash = hash64({reinterpret_cast<const char*>(&size), sizeof size}, hash);
    hash = hash64(file.header, hash);
  }
  const size_t step = entries_.size() / kSampledTensors + 1;
  guarded([&] {
    size_t position = 0;
    for (const auto& [name, tensor] : entries_) {
      if (position++ % step != 0) continue;
      const char* data = files_[static_cast<size_t>(tensor.file)].bytes->data() + tensor.begin;
      hash = hash_samples({data, static_cast<size_t>(tensor.end - tensor.begin)}, hash);
    }
  });
  return hash;
}

bool FileArchive::is_mapped(const Tensor& tensor) const {
  return std::any_of(files_.begin(), files_.end(), [&](const File& file) {
    return tensor.owner() == file.bytes && file.bytes->is_mapped();
  });
}

void FileArchive::drop_pages(const Tensor& tensor) const {
  if (tensor.nbytes() == 0 || !tensor.is_contiguous()) return;
  for (const File& file : files_)
    if (tensor.owner() == file.bytes) return file.bytes->drop(tensor.data(), tensor.nbytes());
}

void FileArchive::check_readable() const {
  for (const File& file : files_)
    if (file.bytes->damaged())
      throw ModelFormatError(
          concat(file.input.path(),
                 ": a part of the file could not be read; it was truncated or its disk failed while in use"));
}

void FileArchive::check_unchanged() const {
  for (const File& file : files_) file.input.check_unchanged();
  check_readable();
}

}  // namespace trivium::io
