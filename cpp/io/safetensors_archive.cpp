#include "io/safetensors_archive.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "core/parallel.h"
#include "io/hash.h"
#include "io/safetensors_header.h"

namespace trivium::io {
namespace {

// Hashed by one task: small enough to stay in its cache between reading and hashing.
constexpr int64_t kHashedBytes = 1 << 20;
// Between two calls of the progress function.
constexpr int64_t kRound = 256;

}  // namespace

FileArchive::FileArchive(std::vector<WeightFile> files, LoadMode mode, const CancelToken* cancel) {
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
    file.bytes = copy ? FileBytes::read(file.input, static_cast<int64_t>(file.header.size()), cancel)
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

Tensor FileArchive::view(std::string_view name) const {
  const TensorEntry& found = entry(name);
  const File& file = files_[static_cast<size_t>(found.file)];
  const std::optional<Dtype> dtype = dtype_of_tag(found.dtype_tag);
  if (!dtype)
    throw ModelFormatError(concat(file.input.path(), ": tensor \"", printable(name), "\" has dtype \"",
                                  printable(found.dtype_tag), "\", which is not supported"));
  char* data = const_cast<char*>(file.bytes->data()) + found.begin;
  return Tensor::wrap(data, found.shape, *dtype, Device{}, file.bytes, {}, true);
}

Tensor FileArchive::tensor(std::string_view name) const {
  const Tensor t = view(name);
  if (t.is_aligned()) return t;
  const Tensor copy = Tensor::empty(t.shape(), t.dtype());
  guarded([&] { std::memcpy(copy.data(), t.data(), static_cast<size_t>(copy.nbytes())); });
  drop_pages(t);
  return Tensor::wrap(copy.data(), t.shape(), t.dtype(), Device{}, copy.owner(), {}, true);
}

int64_t FileArchive::total_bytes() const {
  int64_t total = 0;
  for (const File& file : files_) total += file.input.size();
  return total;
}

std::string FileArchive::file_of(std::string_view name) const {
  return files_[static_cast<size_t>(entry(name).file)].input.path();
}

uint64_t FileArchive::fingerprint(const CancelToken* cancel, const ByteProgress& progress) const {
  const int64_t total = total_bytes();
  int64_t done = 0;
  uint64_t hash = hash64("trivium weights 2");
  std::vector<uint64_t> hashes;
  for (const File& file : files_) {
    const int64_t size = file.input.size(), chunks = (size + kHashedBytes - 1) / kHashedBytes;
    hashes.assign(static_cast<size_t>(chunks), 0);
    for (int64_t first = 0; first < chunks; first += kRound) {
      const int64_t count = std::min(kRound, chunks - first);
      parallel_for(count, [&](int64_t task, int) {
        if (cancel) cancel->check();
        const int64_t begin = (first + task) * kHashedBytes, bytes = std::min(kHashedBytes, size - begin);
        std::unique_ptr<char[]> buffer;
        if (file.bytes->is_mapped()) {
          buffer = std::make_unique_for_overwrite<char[]>(static_cast<size_t>(bytes));
          file.input.read(begin, buffer.get(), bytes);
        }
        const char* data = buffer ? buffer.get() : file.bytes->data() + begin;
        hashes[static_cast<size_t>(first + task)] = hash64_bulk({data, static_cast<size_t>(bytes)});
      });
      done += std::min(count * kHashedBytes, size - first * kHashedBytes);
      if (progress) progress(done, total);
    }
    hash = hash64(std::filesystem::path(file.input.path()).filename().string(), hash);
    hash = hash64({reinterpret_cast<const char*>(&size), sizeof size}, hash);
    hash = hash64({reinterpret_cast<const char*>(hashes.data()), hashes.size() * sizeof(uint64_t)}, hash);
  }
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
