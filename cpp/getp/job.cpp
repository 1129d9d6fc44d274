#include "getp/job.h"

#include <algorithm>
#include <ctime>

#include "core/registry.h"
#include "io/hash.h"
#include "io/json.h"
#include "io/nfc.h"

namespace trivium::getp {

namespace {

constexpr int32_t kO200kCall = 200012;
// Tokens that harmony adds: the system message and developer heading, and around every message. Generous.
constexpr int64_t kHarmonyTokens = 512, kMessageTokens = 16;

class Hasher {
 public:
  Hasher& bytes(std::string_view text) {
    hash_ = io::hash64(text, hash_);
    return *this;
  }
  template <class T>
  Hasher& value(T x) {
    return bytes({reinterpret_cast<const char*>(&x), sizeof x});
  }
  template <class T>
  Hasher& values(const std::vector<T>& list) {
    return bytes({reinterpret_cast<const char*>(list.data()), list.size() * sizeof(T)});
  }
  uint64_t result() const { return hash_; }

 private:
  uint64_t hash_ = 0;
};

// The most bytes a tokenizer may see for `text`: normalisation can make it longer.
int64_t encoded_bytes(const std::string& text) {
  const bool ascii = std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
  return static_cast<int64_t>(ascii ? text.size() : std::max(text.size(), io::to_nfc(text).size()));
}

int64_t prompt_bound(const InputItem& item, const Options& options) {
  if (item.ids) return static_cast<int64_t>(item.ids->size());
  int64_t bytes = encoded_bytes(item.prompt);
  if (item.messages.empty()) return bytes;
  bytes += kHarmonyTokens + encoded_bytes(options.system);
  for (const io::HarmonyMessage& m : item.messages)
    bytes += kMessageTokens + encoded_bytes(m.role) + encoded_bytes(m.content) + encoded_bytes(m.channel);
  return bytes;
}

// Of what the ids stand for: stop strings and the text of results depend on it.
uint64_t vocabulary_hash(const io::Tokenizer& tokenizer) {
  Hasher hash;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) hash.bytes(tokenizer.token_bytes(id));
  return hash.result();
}

std::string hex(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

std::vector<int32_t> batch_stop_ids(const Model& model) {
  int32_t call = kO200kCall;
  if (const auto& tokenizer = model.tokenizer()) call = tokenizer->special_id("<|call|>").value_or(-1);
  std::vector<int32_t> ids = model.info().stop_ids;
  std::erase(ids, call);
  return ids;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", &local);
  return text;
}

io::HarmonyOptions harmony_options(const Options& options) {
  io::HarmonyOptions harmony;
  harmony.reasoning = options.reasoning;
  harmony.current_date = options.date;
  return harmony;
}

io::HarmonyMessage make_message(const std::string& role, const std::string& content) {
  io::HarmonyMessage message;
  message.role = role;
  message.content = content;
  return message;
}

void apply_limits(const Options& options, Request& request) {
  request.max_tokens = options.max_tokens;
  request.max_positions = options.steps;
  request.sampling = options.sampling;
  request.stop = options.stop;
  request.ignore_eos = options.ignore_eos;
}

Request make_request(const Model& model, const InputItem& item, const Options& options) {
  if (!item.error.empty()) throw InvalidArgument(item.error);
  Request request;
  if (!item.messages.empty()) {
    std::vector<io::HarmonyMessage> messages = item.messages;
    if (!options.system.empty()) messages.insert(messages.begin(), make_message("developer", options.system));
    request = chat_request(model, messages, harmony_options(options));
    request.keep_state = false;
  } else if (item.ids) {
    request.prompt = *item.ids;
  } else if (!item.prompt.empty()) {
    TRIVIUM_CHECK(
        model.tokenizer() != nullptr, "\"", model.info().path,
        "\" has no tokenizer: name one with --tokenizer, or give JSONL lines whose prompt is a list of ids");
    request.prompt = model.tokenizer()->encode(
        item.prompt,
        {.parse_special = false, .strict_utf8 = options.strict_utf8, .add_special_tokens = true});
  }
  apply_limits(options, request);
  if (item.max_tokens) request.max_tokens = *item.max_tokens;
  if (item.temperature) request.sampling.temperature = *item.temperature;
  if (item.top_p) request.sampling.top_p = *item.top_p;
  if (item.top_k) request.sampling.top_k = *item.top_k;
  if (item.min_p) request.sampling.min_p = *item.min_p;
  if (item.seed) request.sampling.seed = *item.seed;
  if (!item.stop.empty()) request.stop = item.stop;
  // A conversation ends at a call of a tool too (moe.md 9.19).
  if (!request.harmony) request.stop_ids = batch_stop_ids(model);
  return request;
}

int64_t longest_length(const std::vector<InputItem>& items, const Options& options, int64_t max_positions) {
  const int64_t cap = options.steps > 0 ? std::min(options.steps, max_positions) : max_positions;
  int64_t longest = 2;
  for (const InputItem& item : items) {
    const int64_t generated = item.max_tokens.value_or(options.max_tokens);
    const int64_t prompt = prompt_bound(item, options);
    longest = std::max(longest, generated < 0 || generated > cap - prompt ? cap : prompt + generated);
  }
  return std::min(longest, cap);
}

uint64_t request_hash(const Request& r) {
  Hasher hash;
  hash.values(r.prompt).value(r.max_tokens).value(r.max_positions).values(r.stop_ids).value(r.ignore_eos);
  hash.value(r.harmony);
  hash.value(r.sampling.temperature).value(r.sampling.seed);
  if (r.sampling.temperature > 0)
    hash.value(r.sampling.top_p).value(r.sampling.top_k).value(r.sampling.min_p);
  for (const std::string& stop : r.stop) hash.bytes(stop);
  return hash.result();
}

std::string job_config(const Model& model, const Options& options, FileKind kind, bool has_messages) {
  const ModelInfo& info = model.info();
  io::JsonWriter json;
  json.begin_object().key("model").string(info.model_type).key("weights").string(hex(info.fingerprint));
  json.key("build").string(build_id()).key("device").string(name_of(info.device.kind));
  if (info.device.kind == DeviceKind::cpu) json.key("cpu_level").string(cpu_level());
  json.key("tokenizer");
  if (model.tokenizer())
    json.string(hex(vocabulary_hash(*model.tokenizer())));
  else
    json.null();
  json.key("precision").string(name_of(info.precision));
  json.key("kv").string(name_of(options.kv_dtype.value_or(model.default_kv_dtype())));
  json.key("odd_window").integer(options.odd_window);
  json.key("temperature").number(options.sampling.temperature).key("top_p").number(options.sampling.top_p);
  json.key("top_k").integer(options.sampling.top_k).key("min_p").number(options.sampling.min_p);
  json.key("seed").string(std::to_string(options.sampling.seed));
  json.key("steps").integer(options.steps).key("max_tokens").integer(options.max_tokens);
  json.key("stop_ids").begin_array();
  for (const int32_t id : batch_stop_ids(model)) json.integer(id);
  json.end_array().key("stop").begin_array();
  for (const std::string& stop : options.stop) json.string(stop);
  json.end_array().key("ignore_eos").boolean(options.ignore_eos).key("input").string(name_of(kind));
  if (has_messages) {
    json.key("reasoning").integer(static_cast<int>(options.reasoning)).key("system").string(options.system);
    json.key("date").string(options.date);
  }
  return json.end_object().text();
}

std::string journal_config(const std::string& config, const Options& options) {
  io::JsonWriter shard;
  shard.string(concat(options.shard, "/", options.shards));
  return concat(config.substr(0, config.size() - 1),
                ",\"shard\":", options.shards > 0 ? shard.text() : "null", "}");
}

uint64_t input_hash(const std::vector<InputItem>& items) {
  Hasher hash;
  for (const InputItem& item : items) {
    hash.bytes(item.custom_id).bytes(item.prompt).bytes(item.error);
    if (item.ids) hash.values(*item.ids);
    for (const io::HarmonyMessage& m : item.messages) hash.bytes(m.role).bytes(m.channel).bytes(m.content);
    hash.value(item.max_tokens.value_or(-1))
        .value(item.temperature.value_or(-1))
        .value(item.top_p.value_or(-1));
    hash.value(item.min_p.value_or(-1)).value(item.top_k.value_or(-1)).value(item.seed.value_or(0));
    hash.value(item.seed.has_value());
    for (const std::string& stop : item.stop) hash.bytes(stop);
  }
  return hash.result();
}

}  // namespace trivium::getp
