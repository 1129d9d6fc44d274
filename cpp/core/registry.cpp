#include "core/registry.h"

#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>

#include "core/log.h"

namespace trivium {

const trivium_backend_v1& cpu_backend();  // cpu/backend.cpp

namespace {

namespace fs = std::filesystem;

struct Entry {
  const trivium_backend_v1* backend = nullptr;
  std::string file, reason;
  bool tried = false;
};

std::recursive_mutex g_mutex;
std::map<DeviceKind, Entry> g_entries;

// Where backends may lie: TRIVIUM_BACKEND_PATH (ignored for setuid programs), then backends/ beside this
// library.
std::vector<std::string> search_folders() {
  std::vector<std::string> folders;
  if (const char* path = ::secure_getenv("TRIVIUM_BACKEND_PATH"); path && *path) {
    struct stat info {};
    if (::stat(path, &info) == 0 && (info.st_mode & S_IWOTH) && !(info.st_mode & S_ISVTX))
      warn(concat("TRIVIUM_BACKEND_PATH ", path, " is writable by everyone and was ignored"));
    else
      folders.emplace_back(path);
  }
  Dl_info self{};
  if (::dladdr(reinterpret_cast<void*>(&search_folders), &self) && self.dli_fname)
    folders.push_back((fs::path(self.dli_fname).parent_path() / "backends").string());
  return folders;
}

// The backend's table, or an explanation of what is wrong with the library.
const trivium_backend_v1& checked(const trivium_backend_v1* table, const std::string& path) {
  if (!table)
    throw DeviceError(
        concat(path, ": does not serve backend ABI ", kBackendAbi, " (built for another release)"));
  if (table->abi != kBackendAbi || table->struct_size != sizeof(trivium_backend_v1))
    throw DeviceError(concat(path, ": backend ABI ", table->abi, ", expected ", kBackendAbi));
  const std::string_view built = table->build_id ? table->build_id : "";
  if (built != build_id())
    throw DeviceError(concat(path, ": built as ", printable(built), ", this library is ", build_id()));
  if (!table->runtime || !table->kernels || !table->last_error)
    throw DeviceError(concat(path, ": one of its tables is missing"));
  if (table->runtime->struct_size != sizeof(Runtime) || table->kernels->struct_size != sizeof(Kernels))
    throw DeviceError(concat(path, ": its tables have another size than this library's"));
  return *table;
}

Entry& find_entry(DeviceKind kind) {
  Entry& entry = g_entries[kind];
  if (entry.tried) return entry;
  entry.tried = true;
  if (kind == DeviceKind::cpu) {
    entry.backend = &cpu_backend();
    return entry;
  }
  const std::string file = concat("libtrivium_", name_of(kind), ".so");
  entry.reason = "not built into this installation";
  for (const auto& folder : search_folders()) {
    const std::string path = folder + "/" + file;
    if (::access(path.c_str(), F_OK) != 0) continue;
    entry.file = path;
    try {
      const trivium_backend_v1& table = load_backend_file(path);
      if (table.kind != kind) throw DeviceError(concat(path, ": is a backend for ", name_of(table.kind)));
      entry.backend = &table;
      entry.reason.clear();
    } catch (const Error& e) {
      entry.reason = e.what();
    }
    break;
  }
  return entry;
}

// The sentence that says why a device of a loaded backend cannot be used; "" when it can.
std::string refusal_of(Device device) {
  DeviceProperties properties{};
  const Status status = runtime(device).device_properties(device.index, &properties);
  return status == Status::ok ? "" : backend(device.kind).last_error();
}

[[noreturn]] void throw_with(Status status, const std::string& message) {
  switch (status) {
    case Status::invalid_argument:
      throw InvalidArgument(message);
    case Status::device_error:
      throw DeviceError(message);
    case Status::out_of_memory:
      throw OutOfMemory(message);
    case Status::not_implemented:
      throw NotImplemented(message);
    default:
      throw Error(message);
  }
}

}  // namespace

void throw_status(DeviceKind kind, Status status) { throw_with(status, backend(kind).last_error()); }

const trivium_backend_v1& load_backend_file(const std::string& path) {
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* reason = ::dlerror();
    throw DeviceError(concat(path, ": cannot be loaded: ", reason ? reason : "unknown reason"));
  }
  const auto get =
      reinterpret_cast<const trivium_backend_v1* (*)(uint32_t)>(::dlsym(library, "trivium_backend_get"));
  try {
    if (!get) throw DeviceError(concat(path, ": is not a backend (no symbol trivium_backend_get)"));
    const trivium_backend_v1& table = checked(get(kBackendAbi), path);
    const std::lock_guard lock(g_mutex);
    g_entries[table.kind] = {&table, path, "", true};
    return table;
  } catch (...) {
    ::dlclose(library);
    throw;
  }
}

