#include "getp/output.h"

#include <charconv>
#include <limits>

#include "core/error.h"
#include "getp/files.h"
#include "io/json.h"

namespace trivium::getp {

namespace {

constexpr size_t kMaxOutputLine = size_t{1} << 30;

std::vector<int32_t> parse_ids(const std::string& text, const std::string& where) {
  std::vector<int32_t> ids;
  const char *at = text.data(), *end = at + text.size();
  for (;;) {
    while (at != end && (*at == ' ' || *at == '\t')) ++at;
    if (at == end) return ids;
    int32_t id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc() || id < 0 || (next != end && *next != ' ' && *next != '\t'))
      throw InvalidArgument(concat(where, ": \"",
                                   printable(std::string_view(at, static_cast<size_t>(end - at)), 20),
                                   "\" is not a token id"));
    ids.push_back(id);
    at = next;
  }
}

std::vector<int32_t> parse_json_ids(const std::string& text, const std::string& where) {
  const io::JsonValue document =
      io::parse_json_document(text, where, {.max_bytes = text.size(), .max_depth = 64});
  const io::JsonValue* tokens = document.find("tokens");
  if (!tokens || !tokens->array()) throw InvalidArgument(concat(where, ": no list \"tokens\""));
  std::vector<int32_t> ids;
  for (const io::JsonValue& id : *tokens->array()) {
    if (!id.is_integer() || id.integer() < 0 || id.integer() > std::numeric_limits<int32_t>::max())
      throw InvalidArgument(concat(where, ": \"tokens\" holds something that is not a token id"));
    ids.push_back(static_cast<int32_t>(id.integer()));
  }
  return ids;
}

}  // namespace

std::string format_result(FileKind kind, const std::string& custom_id, const Result& result) {
  if (kind == FileKind::text) {
    std::string line;
    for (const int32_t id : result.tokens) {
      if (!line.empty()) line += ' ';
      line += std::to_string(id);
    }
    return line;
  }
  io::JsonWriter json;
  json.begin_object().key("custom_id").string(custom_id).key("text").string(result.text);
  if (result.analysis) json.key("analysis").string(*result.analysis);
  json.key("tokens").begin_array();
  for (const int32_t id : result.tokens) json.integer(id);
  json.end_array().key("finish_reason").string(name_of(result.finish_reason));
  json.key("prompt_tokens")
      .integer(result.prompt_tokens)
      .key("completion_tokens")
      .integer(result.completion_tokens);
  json.key("error");
  if (result.error.empty())
    json.null();
  else
    json.string(result.error);
  json.end_object();
  return json.text();
}

void read_outputfile(const std::string& path,
                     const std::function<void(int64_t, const std::vector<int32_t>&)>& on_line) {
  LineReader reader(path);
  const FileKind kind = file_kind(path);
  Line line;
  for (int64_t number = 0; reader.next(line, kMaxOutputLine); ++number) {
    const std::string where = concat(path, ": line ", number + 1);
    if (line.too_long) throw InvalidArgument(concat(where, " is longer than ", kMaxOutputLine, " bytes"));
    on_line(number, kind == FileKind::jsonl ? parse_json_ids(line.text, where) : parse_ids(line.text, where));
  }
}

}  // namespace trivium::getp
