#include "getp/journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "core/error.h"
#include "getp/files.h"
#include "io/hash.h"
#include "io/json.h"

namespace trivium::getp {

namespace {

static_assert(std::endian::native == std::endian::little, "journals are little-endian");
constexpr std::string_view kMagic = "TRVJRNL1";
constexpr auto kSyncEvery = std::chrono::seconds(2);
constexpr size_t kFrameBytes = 8;  // length and checksum

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// Takes a value off the front; false when too few bytes are left.
template <class T>
bool take(std::string_view& in, T& value) {
  if (in.size() < sizeof value) return false;
  std::memcpy(&value, in.data(), sizeof value);
  in.remove_prefix(sizeof value);
  return true;
}

std::string frame(std::string_view payload) {
  std::string out;
  put(out, static_cast<uint32_t>(payload.size()));
  put(out, io::crc32c(payload, io::crc32c(out)));
  return out.append(payload);
}

// The next intact payload, taken off the front of `in`.
std::optional<std::string_view> take_frame(std::string_view& in) {
  std::string_view rest = in;
  uint32_t bytes = 0, crc = 0;
  if (!take(rest, bytes) || !take(rest, crc) || rest.size() < bytes) return std::nullopt;
  if (io::crc32c(rest.substr(0, bytes), io::crc32c(in.substr(0, sizeof bytes))) != crc) return std::nullopt;
  in = rest.substr(bytes);
  return rest.substr(0, bytes);
}

std::string encode(const JournalRecord& record) {
  std::string out;
  put(out, record.index);
  put(out, record.request_hash);
  put(out, static_cast<uint8_t>(record.finish_reason));
  put(out, static_cast<uint32_t>(record.tokens.size()));
  out.append(reinterpret_cast<const char*>(record.tokens.data()), record.tokens.size() * sizeof(int32_t));
  return out;
}

std::optional<JournalRecord> decode(std::string_view in) {
  JournalRecord record;
  uint8_t reason = 0;
  uint32_t count = 0;
  if (!take(in, record.index) || !take(in, record.request_hash) || !take(in, reason) || !take(in, count))
    return std::nullopt;
  if (in.size() != count * sizeof(int32_t) || reason > static_cast<uint8_t>(FinishReason::length))
    return std::nullopt;
  record.finish_reason = static_cast<FinishReason>(reason);
  record.tokens.resize(count);
  if (count > 0) std::memcpy(record.tokens.data(), in.data(), in.size());
  return record;
}

std::string shown(const io::JsonValue* value) {
  if (!value) return "none";
  if (const auto* text = value->string()) return printable(*text);
  if (value->is_integer()) return std::to_string(value->integer());
  if (value->is_number()) return concat(value->number());
  if (const auto* flag = value->boolean()) return *flag ? "true" : "false";
  return "another list";
}

bool same(const io::JsonValue* a, const io::JsonValue* b) {
  if (!a || !b) return a == b;
  if (const auto* list = a->array()) {
    if (!b->array() || b->array()->size() != list->size()) return false;
    for (size_t i = 0; i < list->size(); ++i)
      if (!same(&(*list)[i], &(*b->array())[i])) return false;
    return true;
  }
  return shown(a) == shown(b);
}

// "precision was float32 and is bfloat16 now"; empty when the two configurations agree.
std::string difference(std::string_view was_text, const std::string& now_text, const std::string& path) {
  const io::JsonValue was = io::parse_json_document(was_text, path),
                      now = io::parse_json_document(now_text, path);
  std::string out;
  const auto add = [&](const std::string& key) {
    const auto *a = was.find(key), *b = now.find(key);
    if (!same(a, b))
      out += concat(out.empty() ? "" : ", ", key, " was ", shown(a), " and is ", shown(b), " now");
  };
  for (const auto& [key, value] : *now.object()) add(key);
  if (was.object())
    for (const auto& [key, value] : *was.object())
      if (!now.object()->contains(key)) add(key);
  return out;
}

}  // namespace

Journal::Journal(const std::string& path, const std::string& config, bool restart)
    : path_(path), synced_(std::chrono::steady_clock::now()) {
  open_and_lock();
  try {
    load(config, restart);
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

Journal::~Journal() {
  if (empty_) ::unlink(path_.c_str());
  if (dirty_ && !empty_) ::fdatasync(fd_);
  ::close(fd_);
}

// A process that has just finished may unlink the file between our open and lock: then what we hold is not
// the file at `path` any more.
void Journal::open_and_lock() {
  for (;;) {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd_ < 0) throw_io_error(path_, "cannot open the journal", errno);
    struct stat ours {
    }, there{};
    if (::fstat(fd_, &ours) == 0 && !S_ISREG(ours.st_mode)) {  // reading a FIFO would never end
      ::close(std::exchange(fd_, -1));
      throw InvalidArgument(concat(path_, ": not a journal of getp; move it away or choose another -o"));
    }
    const bool locked = ::flock(fd_, LOCK_EX | LOCK_NB) == 0;
    const int error = errno;
    if (locked && ::fstat(fd_, &ours) == 0 && ::stat(path_.c_str(), &there) == 0 &&
        ours.st_ino == there.st_ino && ours.st_dev == there.st_dev)
      return;
    ::close(fd_);
    fd_ = -1;
    if (!locked && error == EWOULDBLOCK)
      throw IoError(
          concat(path_, ": another getp is writing to this output; wait for it or choose another -o"));
    if (!locked) throw_io_error(path_, "cannot lock the journal", error);
  }
}

void Journal::start(const std::string& config) {
  if (::ftruncate(fd_, 0) != 0 || ::lseek(fd_, 0, SEEK_SET) != 0)
    throw_io_error(path_, "cannot write the journal", errno);
  write_all(fd_, std::string(kMagic) + frame(config), path_);
  dirty_ = true;
  sync();
  sync_folder_of(path_);
}

void Journal::load(const std::string& config, bool restart) {
  const std::string bytes = read_file(path_, std::numeric_limits<size_t>::max());
  std::string_view rest = bytes;
  const size_t known = std::min(rest.size(), kMagic.size());
  if (rest.substr(0, known) != kMagic.substr(0, known))
    throw InvalidArgument(concat(path_, ": not a journal of getp; move it away or choose another -o"));
  rest.remove_prefix(known);
  const auto header = take_frame(rest);
  if (!header) dropped_bytes_ = static_cast<int64_t>(bytes.size());  // a crash while the header was written
  if (restart || !header) return start(config);
  const std::string differs = difference(*header, config, path_);
  std::string_view first = rest;
  if (!differs.empty() && !take_frame(first)) return start(config);  // nothing is lost
  if (!differs.empty())
    throw InvalidArgument(concat(path_, " belongs to another job: ", differs,
                                 "; give the options it was started with, or --restart to drop its results"));
  for (std::string_view next = rest; const auto payload = take_frame(next); rest = next) {
    auto record = decode(*payload);
    if (!record) break;
    records_.push_back(std::move(*record));
  }
  empty_ = records_.empty();
  dropped_bytes_ = static_cast<int64_t>(rest.size());
  const auto end = static_cast<off_t>(bytes.size() - rest.size());
  if (::ftruncate(fd_, end) != 0 || ::lseek(fd_, end, SEEK_SET) != end)
    throw_io_error(path_, "cannot write the journal", errno);
}

std::string Journal::peek_config(const std::string& path) {
  if (!file_exists(path) || !is_plain_target(path)) return "";
  const std::string bytes = read_file(path, std::numeric_limits<size_t>::max());
  if (!bytes.starts_with(kMagic)) return "";
  std::string_view rest = std::string_view(bytes).substr(kMagic.size());
  return std::string(take_frame(rest).value_or(""));
}

void Journal::append(const JournalRecord& record) {
  empty_ = false;
  dirty_ = true;
  write_all(fd_, frame(encode(record)), path_);
  sync_if_due();
}

void Journal::sync_if_due() {
  if (dirty_ && std::chrono::steady_clock::now() - synced_ >= kSyncEvery) sync();
}

void Journal::sync() {
  if (!dirty_) return;
  if (::fdatasync(fd_) != 0) throw_io_error(path_, "cannot write the journal", errno);
  dirty_ = false;
  synced_ = std::chrono::steady_clock::now();
}

void Journal::remove() {
  empty_ = dirty_ = false;
  if (::unlink(path_.c_str()) != 0) throw_io_error(path_, "cannot remove the journal", errno);
  sync_folder_of(path_);
}

}  // namespace trivium::getp