const trivium_backend_v1& backend(DeviceKind kind) {
  if (kind == DeviceKind::cpu) [[likely]]
    return cpu_backend();
  const std::lock_guard lock(g_mutex);
  const Entry& entry = find_entry(kind);
  if (!entry.backend) throw DeviceError(concat("device ", name_of(kind), " cannot be had: ", entry.reason));
  return *entry.backend;
}

int device_count(DeviceKind kind) {
  const std::lock_guard lock(g_mutex);
  Entry& entry = find_entry(kind);
  if (!entry.backend) return 0;
  int32_t count = 0;
  const Status status = entry.backend->runtime->device_count(&count);
  if (status != Status::ok || count == 0) {
    entry.reason = entry.backend->last_error();
    if (entry.reason.empty()) entry.reason = "no device";
    return 0;
  }
  return count;
}

StreamHandle* default_stream(Device device) {
  static std::mutex mutex;
  static std::map<std::pair<DeviceKind, int>, StreamHandle*>
      streams;  // as long as the process, like the backends
  const std::lock_guard lock(mutex);
  StreamHandle*& stream = streams[{device.kind, device.index}];
  if (!stream)
    if (const Status status = runtime(device).stream_create(device.index, &stream); status != Status::ok)
      throw_status(device.kind, status);
  return stream;
}

void synchronize(Device device, StreamHandle* stream) {
  if (const Status status = runtime(device).stream_synchronize(stream); status != Status::ok)
    throw_status(device.kind, status);
}

DeviceProperties device_properties(Device device) {
  DeviceProperties properties{};
  const Status status = runtime(device).device_properties(device.index, &properties);
  if (status != Status::ok) throw_status(device.kind, status);
  return properties;
}

std::vector<BackendReport> backend_report() {
  std::vector<BackendReport> reports;
  for (const DeviceKind kind : {DeviceKind::cpu, DeviceKind::cuda, DeviceKind::hip}) {
    const int count = device_count(kind);
    const std::lock_guard lock(g_mutex);
    const Entry& entry = find_entry(kind);
    BackendReport report{name_of(kind), entry.backend != nullptr, entry.file, entry.reason, {}, {}};
    for (int i = 0; i < count; ++i) {
      report.refusals.push_back(kind == DeviceKind::cpu ? "" : refusal_of({kind, i}));
      report.devices.push_back(report.refusals.back().empty() ? device_properties({kind, i})
                                                              : DeviceProperties{});
    }
    reports.push_back(std::move(report));
  }
  return reports;
}

const char* build_id() { return TRIVIUM_BUILD_ID; }

Device parse_device(std::string_view text) {
  if (text == "auto") {
    for (const DeviceKind kind : {DeviceKind::cuda, DeviceKind::hip})
      for (int i = 0, count = device_count(kind); i < count; ++i)
        if (refusal_of({kind, i}).empty()) return {kind, i};
    return {};
  }
  const size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  int index = 0;
  bool good = true;
  if (colon != std::string_view::npos) {
    const std::string_view digits = text.substr(colon + 1);
    good = !digits.empty() && digits.size() <= 4;
    for (const char c : digits) {
      good = good && c >= '0' && c <= '9';
      index = index * 10 + (c - '0');
    }
  }
  for (const DeviceKind kind : {DeviceKind::cpu, DeviceKind::cuda, DeviceKind::hip, DeviceKind::emu32,
                                DeviceKind::emu64, DeviceKind::test}) {
    if (!good || name != name_of(kind)) continue;
    const int count = kind == DeviceKind::cpu ? 1 : device_count(kind);
    if (index < count) {
      const Device device{kind, index};
      const std::string refusal = kind == DeviceKind::cpu ? "" : refusal_of(device);
      if (!refusal.empty()) throw DeviceError(refusal);
      return device;
    }
    if (count > 0)
      throw DeviceError(
          concat("device ", printable(text), " does not exist: ", name, " has ", count, " device(s)"));
    const std::lock_guard lock(g_mutex);
    throw DeviceError(concat("device ", printable(text), " cannot be had: ", find_entry(kind).reason));
  }
  throw InvalidArgument(
      concat("unknown device \"", printable(text), "\"; expected auto, cpu, cuda, cuda:N, hip or hip:N"));
}

}  // namespace trivium
