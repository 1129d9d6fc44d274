// Mode chat: a conversation on the terminal.
#include <unistd.h>

#include <cstdio>

#include "getp/answer_writer.h"
#include "getp/driver.h"
#include "getp/files.h"
#include "getp/job.h"
#include "getp/session.h"

namespace trivium::getp {

namespace {

constexpr int64_t kChatPositions = 32768;  // of a conversation, when --steps is not given

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
    AnswerWriter writer(*model_->tokenizer(), options_.show_reasoning);
    while (const auto piece = stream->next(&cancel)) writer.push(*piece);
    writer.finish();
    messages.push_back(make_message("assistant", stream->result().text));
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
