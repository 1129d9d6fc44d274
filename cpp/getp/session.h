// Engine: generation on one model for callers that are not batch jobs (the command line's generate and
// chat, Python). It owns a Scheduler and the sequence states, and makes both on first use, as large as the
// requests at hand need.
//
// Threads: every method may be called from any thread. Concurrent calls share one batch: one of the calling
// threads runs the model's steps for all, the others wait for their own tokens. Callbacks run on the thread
// that called generate(), without locks held. No thread is started. Destroying a TokenStream or cancelling
// never waits for a step, so a binding may do it while holding an interpreter lock; all other methods may
// block and should be called without it.
//
// Errors: a request that cannot run (empty prompt, id outside the vocabulary, more positions than the cache
// can hold) ends with FinishReason::error and a sentence in Result::error; check() throws it instead.
// A failure of the model itself (OutOfMemory, ...) is thrown, after the caller's requests were withdrawn;
// the engine stays usable.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/cancel.h"
#include "getp/request.h"
#include "io/harmony.h"
#include "models/model.h"

namespace trivium::getp {

struct EngineOptions {
  int batch_size = 0;  // most sequences at once; 0: auto_batch(), as memory allows
  int64_t max_step_tokens =
      0;  // prefill tokens in one step, beside one token of each decoding sequence; 0: auto
  std::optional<Dtype> kv_dtype;  // unset: the model's default
  int64_t budget_bytes = 0;       // memory for sequence states; 0: 80 % of what is free
};

struct EngineProgress {
  int64_t requests_done = 0, requests = 0;
  int64_t prompt_tokens = 0;  // processed so far, of this generate() call
  int64_t generated_tokens = 0;
};

struct GenerateCallbacks {
  std::function<void(size_t index, int32_t token)> on_token;          // index into the list of requests
  std::function<void(size_t index, const Result& result)> on_result;  // as soon as a request ends
  std::function<void(const EngineProgress&)> on_progress;             // after every step
  // A callback that throws withdraws all requests of its generate() call; the exception leaves generate().
};

class TokenStream;

class Engine {
 public:
  explicit Engine(std::shared_ptr<Model> model, EngineOptions options = {});
  ~Engine();  // after the last call returned and the last TokenStream is gone
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  Model& model() const;

  // Blocks until all requests ended; results in the order of the requests. When `cancel` fires, the step is
  // abandoned at the next layer and the unfinished results come back with FinishReason::cancelled and the
  // tokens they had.
  std::vector<Result> generate(std::vector<Request> requests, const GenerateCallbacks& callbacks = {},
                               const CancelToken* cancel = nullptr);

  // One token at a time. Several streams and generate() calls may be open at once.
  std::unique_ptr<TokenStream> stream(Request request);

  // Throws InvalidArgument with the sentence a refused request would end with.
  void check(const Request& request) const;

  // Frees the sequence states (they come back with the next request). InvalidArgument while requests run.
  void release_states();

 private:
  friend class TokenStream;
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

class TokenStream {
 public:
  ~TokenStream();  // withdraws the request if it is still running; never waits
  TokenStream(const TokenStream&) = delete;
  TokenStream& operator=(const TokenStream&) = delete;

  // The next piece, or nothing at the end. Runs model steps in the calling thread while none is ready.
  // Throws InvalidArgument when the request was refused, Error when it failed, Cancelled when `cancel` fired
  // (the stream then ends).
  std::optional<StreamPiece> next(const CancelToken* cancel = nullptr);
  // Complete after next() returned nothing; until then what came so far.
  const Result& result() const;

 private:
  friend class Engine;
  struct State;
  explicit TokenStream(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// A request with the model's stop ids for plain text, from text. InvalidArgument when the model has no
// tokenizer or `prompt` is empty.
Request text_request(const Model& model, std::string_view prompt);

// A conversation rendered as harmony, ready to generate the assistant's next message: stop ids are the
// model's and <|return|>, <|call|>; keep_state and harmony are set. InvalidArgument when the tokenizer has no
// harmony tokens.
Request chat_request(const Model& model, const std::vector<io::HarmonyMessage>& messages,
                     const io::HarmonyOptions& options = {});

// An assistant's answer taken apart; the final channel is cut before the first of the stop strings. Never
// throws on what the model wrote.
struct ChatReply {
  std::string text;                          // final channel, joined
  std::string analysis;                      // analysis channel, joined
  std::vector<io::HarmonyMessage> messages;  // everything, tool calls included
};
ChatReply parse_chat_reply(const Model& model, std::span<const int32_t> generated,
                           const std::vector<std::string>& stop);

// Logits of every position, f32 [ids, vocab_size] on the CPU, computed in chunks with states of their own.
// InvalidArgument when `ids` is empty, too long, or has an id outside the vocabulary.
Tensor all_logits(Model& model, std::span<const int32_t> ids, const CancelToken* cancel = nullptr);

}  // namespace trivium::getp
