// tokenizer.json of Hugging Face: byte-level BPE with an explicit merge list, read as a stream.
#include <array>
#include <map>
#include <set>

#include "core/error.h"
#include "io/json.h"
#include "io/nfc.h"
#include "io/tokenizer_byte_map.h"
#include "io/tokenizer_files.h"
#include "io/tokenizer_pattern.h"
#include "io/tokenizer_template.h"

namespace trivium::io {

namespace {

constexpr size_t kMaxFileBytes = 128 << 20;
constexpr size_t kMaxCapturedValues = 10'000;  // in one of the small parts that are kept as a tree
constexpr size_t kMaxMerges = 2 * static_cast<size_t>(kMaxVocab);

std::string text_of(const JsonValue* value) {
  const std::string* text = value ? value->string() : nullptr;
  return text ? *text : std::string();
}

bool flag_of(const JsonValue* value, bool missing) {
  return value && value->boolean() ? *value->boolean() : missing;
}

// Strings of the file as it has them, one after the other.
class StringArena {
 public:
  struct Span {
    uint32_t begin, length;
  };
  Span add(std::string_view text) {
    const Span span{static_cast<uint32_t>(text_.size()), static_cast<uint32_t>(text.size())};
    text_ += text;
    return span;
  }
  std::string_view operator[](Span span) const {
    return std::string_view(text_).substr(span.begin, span.length);
  }

 private:
  std::string text_;
};

class Handler final : public JsonHandler {
 public:
  explicit Handler(const std::string& name) : name_(name), parts_(name) {}

  void on_null() override { scalar({}); }
  void on_bool(bool value) override { scalar({value}); }
  void on_unsigned(uint64_t value) override { scalar({value}); }
  void on_number(double value) override { scalar({value}); }
  void on_integer(int64_t value) override {
    if (section_ == Section::vocab) {
      vocab_.emplace_back(strings_.add(key_), value);
    } else {
      scalar({value});
    }
  }
  void on_string(std::string_view value) override {
    if (section_ == Section::merges) {
      add_merge_text(value);
    } else if (section_ == Section::merge) {
      if (merge_parts_ < 2) merge_[merge_parts_] = strings_.add(value);
      ++merge_parts_;
    } else {
      scalar({std::string(value)});
    }
  }
  void on_key(std::string_view key) override {
    if (section_ == Section::skip) return;
    key_ = key;
    if (section_ != Section::capture) return;
    auto& object = std::get<JsonValue::Object>(open_.back()->value);
    const auto [entry, added] = object.try_emplace(key_);
    if (!added) fail_repeated(key);
    member_ = &entry->second;
  }
  void on_start_object() override { open(true); }
  void on_start_array() override { open(false); }
  void on_end_object() override { close(); }
  void on_end_array() override { close(); }

  TokenizerParts finish() {
    check_model();
    read_pre_tokenizer();
    fill_vocabulary();
    fill_merges();
    parts_.nfc = part(top_, "normalizer") != nullptr;
    for (int32_t id = 0; parts_.nfc && id < parts_.added_normalized.size(); ++id) {
      const std::string_view text = parts_.added_normalized.bytes(id);
      if (to_nfc(text) != text)
        fail(concat("added token \"", printable(text),
                    "\" is not in Normalization Form C, as the text will be"));
    }
    if (const JsonValue* post = part(top_, "post_processor")) read_post_processor(*post, parts_);
    return std::move(parts_);
  }

 private:
  enum class Section { document, top, model, vocab, merges, merge, added, capture, skip };

  [[noreturn]] void fail(const std::string& what) const { throw ModelFormatError(name_ + ": " + what); }
  [[noreturn]] void fail_repeated(std::string_view key) const {
    fail(concat("key \"", printable(key), "\" appears twice"));
  }
  [[noreturn]] void fail_type(const std::string& part, const JsonValue* value) const {
    const std::string type = text_of(value ? value->find("type") : nullptr);
    fail(concat(part, " \"", printable(type.empty() ? "(no type)" : type), "\" is not supported"));
  }

  static bool kept_at_top(const std::string& key) {
    return key == "normalizer" || key == "pre_tokenizer" || key == "post_processor" || key == "decoder";
  }
  const JsonValue* part(const std::map<std::string, JsonValue>& parts, const std::string& key) const {
    const auto found = parts.find(key);
    return found == parts.end() || found->second.is_null() ? nullptr : &found->second;
  }

  // Where a container that opens inside `section_` leads.
  Section section_inside(bool object) {
    switch (section_) {
      case Section::document:
        if (!object) fail("expected a JSON object");
        return Section::top;
      case Section::top:
        if (kept_at_top(key_)) return Section::capture;
        if (key_ == "model" && object) return Section::model;
        return key_ == "added_tokens" && !object ? Section::added : Section::skip;
      case Section::model:
        if (key_ == "vocab" && object) return Section::vocab;
        return key_ == "merges" && !object ? Section::merges : Section::skip;
      case Section::vocab:
        fail(concat("the id of token \"", printable(key_), "\" is not an integer"));
      case Section::merges:
        if (object) fail(concat("merge ", merges_.size(), " is not a pair"));
        return Section::merge;
      case Section::merge:
        fail(concat("merge ", merges_.size(), " is not a pair of strings"));
      case Section::added:
        return object ? Section::capture : Section::skip;
      case Section::capture:
      case Section::skip:
        break;
    }
    return section_;
  }

