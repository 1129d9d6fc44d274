// Turns a request's tokens into text piece by piece and watches for its stop strings.
#pragma once

#include <string>
#include <vector>

#include "io/tokenizer.h"

namespace trivium::getp {

// Holds back incomplete UTF-8 and any tail that may become a stop string. The joined pieces equal the text
// of all tokens, cut before the first stop string.
class StopText {
 public:
  // `stops`: valid UTF-8, none empty.
  StopText(const io::Tokenizer& tokenizer, std::vector<std::string> stops)
      : decoder_(tokenizer), stops_(std::move(stops)) {}
  std::string push(int32_t id);              // the text that is certain now
  std::string finish();                      // what was held back
  bool stopped() const { return stopped_; }  // a stop string was found: nothing more comes

 private:
  std::string add(std::string piece);

  io::StreamDecoder decoder_;
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace trivium::getp
