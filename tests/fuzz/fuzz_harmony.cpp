// The harmony parser on any token stream: it must not throw, and the streamed text must be the messages'
// text.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "io/harmony.h"

using namespace trivium::io;

namespace {

// tokenizer.bin of the 256 bytes and harmony's special tokens.
std::shared_ptr<const Tokenizer> make_tokenizer() {
  std::string file;
  const auto put = [&file](auto value) { file.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
  put(int32_t{16});
  for (int b = 0; b < 256; ++b) {
    put(static_cast<float>(b));
    const std::string token = b == 0 ? "<0x00>" : std::string(1, static_cast<char>(b));
    put(static_cast<int32_t>(token.size()));
    file += token;
  }
  for (const char* name :
       {"start", "end", "message", "channel", "constrain", "return", "call", "endoftext"}) {
    const std::string token = "<|" + std::string(name) + "|>";
    put(-1e30f);
    put(static_cast<int32_t>(token.size()));
    file += token;
  }
  return Tokenizer::from_bytes(file, "bin", "fuzz");
}

}  // namespace

// Bytes 0xF0 to 0xF7 are the special tokens, 0xF8 and 0xF9 ids without a token, the rest themselves.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::shared_ptr<const Tokenizer> tokenizer = make_tokenizer();
  HarmonyParser parser(*tokenizer);
  std::string streamed, content;
  for (size_t i = 0; i < size; ++i) {
    const int32_t id = data[i] == 0xF8                     ? -1
                       : data[i] == 0xF9                   ? 100000
                       : data[i] >= 0xF0 && data[i] < 0xF8 ? data[i] + 16
                                                           : data[i];
    streamed += parser.push(id).text;
  }
  streamed += parser.finish().text;
  for (const HarmonyMessage& message : parser.messages()) {
    if (message.role.empty() || message.channel.empty()) std::abort();
    content += message.content;
  }
  if (streamed != content || sanitize_utf8(content) != content) std::abort();
  return 0;
}