  void open(bool object) {
    const Section inside = section_inside(object);
    if (inside == Section::capture) {
      open_.push_back(place(object ? JsonValue{JsonValue::Object()} : JsonValue{JsonValue::Array()}));
    } else if (inside == Section::merge) {
      merge_parts_ = 0;
    } else if (inside != section_ && inside != Section::skip && inside != Section::top &&
               !opened_.insert(inside).second) {
      fail_repeated(key_);
    }
    outer_.push_back(section_);
    section_ = inside;
  }

  void close() {
    const Section closed = section_;
    section_ = outer_.back();
    outer_.pop_back();
    if (closed == Section::merge) {
      if (merge_parts_ != 2)
        fail(concat("merge ", merges_.size(), " has ", merge_parts_, " parts, expected 2"));
      add_merge();
    } else if (closed == Section::capture) {
      open_.pop_back();
      if (open_.empty()) end_capture();
    }
  }

  void scalar(JsonValue&& value) {
    switch (section_) {
      case Section::document:
        fail("expected a JSON object");
      case Section::top:
        if (kept_at_top(key_) && !top_.emplace(key_, std::move(value)).second) fail_repeated(key_);
        return;
      case Section::model:
        if (model_.size() > 100) fail("the model has more than 100 settings");
        if (!model_.emplace(key_, std::move(value)).second) fail_repeated(key_);
        return;
      case Section::vocab:
        fail(concat("the id of token \"", printable(key_), "\" is not an integer below 2^63"));
      case Section::merges:
      case Section::merge:
        fail(concat("merge ", merges_.size(), " is not a pair of strings"));
      case Section::added:
        fail("an added token is not an object");
      case Section::capture:
        place(std::move(value));
        return;
      case Section::skip:
        return;
    }
  }

  // Stores a value of the tree being captured where the document is now.
  JsonValue* place(JsonValue&& value) {
    if (++num_captured_ > kMaxCapturedValues)
      fail(concat("\"", printable(key_), "\" is too large to be a tokenizer's setting"));
    JsonValue* place = &captured_;
    if (!open_.empty()) {
      auto* array = std::get_if<JsonValue::Array>(&open_.back()->value);
      place = array ? &array->emplace_back() : member_;
    } else {
      captured_key_ = key_;
    }
    *place = std::move(value);
    return place;
  }

  void end_capture() {
    num_captured_ = 0;
    if (section_ == Section::added) {
      add_token(captured_);
    } else if (!top_.emplace(captured_key_, std::move(captured_)).second) {
      fail_repeated(captured_key_);
    }
    captured_ = {};
  }

  void add_merge_text(std::string_view text) {
    const size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
      fail(concat("merge ", merges_.size(), " (\"", printable(text),
                  "\") is not two parts with one space between"));
    }
    merge_ = {strings_.add(text.substr(0, space)), strings_.add(text.substr(space + 1))};
    add_merge();
  }

  void add_merge() {
    merges_.push_back(merge_);
    if (merges_.size() > kMaxMerges) fail(concat("more than ", kMaxMerges, " merges"));
  }

  void add_token(const JsonValue& token) {
    const JsonValue* id = token.find("id");
    const JsonValue* content = token.find("content");
    if (!id || !id->is_integer() || !content || !content->string())
      fail("an added token lacks its id or content");
    const std::string& text = *content->string();
    const auto refuse = [&](const char* why) {
      fail(concat("added token \"", printable(text), "\" ", why, ", which is not supported"));
    };
    for (const char* rule : {"single_word", "lstrip", "rstrip"}) {
      if (flag_of(token.find(rule), false)) refuse(rule);
    }
    const bool normalized = flag_of(token.find("normalized"), false);
    Vocabulary& tokens = flag_of(token.find("special"), false) ? parts_.specials
                         : normalized                          ? parts_.added_normalized
                                                               : parts_.added;
    tokens.add(id->integer(), text);
  }

