#include "getp/stop_text.h"

#include <algorithm>

namespace trivium::getp {

namespace {

// Length of the longest tail of `text` that is a proper prefix of `stop`.
size_t open_tail(const std::string& text, const std::string& stop) {
  for (size_t n = std::min(text.size(), stop.size() - 1); n > 0; --n)
    if (text.compare(text.size() - n, n, stop, 0, n) == 0) return n;
  return 0;
}

}  // namespace

StopText::StopText(const io::Tokenizer& tokenizer, std::vector<std::string> stops, bool harmony)
    : decoder_(tokenizer), stops_(std::move(stops)) {
  if (harmony) parser_.emplace(tokenizer);
}

std::string StopText::add(std::string piece) {
  held_ += piece;
  size_t cut = std::string::npos;
  for (const std::string& stop : stops_) cut = std::min(cut, held_.find(stop));
  if (cut != std::string::npos) {
    stopped_ = true;
    std::string out = held_.substr(0, cut);
    held_.clear();
    return out;
  }
  size_t keep = 0;
  for (const std::string& stop : stops_) keep = std::max(keep, open_tail(held_, stop));
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, out.size());
  return out;
}

std::string StopText::answer(io::HarmonyDelta delta) {
  if (io::is_answer(delta.channel, delta.recipient)) return std::move(delta.text);
  if (delta.channel == "analysis") analysis_ += delta.text;
  return "";
}

std::string StopText::push(int32_t id) {
  if (stopped_) return "";
  return add(parser_ ? answer(parser_->push(id)) : decoder_.push(id));
}

std::string StopText::finish() {
  if (stopped_) return "";
  std::string out = add(parser_ ? answer(parser_->finish()) : decoder_.finish());
  out += held_;
  held_.clear();
  return out;
}

}  // namespace trivium::getp
