// Modes generate, decode and merge.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>

#include "core/log.h"
#include "getp/answer_writer.h"
#include "getp/driver.h"
#include "getp/files.h"
#include "getp/job.h"
#include "getp/output.h"
#include "getp/session.h"
#include "io/json.h"

namespace trivium::getp {

namespace {

constexpr size_t kMaxPromptBytes = 256 << 20;

using Clock = std::chrono::steady_clock;

// The prompt of -i; "-" reads all of stdin, without its last line feed.
std::string prompt_of(const Options& options) {
  if (options.inputs.front() != "-") return options.inputs.front();
  std::string text = read_stdin(kMaxPromptBytes);
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

Request generate_request(const Model& model, const Options& options) {
  const std::string prompt = prompt_of(options);
  TRIVIUM_CHECK(!prompt.empty(), "the prompt is empty");
  Request request;
  if (options.chat_template) {
    std::vector<io::HarmonyMessage> messages;
    if (!options.system.empty()) messages.push_back(make_message("developer", options.system));
    messages.push_back(make_message("user", prompt));
    request = chat_request(model, messages, harmony_options(options));
  } else {
    TRIVIUM_CHECK(model.tokenizer() != nullptr, "\"", model.info().path,
                  "\" has no tokenizer: name one with --tokenizer");
    request = text_request(model, prompt);
    if (options.strict_utf8)
      request.prompt = model.tokenizer()->encode(
          prompt, {.parse_special = false, .strict_utf8 = true, .add_special_tokens = true});
  }
  apply_limits(options, request);
  return request;
}

}  // namespace

int run_generate(const Options& options, const CancelToken& cancel) {
  const std::shared_ptr<Model> model = load(options, cancel);
  Request request = generate_request(*model, options);
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  if (options.steps > 0 && prompt >= options.steps)
    warn(
        concat("the prompt has ", prompt, " tokens and --steps is ", options.steps, ": nothing to generate"));
  Engine engine(model, {.batch_size = 1,
                        .max_step_tokens = options.step_tokens,
                        .kv_dtype = options.kv_dtype,
                        .budget_bytes = 0});
  const auto start = Clock::now();
  Clock::time_point first = start;
  const auto stream = engine.stream(std::move(request));
  int64_t tokens = 0;
  std::optional<AnswerWriter> answer;
  if (options.chat_template) answer.emplace(*model->tokenizer(), options.show_reasoning);
  while (const auto piece = stream->next(&cancel)) {
    if (piece->token >= 0 && tokens++ == 0) first = Clock::now();
    if (answer)
      answer->push(*piece);
    else if (!piece->text.empty())
      print(piece->text);
  }
  if (answer)
    answer->finish();
  else
    print("\n");
  const auto end = Clock::now();
  const auto seconds = [](auto from, auto to) { return std::chrono::duration<double>(to - from).count(); };
  const double decode = seconds(first, end);
  if (!options.quiet)
    std::fprintf(stderr,
                 "prompt %lld tokens in %.3f s; generated %lld tokens in %.3f s, %.1f tokens/s (%s)\n",
                 static_cast<long long>(prompt), seconds(start, first), static_cast<long long>(tokens),
                 decode, tokens > 1 && decode > 0 ? static_cast<double>(tokens - 1) / decode : 0.0,
                 name_of(stream->result().finish_reason));
  if (options.json) {
    const Result& result = stream->result();
    io::JsonWriter json;
    json.begin_object().key("prompt_tokens").integer(prompt).key("generated_tokens").integer(tokens);
    json.key("prompt_seconds").number(seconds(start, first)).key("decode_seconds").number(decode);
    json.key("finish_reason").string(name_of(result.finish_reason)).end_object();
    write_file(options.json_path, [&](const Write& write) { write(json.text() + "\n"); });
  }
  return kExitOk;
}

int run_decode(const Options& options) {
  const std::string source = options.tokenizer.empty() ? options.model : options.tokenizer;
  const auto tokenizer = io::Tokenizer::load(source);
  bool found = false;
  int64_t unknown = 0;
  const auto known = [&](int32_t id) {
    return tokenizer->is_special(id) || !tokenizer->token_bytes(id).empty();
  };
  read_outputfile(options.inputs.front(), [&](int64_t k, const std::vector<int32_t>& ids) {
    if (options.decode_line >= 0 && k != options.decode_line) return;
    found = true;
    unknown += static_cast<int64_t>(ids.size()) - std::count_if(ids.begin(), ids.end(), known);
    print(concat(std::string(64, '-'), "\nDecoding #", k, ":\n", io::sanitize_utf8(tokenizer->decode(ids)),
                 "\n"));
  });
  TRIVIUM_CHECK(found || options.decode_line < 0, options.inputs.front(), ": no line ", options.decode_line,
                " (lines count from 0)");
  if (unknown > 0)
    warn(concat(options.inputs.front(), ": ", unknown, unknown == 1 ? " id has" : " ids have",
                " no token in ", source, " and stand", unknown == 1 ? "s" : "", " for nothing"));
  return kExitOk;
}

int run_merge(const Options& options) {
  merge_parts(options.inputs, options.output);
  if (!options.quiet)
    std::fprintf(stderr, "merged %zu parts into %s\n", options.inputs.size(), options.output.c_str());
  return kExitOk;
}

}  // namespace trivium::getp
