// A generation request and what comes back. The tokens of a request depend only on the weights, its prompt
// and its sampling parameters: not on the batch, the order, the threads or preemptions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ops/sampling.h"

namespace trivium::getp {

struct Request {
  std::vector<int32_t> prompt;    // token ids, at least one
  int64_t max_tokens = -1;        // most generated tokens; < 0: no limit of its own
  int64_t max_positions = 0;      // most prompt + generated tokens (getp's --steps); 0: the model's maximum
  ops::SamplingParams sampling;   // seed default 0
  std::vector<int32_t> stop_ids;  // generation ends after one of these; it is part of Result::tokens
  std::vector<std::string> stop;  // generation ends when Result::text contains one of these
  bool ignore_eos = false;        // disregard stop_ids (stop strings still count)
  bool harmony = false;           // what is generated is an assistant's message of a conversation
  bool want_text = true;          // fill Result::text (needs a tokenizer; without one it stays empty)
  bool keep_state = false;        // keep the prompt's state for a later request that extends the prompt
};

enum class FinishReason { stop, length, error, cancelled };
const char* name_of(FinishReason reason);  // "stop", "length", ...

struct Result {
  std::vector<int32_t> tokens;  // generated ids, the stop id included
  std::string text;  // without special tokens, cut before a stop string; always valid UTF-8; of a harmony
                     // request the final channel alone
  std::optional<std::string> analysis;  // of a harmony request: that channel
  FinishReason finish_reason = FinishReason::cancelled;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;  // = tokens.size()
  std::string error;              // one sentence when finish_reason is error
};

struct StreamPiece {
  int32_t token = -1;  // -1: no new token, only text that was held back until the end
  std::string text;    // whole UTF-8 characters; empty while a character or stop string is open
};

}  // namespace trivium::getp
