// getp's output lines and reading them back.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "getp/input.h"
#include "getp/request.h"

namespace trivium::getp {

// Without the line feed. Text: the ids separated by single spaces. JSONL: {"custom_id", "text", "tokens",
// "finish_reason", "prompt_tokens", "completion_tokens", "error"}, and "analysis" after "text" for a
// conversation.
std::string format_result(FileKind kind, const std::string& custom_id, const Result& result);

// Calls on_line(line number from 0, ids) for every line of an output file (either kind). InvalidArgument
// naming the file and line when it is not one.
void read_outputfile(const std::string& path,
                     const std::function<void(int64_t line, const std::vector<int32_t>& ids)>& on_line);

}  // namespace trivium::getp
