// getp's input files. Text: line 1 is the number of prompts, then one raw prompt a line. JSONL: one object a
// line,
// {"custom_id", "prompt" (text or list of token ids) or "messages", "max_tokens", "temperature", "top_p",
// "top_k", "min_p", "seed", "stop"}; only prompt or messages is required. CRLF and a missing last LF are
// accepted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/harmony.h"

namespace trivium::getp {

enum class FileKind { text, jsonl };
FileKind file_kind(const std::string& path);  // by its ending: .jsonl or .ndjson, else text
const char* name_of(FileKind kind);

inline constexpr size_t kMaxLineBytes = 10 << 20;

struct InputItem {
  int64_t index = 0;      // of the request in the file, from 0
  int64_t line = 0;       // of the file, from 1
  std::string custom_id;  // JSONL; "line-N" when the line has none
  std::string prompt;
  std::optional<std::vector<int32_t>> ids;   // instead of prompt
  std::vector<io::HarmonyMessage> messages;  // instead of prompt
  std::optional<int64_t> max_tokens;
  std::optional<float> temperature, top_p, min_p;
  std::optional<int32_t> top_k;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  std::string error;  // this line cannot run: why
};

struct InputFile {
  FileKind kind = FileKind::text;
  std::vector<InputItem> items;
  std::vector<std::string> warnings;
};

// InvalidArgument when the file as a whole makes no sense; a bad line only sets its item's error. `limit` >
// 0: only the first prompts. `max_line_bytes` is for tests.
InputFile read_inputfile(const std::string& path, int64_t limit = 0, size_t max_line_bytes = kMaxLineBytes);

// One JSONL line; `name` appears in messages.
InputItem parse_jsonl_line(const std::string& line, const std::string& name,
                           std::vector<std::string>& unknown_keys);

}  // namespace trivium::getp
