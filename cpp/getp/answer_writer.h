// Writes the answer of a conversation to stdout as it comes: the final channel and, when asked for, the other
// channels, each on lines of its own that begin with its name and are dimmed on a terminal.
#pragma once

#include <string>

#include "getp/request.h"
#include "io/harmony.h"

namespace trivium::getp {

class AnswerWriter {
 public:
  AnswerWriter(const io::Tokenizer& tokenizer, bool show_reasoning);
  ~AnswerWriter();  // an answer that is interrupted does not leave the terminal dimmed
  AnswerWriter(const AnswerWriter&) = delete;
  AnswerWriter& operator=(const AnswerWriter&) = delete;

  void push(const StreamPiece& piece);  // of a harmony request
  void finish();                        // ends the last line

 private:
  void write_reasoning(const io::HarmonyDelta& delta);
  void write(const std::string& channel, const std::string& text);
  void change_to(const std::string& channel);

  io::HarmonyParser parser_;
  bool show_reasoning_, colour_;
  std::string channel_;  // of the line being written; empty for the answer
  char last_ = '\n';
};

}  // namespace trivium::getp
