#include "getp/input.h"

#include <charconv>
#include <unordered_map>

#include "core/error.h"
#include "getp/files.h"

namespace trivium::getp {

namespace {

constexpr int64_t kMaxPrompts = 100'000'000;
constexpr std::string_view kBom = "\xef\xbb\xbf";

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

int64_t parse_count(const Line& first, const std::string& path) {
  std::string_view text = first.text;
  if (text.starts_with(kBom)) text.remove_prefix(kBom.size());
  text = trimmed(text);
  int64_t count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  const bool whole = end == text.data() + text.size();
  if (error == std::errc::result_out_of_range && whole)
    count = kMaxPrompts + 1;
  else if (error != std::errc() || !whole || first.too_long)
    throw InvalidArgument(
        concat(path, ": line 1 must be the number of prompts, found \"", printable(first.text), "\""));
  if (count < 0)
    throw InvalidArgument(concat(path, ": line 1 declares ", text, " prompts, expected 0 or more"));
  if (count > kMaxPrompts)
    throw InvalidArgument(
        concat(path, ": line 1 declares ", text, " prompts, at most ", kMaxPrompts, " are supported"));
  return count;
}

void read_text(LineReader& reader, const std::string& path, int64_t limit, size_t max_bytes,
               InputFile& file) {
  Line line;
  if (!reader.next(line, max_bytes)) throw InvalidArgument(concat(path, ": empty input file"));
  const int64_t declared = parse_count(line, path);
  int64_t found = 0, extra = 0;
  while (reader.next(line, max_bytes)) {
    if (found == declared) {
      extra += !line.text.empty() || line.too_long;
      continue;
    }
    if (limit == 0 || found < limit) {
      InputItem item;
      item.index = found;
      item.line = found + 2;
      item.custom_id = concat("line-", item.line);
      if (line.too_long) item.error = concat("line ", item.line, " is longer than ", max_bytes, " bytes");
      item.prompt = std::move(line.text);
      file.items.push_back(std::move(item));
    }
    ++found;
  }
  if (found < declared)
    throw InvalidArgument(concat(path, ": input declares ", declared, " prompts, found ", found));
  if (extra > 0)
    file.warnings.push_back(concat(path, ": input declares ", declared, " prompts, ", extra, " more line",
                                   extra == 1 ? " is" : "s are", " ignored"));
}

void read_jsonl(LineReader& reader, const std::string& path, int64_t limit, size_t max_bytes,
                InputFile& file) {
  Line line;
  std::vector<std::string> unknown;
  std::unordered_map<std::string, int64_t> lines;  // of the ids
  int64_t repeated = 0;
  bool any = false;
  for (int64_t number = 1; reader.next(line, max_bytes); ++number) {
    any = true;
    std::string_view text = line.text;
    if (number == 1 && text.starts_with(kBom)) text.remove_prefix(kBom.size());
    if (trimmed(text).empty() && !line.too_long) continue;
    if (limit > 0 && static_cast<int64_t>(file.items.size()) == limit) break;
    const std::string name = concat("line ", number);
    InputItem item;
    if (line.too_long)
      item.error = concat(name, " is longer than ", max_bytes, " bytes");
    else
      item = parse_jsonl_line(std::string(text), name, unknown);
    item.index = static_cast<int64_t>(file.items.size());
    item.line = number;
    if (item.custom_id.empty()) item.custom_id = concat("line-", number);
    const auto [first, fresh] = lines.try_emplace(item.custom_id, number);
    if (!fresh && repeated++ == 0)
      file.warnings.push_back(concat(path, ": custom_id \"", printable(item.custom_id), "\" is on lines ",
                                     first->second, " and ", number,
                                     ": its results differ by their place only"));
    file.items.push_back(std::move(item));
  }
  if (!any) throw InvalidArgument(concat(path, ": empty input file"));
  for (const std::string& key : unknown)
    file.warnings.push_back(concat(path, ": unknown key \"", printable(key), "\" is ignored"));
}

}  // namespace

FileKind file_kind(const std::string& path) {
  return path.ends_with(".jsonl") || path.ends_with(".ndjson") ? FileKind::jsonl : FileKind::text;
}

const char* name_of(FileKind kind) { return kind == FileKind::jsonl ? "jsonl" : "text"; }

InputFile read_inputfile(const std::string& path, int64_t limit, size_t max_line_bytes) {
  InputFile file;
  file.kind = file_kind(path);
  LineReader reader(path);
  if (file.kind == FileKind::jsonl)
    read_jsonl(reader, path, limit, max_line_bytes, file);
  else
    read_text(reader, path, limit, max_line_bytes, file);
  return file;
}

}  // namespace trivium::getp
