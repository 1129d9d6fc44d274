#include "io/safetensors.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <filesystem>
#include <set>

#include "io/json.h"
#include "io/safetensors_archive.h"
#include "io/safetensors_header.h"

namespace trivium::io {
namespace {

namespace fs = std::filesystem;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr int64_t kMaxIndexBytes = 32 << 20;

WeightFile open_weight_file(const std::string& path) {
  WeightFile file{InputFile(path), "", {}};
  const int64_t size = file.input.size();
  std::string start(static_cast<size_t>(std::min(size, kSafetensorsPrefixBytes)), '\0');
  file.input.read(0, start.data(), static_cast<int64_t>(start.size()));
  const int64_t header_bytes = safetensors_header_bytes(start, size, path);
  file.header.resize(static_cast<size_t>(kSafetensorsPrefixBytes + header_bytes));
  file.input.read(0, file.header.data(), static_cast<int64_t>(file.header.size()));
  const std::string_view json = std::string_view(file.header).substr(kSafetensorsPrefixBytes);
  file.tensors = parse_safetensors_header(json, size, path);
  return file;
}

bool is_folder(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// An index may name files of its own folder only.
void check_plain_name(const std::string& name, const std::string& index) {
  const bool plain = !name.empty() && name.size() <= NAME_MAX && name != "." && name != ".." &&
                     name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
  if (!plain)
    throw ModelFormatError(
        concat(index, ": \"", printable(name), "\" is not the plain name of a file beside the index"));
}

// tensor name -> shard's file name
std::map<std::string, std::string> read_index(const std::string& path) {
  const JsonValue root =
      parse_json_document(read_small_file(path, kMaxIndexBytes), path,
                          {.max_bytes = static_cast<size_t>(kMaxIndexBytes), .max_depth = 64});
  const JsonValue* weight_map = root.find("weight_map");
  if (weight_map == nullptr || weight_map->object() == nullptr)
    throw ModelFormatError(concat(path, ": weight_map is missing or is not an object"));
  std::map<std::string, std::string> shard_of;
  for (const auto& [tensor, file] : *weight_map->object()) {
    if (file.string() == nullptr)
      throw ModelFormatError(
          concat(path, ": weight_map entry \"", printable(tensor), "\" is not the name of a file"));
    check_plain_name(*file.string(), path);
    shard_of.emplace(tensor, *file.string());
  }
  if (shard_of.empty()) throw ModelFormatError(concat(path, ": weight_map is empty"));
  return shard_of;
}

std::vector<WeightFile> open_indexed(const fs::path& folder) {
  const std::string index = (folder / kIndexFile).string();
  const auto shard_of = read_index(index);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : shard_of) shards.insert(shard);
  std::vector<WeightFile> files;
  std::map<std::string, std::set<std::string_view>> tensors_in;
  for (const std::string& shard : shards) {
    if (!is_present((folder / shard).string()))
      throw ModelFormatError(concat(index, ": shard \"", printable(shard),
                                    "\" is missing. The download is probably incomplete."));
    files.push_back(open_weight_file((folder / shard).string()));
    auto& names = tensors_in[shard];
    for (const TensorEntry& tensor : files.back().tensors) names.insert(tensor.name);
  }
  for (const auto& [tensor, shard] : shard_of)
    if (!tensors_in[shard].contains(tensor))
      throw ModelFormatError(
          concat(index, ": tensor \"", printable(tensor), "\" is not in \"", printable(shard), "\""));
  return files;
}

std::vector<WeightFile> open_unindexed(const fs::path& folder) {
  std::set<std::string> paths;  // sorted: the order of files is part of the fingerprint
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    if (it->path().extension() == ".safetensors") paths.insert(it->path().string());
  if (error) throw IoError(concat(folder.string(), ": cannot be listed: ", error.message()));
  if (paths.empty())
    throw ModelFormatError(concat(folder.string(), ": has no ", kSingleFile, ", no ", kIndexFile,
                                  " and no other .safetensors file"));
  std::vector<WeightFile> files;
  for (const std::string& path : paths) files.push_back(open_weight_file(path));
  return files;
}

std::vector<WeightFile> open_folder(const fs::path& folder) {
  if (is_present((folder / kSingleFile).string())) {
    std::vector<WeightFile> files;
    files.push_back(open_weight_file((folder / kSingleFile).string()));
    return files;
  }
  return is_present((folder / kIndexFile).string()) ? open_indexed(folder) : open_unindexed(folder);
}

}  // namespace

std::shared_ptr<TensorArchive> TensorArchive::open(const std::string& path, LoadMode mode,
                                                   const CancelToken* cancel) {
  std::vector<WeightFile> files;
  if (is_folder(path))
    files = open_folder(path);
  else
    files.push_back(open_weight_file(path));
  return std::make_shared<FileArchive>(std::move(files), mode, cancel);
}

}  // namespace trivium::io