  void check_model() const {
    if (!opened_.contains(Section::model)) fail("no \"model\" object");
    const auto setting = [&](const char* key) { return part(model_, key); };
    if (setting("type") && text_of(setting("type")) != "BPE") {
      fail(concat("model type \"", printable(text_of(setting("type"))),
                  "\" is not supported, expected \"BPE\""));
    }
    if (!opened_.contains(Section::vocab) || !opened_.contains(Section::merges))
      fail("the model lacks \"vocab\" or \"merges\"");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!text_of(setting(key)).empty()) fail(concat("model setting \"", key, "\" is not supported"));
    }
    if (flag_of(setting("byte_fallback"), false)) fail("model setting \"byte_fallback\" is not supported");
    if (const JsonValue* dropout = setting("dropout");
        dropout && !(dropout->is_number() && dropout->number() == 0)) {
      fail("model setting \"dropout\" is not supported");
    }
    const JsonValue* normalizer = part(top_, "normalizer");
    if (normalizer && text_of(normalizer->find("type")) != "NFC") fail_type("normalizer", normalizer);
    if (const JsonValue* decoder = part(top_, "decoder");
        decoder && text_of(decoder->find("type")) != "ByteLevel") {
      fail_type("decoder", decoder);
    }
  }

  void read_pre_tokenizer() {
    const JsonValue* pre = part(top_, "pre_tokenizer");
    if (!pre) fail("no pre_tokenizer, expected Split and ByteLevel");
    const std::string type = text_of(pre->find("type"));
    if (type == "ByteLevel") {
      check_byte_level(*pre, true);
      parts_.split_pattern = kGpt2Pattern;
      return;
    }
    const JsonValue* list = pre->find("pretokenizers");
    if (type != "Sequence" || !list || !list->array()) fail_type("pre_tokenizer", pre);
    const JsonValue::Array& steps = *list->array();
    for (size_t i = 0; i < steps.size(); ++i) {
      const std::string step = text_of(steps[i].find("type"));
      if (i > 1 || step != (i == 0 ? "Split" : "ByteLevel")) fail_type("pre_tokenizer", &steps[i]);
    }
    if (steps.size() != 2)
      fail(concat("pre_tokenizer has ", steps.size(), " steps, expected Split and ByteLevel"));
    check_byte_level(steps[1], false);
    const JsonValue* pattern = steps[0].find("pattern");
    const JsonValue* regex = pattern ? pattern->find("Regex") : nullptr;
    if (!regex || !regex->string()) fail("pre_tokenizer Split has no Regex pattern");
    if (text_of(steps[0].find("behavior")) != "Isolated" || flag_of(steps[0].find("invert"), false)) {
      fail("pre_tokenizer Split is not supported but with behavior \"Isolated\" and invert false");
    }
    parts_.split_pattern = *regex->string();
  }

  void check_byte_level(const JsonValue& byte_level, bool use_regex) const {
    if (flag_of(byte_level.find("add_prefix_space"), true))
      fail("pre_tokenizer ByteLevel with add_prefix_space is not supported");
    if (flag_of(byte_level.find("use_regex"), true) != use_regex) {
      fail(concat("pre_tokenizer ByteLevel with use_regex ",
                  use_regex ? "false and no Split" : "true after a Split", " is not supported"));
    }
  }

  void fill_vocabulary() {
    std::string bytes;
    for (const auto& [span, id] : vocab_) {
      const std::string_view key = strings_[span];
      if (const int32_t special = parts_.specials.find(key); special >= 0) {
        if (special == id) continue;  // listed among the ordinary tokens too: special only
        fail(concat("special token \"", printable(key), "\" (id ", special, ") is also ordinary token ", id));
      }
      if (!undo_byte_map(key, bytes)) {
        // An added token may be listed among the ordinary ones, as it is.
        if (parts_.added.find(key) == id || parts_.added_normalized.find(key) == id) continue;
        fail(concat("token \"", printable(key), "\" (id ", id, ") has a character that stands for no byte"));
      }
      parts_.ordinary.add(id, bytes);
    }
  }

  void fill_merges() {
    parts_.whole_pieces = flag_of(part(model_, "ignore_merges"), false);
    auto& out = parts_.merges.emplace();
    out.reserve(merges_.size());
    std::string left, right;
    for (const auto& [left_span, right_span] : merges_) {
      const bool mapped =
          undo_byte_map(strings_[left_span], left) && undo_byte_map(strings_[right_span], right);
      const Merge merge = mapped ? Merge{parts_.ordinary.find(left), parts_.ordinary.find(right),
                                         parts_.ordinary.find(left + right)}
                                 : Merge{-1, -1, -1};
      if (merge.left < 0 || merge.right < 0 || merge.merged < 0) {
        fail(concat("merge ", out.size(), " (\"", printable(strings_[left_span]), "\" \"",
                    printable(strings_[right_span]), "\") needs a token that is not in the vocabulary"));
      }
      out.push_back(merge);
    }
  }

  std::string name_;
  TokenizerParts parts_;
  std::vector<Section> outer_;  // of the containers around the current one
  Section section_ = Section::document;
  std::set<Section> opened_;  // model, vocab, merges, added: once each
  std::string key_;           // the last one

  JsonValue captured_;  // the tree being built, and the key it belongs to
  std::string captured_key_;
  std::vector<JsonValue*> open_;
  JsonValue* member_ = nullptr;  // where the value of the last key goes
  size_t num_captured_ = 0;
  std::map<std::string, JsonValue> top_, model_;  // the parts kept

  StringArena strings_;
  std::vector<std::pair<StringArena::Span, int64_t>> vocab_;
  std::vector<std::array<StringArena::Span, 2>> merges_;
  std::array<StringArena::Span, 2> merge_{};
  size_t merge_parts_ = 0;
};

}  // namespace

TokenizerParts read_tokenizer_json(std::string_view bytes, const std::string& name) {
  Handler handler(name);
  parse_json(bytes, name, {.max_bytes = kMaxFileBytes, .max_depth = 64}, handler);
  return handler.finish();
}

}  // namespace trivium::io
