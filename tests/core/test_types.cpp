// Names, parsing and messages of dtypes, devices, shapes and errors.
#include <sstream>

#include "core/cancel.h"
#include "core/log.h"
#include "support/backend.h"

namespace trivium::testing {
namespace {

template <class T>
std::string text(const T& value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

constexpr Dtype kAll[] = {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::f64, Dtype::i64, Dtype::i32,
                          Dtype::i16, Dtype::i8,   Dtype::u8,  Dtype::u16, Dtype::u32, Dtype::boolean};

TEST(Dtype, NamesAndSizesBelongTogether) {
  const std::pair<const char*, int64_t> want[] = {
      {"float32", 4}, {"bfloat16", 2}, {"float16", 2}, {"float64", 8}, {"int64", 8},  {"int32", 4},
      {"int16", 2},   {"int8", 1},     {"uint8", 1},   {"uint16", 2},  {"uint32", 4}, {"bool", 1}};
  for (size_t i = 0; i < std::size(kAll); ++i) {
    EXPECT_EQ(static_cast<size_t>(kAll[i]), i) << "the values are part of the backend ABI";
    EXPECT_EQ(text(kAll[i]), want[i].first);
    EXPECT_EQ(size_of(kAll[i]), want[i].second);
    EXPECT_EQ(parse_dtype(want[i].first), kAll[i]);
  }
}

TEST(Dtype, UnknownNamesAreRefusedAndPrintedSafely) {
  for (const char* name : {"", "float", "Float32", "float32 ", "int4"})
    expect_error([&] { parse_dtype(name); }, {concat("unknown dtype \"", name, "\""), "expected float32"});
  expect_error([] { parse_dtype("a\nb\x80"); }, {"a\\x0ab\\x80"});
}

TEST(Dtype, DispatchCallsTheMatchingTypeOnly) {
  int64_t size = 0;
  dispatch_dtype<float, bf16>(Dtype::bf16, "op", [&]<class T>() { size += sizeof(T); });
  EXPECT_EQ(size, 2);
  expect_error([&] { dispatch_dtype<float, bf16>(Dtype::i8, "op", [&]<class T>() { size = 0; }); },
               {"op: dtype int8 is not supported here"});
}

TEST(Device, NamesCarryAnIndexExceptOnTheCpu) {
  EXPECT_EQ(text(Device{}), "cpu");
  EXPECT_EQ(text(Device{DeviceKind::cuda, 1}), "cuda:1");
  EXPECT_EQ(text(Device{DeviceKind::hip, 0}), "hip:0");
  EXPECT_STREQ(name_of(static_cast<DeviceKind>(99)), "unknown");
}

TEST(Shape, PrintsComparesAndIndexesFromBothEnds) {
  const Shape s{2, 0, 7};
  EXPECT_EQ(text(s), "[2, 0, 7]");
  EXPECT_EQ(text(Shape{}), "[]");
  EXPECT_EQ(s[-1], 7);
  EXPECT_EQ(s[0], 2);
  EXPECT_NE(s, (Shape{2, 0}));
  EXPECT_NE((Shape{2}), (Shape{2, 1}));
  EXPECT_EQ(s.numel(), 0);
  EXPECT_EQ(Shape{}.numel(), 1);
}

TEST(Shape, RefusesNegativeExtentsHighRanksAndOverflow) {
  expect_error([] { Shape{2, -1}; }, {"shape: negative extent -1"});
  expect_error([] { Shape{1, 1, 1, 1, 1, 1, 1, 1, 1}; }, {"shape: rank 9, at most 8"});
  const int64_t big = int64_t{1} << 32;
  expect_error([&] { Shape({big, big}).numel(); }, {"[4294967296, 4294967296]", "2^63"});
  EXPECT_EQ((Shape{big, big, 0}).numel(), 0) << "an empty extent makes any shape empty, wherever it stands";
  EXPECT_EQ((Shape{0, big, big}).numel(), 0);
}

TEST(Errors, PrintableEscapesAndShortens) {
  EXPECT_EQ(printable("plain text"), "plain text");
  EXPECT_EQ(printable(std::string_view("a\0\x1b[31m\xc3\xa9", 9)), "a\\x00\\x1b[31m\\xc3\\xa9");
  EXPECT_EQ(printable("abcdef", 3), "abc...");
  EXPECT_EQ(printable("abc", 3), "abc");
  EXPECT_EQ(one_line("a\n\x1b\x7f\xc3\xa9 \\x0a"), "a\\x0a\\x1b\\x7f\xc3\xa9 \\x0a");
}

TEST(Errors, ACheckThatFailsThrowsItsSentence) {
  const int got = 3;
  expect_error([&] { TRIVIUM_CHECK(got == 4, "op: got ", got, ", expected ", 4); },
               {"op: got 3, expected 4"});
  TRIVIUM_CHECK(got == 3, "never built");
}

TEST(CancelToken, ThrowsUntilItIsReset) {
  CancelToken token;
  token.check();
  token.cancel();
  EXPECT_TRUE(token.cancelled());
  EXPECT_THROW(token.check(), Cancelled);
  token.reset();
  token.check();
}

std::string g_logged;

TEST(Log, GoesToTheSinkAndBackToStderr) {
  set_log_sink([](LogLevel level, const char* message) {
    g_logged = concat(level == LogLevel::warning ? "W " : "I ", message);
  });
  warn("careful");
  EXPECT_EQ(g_logged, "W careful");
  set_log_sink(nullptr);
  ::testing::internal::CaptureStderr();
  warn("again");
  log(LogLevel::info, "note");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "warning: again\nnote\n");
  EXPECT_EQ(g_logged, "W careful");
}

}  // namespace
}  // namespace trivium::testing
