// Turns a request's tokens into text piece by piece and watches for its stop strings.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/harmony.h"
#include "io/tokenizer.h"

namespace trivium::getp {

// Holds back incomplete UTF-8 and any tail that may become a stop string. The joined pieces equal the text
// of all tokens, cut before the first stop string; in harmony the text of the final channel, whose reader
// would not expect a word of the analysis or of a header to end it.
class StopText {
 public:
  // `stops`: valid UTF-8, none empty. InvalidArgument for harmony with a tokenizer that lacks its tokens.
  StopText(const io::Tokenizer& tokenizer, std::vector<std::string> stops, bool harmony = false);
  std::string push(int32_t id);                              // the text that is certain now
  std::string finish();                                      // what was held back
  bool stopped() const { return stopped_; }                  // a stop string was found: nothing more comes
  const std::string& analysis() const { return analysis_; }  // in harmony: that channel so far

 private:
  std::string add(std::string piece);
  std::string answer(io::HarmonyDelta delta);

  io::StreamDecoder decoder_;
  std::optional<io::HarmonyParser> parser_;
  std::vector<std::string> stops_;
  std::string held_, analysis_;
  bool stopped_ = false;
};

}  // namespace trivium::getp
