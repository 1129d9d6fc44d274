#include "getp/answer_writer.h"

#include <unistd.h>

#include <string_view>

#include "core/error.h"
#include "getp/driver.h"
#include "getp/terminal.h"

namespace trivium::getp {

namespace {

constexpr std::string_view kDim = "\033[2m", kPlain = "\033[0m";

}  // namespace

AnswerWriter::AnswerWriter(const io::Tokenizer& tokenizer, bool show_reasoning)
    : parser_(tokenizer), show_reasoning_(show_reasoning), colour_(takes_colour(STDOUT_FILENO)) {}

AnswerWriter::~AnswerWriter() {
  if (!colour_ || channel_.empty()) return;
  [[maybe_unused]] const ssize_t written = ::write(STDOUT_FILENO, kPlain.data(), kPlain.size());
}

void AnswerWriter::push(const StreamPiece& piece) {
  if (show_reasoning_ && piece.token >= 0) write_reasoning(parser_.push(piece.token));
  write("", piece.text);
}

void AnswerWriter::finish() {
  if (show_reasoning_) write_reasoning(parser_.finish());
  change_to("");
  if (last_ != '\n') print("\n");
}

void AnswerWriter::write_reasoning(const io::HarmonyDelta& delta) {
  if (!io::is_answer(delta.channel, delta.recipient)) write(delta.channel, delta.text);
}

void AnswerWriter::write(const std::string& channel, const std::string& text) {
  if (text.empty()) return;
  change_to(channel);
  print(text);
  last_ = text.back();
}

void AnswerWriter::change_to(const std::string& channel) {
  if (channel == channel_) return;
  if (!channel_.empty()) print(concat(colour_ ? kPlain : "", last_ == '\n' ? "" : "\n"));
  if (!channel.empty()) print(concat(last_ == '\n' ? "" : "\n", colour_ ? kDim : "", "[", channel, "] "));
  channel_ = channel;
  last_ = '\n';
}

}  // namespace trivium::getp
