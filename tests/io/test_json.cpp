// JSON: what is accepted, what is refused and where, limits, and the writer.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "io/json.h"
#include "support/timing.h"

namespace trivium::io {
namespace {

std::string error_of(std::string_view text, const JsonLimits& limits = {}) {
  try {
    parse_json_document(text, "config.json", limits);
  } catch (const ModelFormatError& error) {
    return error.what();
  }
  return "";
}

// Every event as one character, so that the order of a document shows.
class Recorder final : public JsonHandler {
 public:
  std::string events;
  void on_null() override { events += 'n'; }
  void on_bool(bool value) override { events += value ? 't' : 'f'; }
  void on_integer(int64_t value) override { events += concat("i", value); }
  void on_unsigned(uint64_t value) override { events += concat("u", value); }
  void on_number(double value) override { events += concat("d", value); }
  void on_string(std::string_view value) override { events += concat("s", value); }
  void on_key(std::string_view key) override { events += concat("k", key); }
  void on_start_object() override { events += '{'; }
  void on_end_object() override { events += '}'; }
  void on_start_array() override { events += '['; }
  void on_end_array() override { events += ']'; }
};

using trivium::testing::cpu_seconds_of;
using trivium::testing::kSlower;

TEST(Json, EventsArriveInDocumentOrder) {
  Recorder recorder;
  parse_json(R"({"a":[1,-2,2.5,null],"b":{"c":true,"d":false},"e":"x"})", "t", {}, recorder);
  EXPECT_EQ(recorder.events, "{ka[i1i-2d2.5n]kb{kctkdf}kesx}");
}

TEST(Json, TreeHoldsEveryKindOfValue) {
  const JsonValue root =
      parse_json_document(R"( {"s":"h\u00e9\ud83d\ude00","n":null,"a":[1,2.5,true]} )", "t");
  ASSERT_NE(root.object(), nullptr);
  EXPECT_EQ(*root.find("s")->string(), "h\xC3\xA9\xF0\x9F\x98\x80");
  EXPECT_EQ(root.find("n"), nullptr);
  EXPECT_EQ(root.find("absent"), nullptr);
  const auto& array = *root.find("a")->array();
  ASSERT_EQ(array.size(), 3u);
  EXPECT_EQ(array[0].integer(), 1);
  EXPECT_EQ(array[1].number(), 2.5);
  EXPECT_TRUE(*array[2].boolean());
}

TEST(Json, IntegersKeepAll64Bits) {
  Recorder recorder;
  parse_json("[9223372036854775807,-9223372036854775808,9223372036854775808,18446744073709551615]", "t", {},
             recorder);
  EXPECT_EQ(recorder.events,
            "[i9223372036854775807i-9223372036854775808u9223372036854775808u18446744073709551615]");
  EXPECT_EQ(parse_json_document("18446744073709551616", "t").number(), 18446744073709551616.0);
  EXPECT_FALSE(parse_json_document("1.0", "t").is_integer());
}

TEST(Json, IllFormedTextIsRefusedWithItsOffset) {
  const std::pair<std::string_view, const char*> cases[] = {
      {"", "byte 0"},
      {"{", "byte 1"},
      {R"({"a":1} x)", "byte 9"},
      {R"({"a":1}{})", "byte 8"},
      {R"({"a":1,})", "byte 8"},
      {"[1 2]", "byte 5"},
      {"[01]", "byte 4"},
      {"nul", "byte 3"},
      {"[NaN]", "byte 2"},
      {"[1e999]", "1e999"},
      {"[-1e999]", "1e999"},
      {R"("\ud800")", "byte 8"},
      {R"("\udc00")", "byte 7"},
      {R"("\ud800\ud800")", "byte 13"},
      {"\"\xff\"", "byte 2"},
      {"\"\xed\xa0\x80\"", "byte 3"},
      {"\"\xc0\x80\"", "byte 2"},
      {"\"a\nb\"", "byte 3"},
      {"\xEF\xBB\xBF{}", "byte-order mark"},
      {"// comment\n1", "byte 1"},
      {"'a'", "byte 1"},
      {R"({"a":1,"a":2})", "key \"a\" appears twice"},
      {R"([{"b":{"a":1,"a":1}}])", "key \"a\" appears twice"},
  };
  for (const auto& [text, expected] : cases) {
    const std::string error = error_of(text);
    EXPECT_NE(error.find(expected), std::string::npos) << "text: " << text << "\nerror: " << error;
    EXPECT_EQ(error.rfind("config.json: invalid JSON at byte ", 0), 0u) << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
}

TEST(Json, NulBytesDoNotEndTheDocument) {
  EXPECT_NE(error_of(std::string_view("{}\0garbage", 10)).find("byte 2: a NUL byte"), std::string::npos);
  EXPECT_NE(error_of(std::string_view("{}\0", 3)).find("byte 2: a NUL byte"), std::string::npos);
  EXPECT_EQ(*parse_json_document(R"("a\u0000b")", "t").string(), std::string("a\0b", 3));
}

TEST(Json, EveryPrefixOfADocumentIsRefused) {
  const std::string text = R"({"a":[1,2.5e3,{"b":"\u00e9\ud83d\ude00"}],"c":{"d":null,"e":true}})";
  ASSERT_EQ(error_of(text), "");
  for (size_t n = 0; n < text.size(); ++n) EXPECT_NE(error_of(text.substr(0, n)), "") << n;
}

TEST(Json, DepthAndSizeLimitsHold) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_EQ(error_of(nested(64)), "");
  EXPECT_NE(error_of(nested(65)).find("byte 65: nesting is deeper than 64 levels"), std::string::npos);
  EXPECT_EQ(error_of("[1]", {.max_bytes = 3, .max_depth = 1}), "");
  EXPECT_NE(error_of("[1] ", {.max_bytes = 3, .max_depth = 1}).find("4 bytes, at most 3"), std::string::npos);
  // A tree is never deeper than the stack can destroy, whatever the caller allows.
  EXPECT_NE(error_of(nested(100000), {.max_bytes = 1 << 20, .max_depth = 1 << 30}), "");
}

TEST(Json, BombsAreRefusedInLinearTime) {
  std::string objects;
  for (int i = 0; i < 1000000; ++i) objects += "{\"a\":";
  const std::string brackets(1000000, '[');
  const JsonLimits limits{.max_bytes = 1 << 24, .max_depth = 64};
  EXPECT_LT(cpu_seconds_of([&] { EXPECT_NE(error_of(brackets, limits), ""); }), 1.0 * kSlower);
  EXPECT_LT(cpu_seconds_of([&] { EXPECT_NE(error_of(objects, limits), ""); }), 1.0 * kSlower);
  const std::string open_string = "\"" + std::string(10000000, 'x');
  std::string error;
  EXPECT_LT(cpu_seconds_of([&] { error = error_of(open_string, limits); }), 2.0 * kSlower);
  EXPECT_NE(error, "");
  EXPECT_LT(error.size(), 400u);
  // Depth 10^6 is linear even when it is allowed.
  Recorder recorder;
  EXPECT_LT(cpu_seconds_of([&] {
              parse_json(brackets + std::string(1000000, ']'), "t", {1 << 24, 1 << 24}, recorder);
            }),
            1.0 * kSlower);
  EXPECT_EQ(recorder.events.size(), 2000000u);
}

TEST(Json, AHandlersExceptionPassesThrough) {
  struct Thrower final : JsonHandler {
    void on_null() override {}
    void on_bool(bool) override {}
    void on_integer(int64_t) override { throw InvalidArgument("no integers"); }
    void on_unsigned(uint64_t) override {}
    void on_number(double) override {}
    void on_string(std::string_view) override {}
    void on_key(std::string_view) override {}
    void on_start_object() override {}
    void on_end_object() override {}
    void on_start_array() override {}
    void on_end_array() override {}
  } handler;
  EXPECT_THROW(parse_json("[1]", "t", {}, handler), InvalidArgument);
}

TEST(Json, RandomBytesNeverDoMoreThanFail) {
  std::mt19937 random(1);
  const std::string valid = R"({"a":[1,-2.5e3,"\u00e9"],"b":{"c":null,"d":[true,false]}})";
  for (int i = 0; i < 20000; ++i) {
    std::string text = valid;
    for (int k = 0; k < 3; ++k) text[random() % text.size()] = static_cast<char>(random());
    const std::string error = error_of(text);
    if (!error.empty()) {
      EXPECT_EQ(error.rfind("config.json: invalid JSON at byte ", 0), 0u);
    }
  }
}

TEST(JsonWriter, WritesNestedValuesWithCommas) {
  JsonWriter writer;
  writer.begin_object().key("a").begin_array().integer(1).number(2.5).null().end_array();
  writer.key("b").begin_object().end_object().key("c").boolean(true).key("d").string("x").end_object();
  EXPECT_EQ(writer.text(), R"({"a":[1,2.5,null],"b":{},"c":true,"d":"x"})");
}

TEST(JsonWriter, EscapesStayOnOneLineAndReadBack) {
  std::string all;
  for (int c = 0; c < 128; ++c) all += static_cast<char>(c);
  JsonWriter writer;
  writer.string(all + "\xE2\x82\xAC");
  EXPECT_EQ(writer.text().find('\n'), std::string::npos);
  EXPECT_EQ(*parse_json_document(writer.text(), "t").string(), all + "\xE2\x82\xAC");
}

TEST(JsonWriter, IllFormedUtf8BecomesReplacementCharacters) {
  JsonWriter writer;
  writer.string(
      "a\xff"
      "b\xe2\x82");
  EXPECT_EQ(writer.text(),
            "\"a\xEF\xBF\xBD"
            "b\xEF\xBF\xBD\"");
  std::mt19937 random(2);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes(random() % 40, ' ');
    for (char& c : bytes) c = static_cast<char>(random());
    JsonWriter any;
    any.begin_object().key(bytes).string(bytes).end_object();
    EXPECT_EQ(error_of(any.text()), "") << any.text();
  }
}

TEST(JsonWriter, NumbersReadBackExactly) {
  const double values[] = {0.1, 1e300, -1e-300, 5e-324, 1.7976931348623157e308, 1.0 / 3, 123456789.0, 1e21};
  for (const double value : values) {
    JsonWriter writer;
    writer.number(value);
    EXPECT_EQ(parse_json_document(writer.text(), "t").number(), value) << writer.text();
  }
  JsonWriter zero;
  zero.number(-0.0);
  EXPECT_TRUE(std::signbit(parse_json_document(zero.text(), "t").number()));
  JsonWriter odd;
  odd.begin_array().number(std::nan("")).number(std::numeric_limits<double>::infinity()).integer(INT64_MIN);
  odd.end_array();
  EXPECT_EQ(odd.text(), "[null,null,-9223372036854775808]");
}

}  // namespace
}  // namespace trivium::io
