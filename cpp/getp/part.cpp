// The parts of a sharded job: each shard's output has a note beside it, OUT.part, that says what it is a part
// of.
#include <algorithm>
#include <charconv>
#include <limits>
#include <memory>

#include "getp/files.h"
#include "getp/job.h"
#include "getp/overwrite.h"
#include "io/hash.h"
#include "io/json.h"

namespace trivium::getp {

namespace {

constexpr size_t kMaxPartBytes = 1 << 20;
constexpr size_t kMaxOutputLine = size_t{1} << 30;
constexpr int64_t kMaxShards = 1 << 20, kMaxRequests = int64_t{1} << 40;  // more than --shard and -i take

std::string part_path(const std::string& output) { return output + ".part"; }

const io::JsonValue& need(const io::JsonValue& document, const char* key, const std::string& path) {
  const io::JsonValue* value = document.find(key);
  if (!value)
    throw InvalidArgument(concat(path, ": \"", key, "\" is missing; it is not a part that getp wrote"));
  return *value;
}

int64_t need_integer(const io::JsonValue& document, const char* key, const std::string& path, int64_t max) {
  const io::JsonValue& value = need(document, key, path);
  if (!value.is_integer() || value.integer() < 0 || value.integer() > max)
    throw InvalidArgument(concat(path, ": \"", key, "\" is not an integer from 0 to ", max));
  return value.integer();
}

std::string need_string(const io::JsonValue& document, const char* key, const std::string& path) {
  const io::JsonValue& value = need(document, key, path);
  if (!value.string()) throw InvalidArgument(concat(path, ": \"", key, "\" is not a string"));
  return *value.string();
}

Part read_part(const std::string& output) {
  const std::string path = part_path(output);
  if (!file_exists(path))
    throw InvalidArgument(concat(output, ": no ", path, " beside it; give the outputs of getp --shard i/n"));
  const io::JsonValue document = io::parse_json_document(read_file(path, kMaxPartBytes), path);
  Part part;
  part.config = need_string(document, "config", path);
  const std::string kind = need_string(document, "kind", path);
  if (kind != name_of(FileKind::text) && kind != name_of(FileKind::jsonl))
    throw InvalidArgument(concat(path, ": \"kind\" is \"", printable(kind), "\", expected text or jsonl"));
  part.kind = kind == name_of(FileKind::jsonl) ? FileKind::jsonl : FileKind::text;
  part.shard = need_integer(document, "shard", path, kMaxShards);
  part.shards = need_integer(document, "shards", path, kMaxShards);
  part.requests = need_integer(document, "requests", path, kMaxRequests);
  part.lines = need_integer(document, "lines", path, kMaxRequests);
  const std::string hash = need_string(document, "input_hash", path);
  const auto [end, error] = std::from_chars(hash.data(), hash.data() + hash.size(), part.input_hash);
  if (error != std::errc() || end != hash.data() + hash.size())
    throw InvalidArgument(concat(path, ": \"input_hash\" is not a number; it is not a part that getp wrote"));
  part.crc =
      static_cast<uint32_t>(need_integer(document, "crc32c", path, std::numeric_limits<uint32_t>::max()));
  if (part.shards < 1 || part.shard >= part.shards)
    throw InvalidArgument(concat(path, ": shard ", part.shard, " of ", part.shards, " does not exist"));
  const int64_t lines = std::max<int64_t>(part.requests - part.shard + part.shards - 1, 0) / part.shards;
  if (part.lines != lines) throw InvalidArgument(concat(path, ": ", part.lines, " lines, expected ", lines));
  return part;
}

// Why b cannot be joined with a; empty when it can.
std::string mismatch(const Part& a, const Part& b) {
  if (a.config != b.config) return "was made with other options, weights or another kind of machine";
  if (a.kind != b.kind) return "is of another output kind";
  if (a.requests != b.requests || a.input_hash != b.input_hash) return "was made from another input";
  if (a.shards != b.shards) return concat("is one of ", b.shards, " shards, not of ", a.shards);
  return "";
}

// The parts by shard, complete and of one job.
std::vector<std::string> by_shard(const std::vector<std::string>& outputs, std::vector<Part>& parts) {
  const Part first = read_part(outputs.front());
  TRIVIUM_CHECK(static_cast<int64_t>(outputs.size()) <= first.shards, "merge: ", outputs.size(),
                " parts given, ", outputs.front(), " is one of ", first.shards);
  std::vector<std::string> names(static_cast<size_t>(first.shards));
  parts.resize(names.size());
  for (const std::string& output : outputs) {
    const Part part = read_part(output);
    const std::string why = mismatch(first, part);
    TRIVIUM_CHECK(why.empty(), "merge: ", output, " ", why, " (compared with ", outputs.front(), ")");
    std::string& name = names[static_cast<size_t>(part.shard)];
    TRIVIUM_CHECK(name.empty(), "merge: ", name, " and ", output, " are both shard ", part.shard);
    name = output;
    parts[static_cast<size_t>(part.shard)] = part;
  }
  for (size_t i = 0; i < names.size(); ++i)
    TRIVIUM_CHECK(!names[i].empty(), "merge: shard ", i, " of ", names.size(), " is missing");
  return names;
}

}  // namespace

void write_part(const std::string& output, const Part& part) {
  io::JsonWriter json;
  json.begin_object().key("config").string(part.config).key("kind").string(name_of(part.kind));
  json.key("shard")
      .integer(part.shard)
      .key("shards")
      .integer(part.shards)
      .key("requests")
      .integer(part.requests);
  json.key("lines").integer(part.lines).key("input_hash").string(std::to_string(part.input_hash));
  json.key("crc32c").integer(part.crc).end_object();
  write_file(part_path(output), [&](const Write& write) { write(json.text() + "\n"); });
}

void merge_parts(const std::vector<std::string>& outputs, const std::string& merged) {
  TRIVIUM_CHECK(!outputs.empty(), "merge: no parts given");
  for (const std::string& output : outputs) {
    check_not_overwritten({"-o", merged}, {".tmp"}, {{"-i", output}, {"the note", part_path(output)}});
  }
  check_writable(merged);
  std::vector<Part> parts;
  const std::vector<std::string> names = by_shard(outputs, parts);
  std::vector<std::unique_ptr<LineReader>> readers;
  for (const std::string& name : names) readers.push_back(std::make_unique<LineReader>(name));
  std::vector<uint32_t> crcs(names.size());
  Line line;
  const auto changed = [&](size_t i) {
    return InvalidArgument(concat("merge: ", names[i], " has changed since getp wrote it"));
  };
  write_file(merged, [&](const Write& write) {
    for (int64_t k = 0; k < parts[0].requests; ++k) {
      const auto i = static_cast<size_t>(k) % names.size();
      if (!readers[i]->next(line, kMaxOutputLine)) throw changed(i);
      line.text += '\n';
      crcs[i] = io::crc32c(line.text, crcs[i]);
      write(line.text);
    }
    for (size_t i = 0; i < names.size(); ++i)
      if (readers[i]->next(line, kMaxOutputLine) || crcs[i] != parts[i].crc) throw changed(i);
  });
}

}  // namespace trivium::getp
