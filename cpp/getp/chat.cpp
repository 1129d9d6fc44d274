// The helpers of session.h that turn text and conversations into requests, and tokens back.
#include <algorithm>
#include <cstring>

#include "getp/session.h"
#include "getp/stop_text.h"

namespace trivium::getp {

namespace {

const io::Tokenizer& tokenizer_of(const Model& model) {
  TRIVIUM_CHECK(model.tokenizer() != nullptr, "\"", model.info().path,
                "\" has no tokenizer: give token ids, or name one with --tokenizer");
  return *model.tokenizer();
}

}  // namespace

Request text_request(const Model& model, std::string_view prompt) {
  Request request;
  request.prompt = tokenizer_of(model).encode(prompt, {.add_special_tokens = true});
  TRIVIUM_CHECK(!request.prompt.empty(), "the prompt is empty");
  request.stop_ids = model.info().stop_ids;
  return request;
}

Request chat_request(const Model& model, const std::vector<io::HarmonyMessage>& messages,
                     const io::HarmonyOptions& options) {
  const io::Tokenizer& tokenizer = tokenizer_of(model);
  TRIVIUM_CHECK(io::has_harmony_tokens(tokenizer), "chat: the tokenizer of \"", model.info().path,
                "\" has no harmony tokens (<|start|>, <|channel|>, ...); use generate");
  Request request;
  request.prompt = io::render_harmony(tokenizer, messages, options);
  request.stop_ids = model.info().stop_ids;
  for (const char* name : {"<|return|>", "<|call|>"})
    if (const auto id = tokenizer.special_id(name)) request.stop_ids.push_back(*id);
  std::sort(request.stop_ids.begin(), request.stop_ids.end());
  request.stop_ids.erase(std::unique(request.stop_ids.begin(), request.stop_ids.end()),
                         request.stop_ids.end());
  request.keep_state = true;
  request.harmony = true;
  return request;
}

ChatReply parse_chat_reply(const Model& model, std::span<const int32_t> generated,
                           const std::vector<std::string>& stop) {
  io::HarmonyParser parser(tokenizer_of(model));
  StopText text(tokenizer_of(model), stop, true);
  ChatReply reply;
  for (const int32_t id : generated) {
    parser.push(id);
    reply.text += text.push(id);
  }
  parser.finish();
  reply.text += text.finish();
  reply.analysis = text.analysis();
  reply.messages = parser.messages();

  size_t beyond = 0;  // bytes of the messages that lie behind the stop string's beginning
  for (const auto& m : reply.messages) beyond += io::is_answer(m.channel, m.recipient) ? m.content.size() : 0;
  beyond -= reply.text.size();
  for (auto m = reply.messages.rbegin(); beyond > 0 && m != reply.messages.rend(); ++m) {
    if (!io::is_answer(m->channel, m->recipient)) continue;
    const size_t cut = std::min(beyond, m->content.size());
    m->content.resize(m->content.size() - cut);
    beyond -= cut;
  }
  return reply;
}

Tensor all_logits(Model& model, std::span<const int32_t> ids, const CancelToken* cancel) {
  const ModelInfo& info = model.info();
  const auto count = static_cast<int64_t>(ids.size());
  TRIVIUM_CHECK(count > 0, "logits: no token ids");
  TRIVIUM_CHECK(count <= info.max_positions, "logits: ", count, " token ids, the model takes at most ",
                info.max_positions);
  for (size_t i = 0; i < ids.size(); ++i)
    TRIVIUM_CHECK(ids[i] >= 0 && ids[i] < info.vocab_size, "logits: token id ", ids[i], " at index ", i,
                  ", expected 0 to ", info.vocab_size - 1);
  constexpr int64_t kChunk = 256;
  const auto states = model.make_states({.num_slots = 1,
                                         .max_length = count,
                                         .max_step_tokens = std::min(count, kChunk),
                                         .kv_dtype = model.default_kv_dtype(),
                                         .budget_bytes = 0});
  if (!states->reserve(0, count)) throw OutOfMemory(concat("logits: no memory for ", count, " positions"));
  Tensor out = Tensor::empty({count, info.vocab_size}, Dtype::f32);
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t n = std::min(kChunk, count - start);
    const Segment segment{.slot = 0, .start = start, .count = n, .logits = Segment::Logits::all};
    const Tensor rows =
        model
            .forward({.tokens = ids.subspan(static_cast<size_t>(start), static_cast<size_t>(n)),
                      .segments = {&segment, 1}},
                     *states, cancel)
            .to(Device{});
    std::memcpy(out.slice(start, start + n).data(), rows.data(), static_cast<size_t>(rows.nbytes()));
  }
  return out;
}

}  // namespace trivium::getp
