// Mode chat: a conversation on the terminal.
#include <unistd.h>

#include <cstdio>

#include "getp/driver.h"
#include "getp/files.h"
#include "getp/job.h"
#include "getp/session.h"
#include "getp/terminal.h"

namespace trivium::getp {

namespace {

constexpr std::string_view kDim = "\033[2m", kPlain = "\033[0m";
constexpr int64_t kChatPositions = 32768;  // of a conversation, when --steps is not given

// Writes an answer as it comes: the final channel, and the analysis (dimmed on a terminal) when asked for.
class Writer {
 public:
  Writer(const io::Tokenizer& tokenizer, bool show_reasoning)
      : parser_(tokenizer), show_reasoning_(show_reasoning), colour_(takes_colour(STDOUT_FILENO)) {}

  // An answer that is interrupted must not leave the terminal dimmed.
  ~Writer() {
    if (!colour_ || channel_.empty() || channel_ == "final") return;
    [[maybe_unused]] const ssize_t written = ::write(STDOUT_FILENO, kPlain.data(), kPlain.size());
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  void push(int32_t id) { write(parser_.push(id)); }
  void finish() {
    write(parser_.finish());
    change_to("");
    if (last_ != '\n') print("\n");
  }

 private:
  void write(const io::HarmonyDelta& delta) {
    if (delta.text.empty()) return;
    const bool final = delta.channel != "analysis" && delta.channel != "commentary";
    if (!final && !show_reasoning_) return;
    change_to(final ? "final" : delta.channel);
    print(delta.text);
    last_ = delta.text.back();
  }

  void change_to(const std::string& channel) {
    if (channel == channel_) return;
    if (!channel_.empty() && channel_ != "final") print(concat(colour_ ? kPlain : "", "\n"));
    if (!channel.empty() && channel != "final") print(concat(colour_ ? kDim : "", "[", channel, "] "));
    channel_ = channel;
  }

  io::HarmonyParser parser_;
  bool show_reasoning_, colour_;
  std::string channel_;
  char last_ = '\n';
};

class Chat {
 public:
  Chat(const Options& options, std::shared_ptr<Model> model)
      : options_(options),
        model_(std::move(model)),
        engine_(model_, {.batch_size = 1,
                         .max_step_tokens = options.step_tokens,
                         .kv_dtype = options.kv_dtype,
                         .budget_bytes = 0}) {
    if (options_.date.empty()) options_.date = today();
    if (!options_.steps_given) options_.steps = std::min(kChatPositions, model_->info().max_positions);
    reset();
    // Says at once when the tokenizer cannot chat.
    chat_request(*model_, messages_, harmony_options(options_));
  }

  void reset() {
    messages_.clear();
    if (!options_.system.empty()) messages_.push_back(make_message("developer", options_.system));
  }

  void answer(const std::string& text, const CancelToken& cancel) {
    std::vector<io::HarmonyMessage> messages = messages_;
    messages.push_back(make_message("user", text));
    Request request = chat_request(*model_, messages, harmony_options(options_));
    apply_limits(options_, request);
    const auto prompt = static_cast<int64_t>(request.prompt.size());
    if (options_.steps > 0 && prompt >= options_.steps) {
      std::fprintf(stderr, "the conversation has %lld tokens, --steps allows %lld: /reset starts a new one\n",
                   static_cast<long long>(prompt), static_cast<long long>(options_.steps));
      return;
    }
    const auto stream = engine_.stream(std::move(request));
    Writer writer(*model_->tokenizer(), options_.show_reasoning);
    while (const auto piece = stream->next(&cancel))
      if (piece->token >= 0) writer.push(piece->token);
    writer.finish();
    messages.push_back(make_message("assistant", parse_chat_reply(*model_, stream->result().tokens).text));
    messages_ = std::move(messages);
    if (stream->result().finish_reason == FinishReason::length)
      std::fprintf(stderr, "(the answer was cut off: --steps or --max-tokens is reached)\n");
  }

 private:
  Options options_;
  std::shared_ptr<Model> model_;
  Engine engine_;
  std::vector<io::HarmonyMessage> messages_;
};

}  // namespace

int run_chat(const Options& options, const CancelToken& cancel) {
  Chat chat(options, load(options, cancel));
  const bool terminal = ::isatty(STDIN_FILENO) == 1;
  if (!options.inputs.empty()) chat.answer(options.inputs.front(), cancel);
  if (terminal && !options.quiet) std::fputs("/exit ends, /reset starts anew\n", stderr);
  LineReader reader("-");
  for (Line line;;) {
    if (terminal) std::fputs("> ", stderr);
    if (!reader.next(line, kMaxLineBytes)) break;
    if (line.too_long) throw InvalidArgument(concat("the message is longer than ", kMaxLineBytes, " bytes"));
    if (line.text == "/exit" || line.text == "/quit") break;
    if (line.text == "/reset") {
      chat.reset();
    } else if (line.text.starts_with('/') && line.text.find(' ') == std::string::npos) {
      std::fprintf(stderr, "unknown command \"%s\": /exit, /reset\n", printable(line.text).c_str());
    } else if (!line.text.empty()) {
      chat.answer(line.text, cancel);
    }
  }
  return kExitOk;
}

}  // namespace trivium::getp
