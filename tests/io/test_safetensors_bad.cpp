// safetensors files that are truncated, damaged or hostile: one sentence, never a crash or a hang.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ctime>
#include <random>

#include "io/safetensors_header.h"
#include "io/safetensors_support.h"

namespace trivium::io {
namespace {

// Three tensors of 8, 6 and 5 bytes behind a header.
std::string small_file() {
  return make_file(R"({"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                   R"("model.layers.0.b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},)"
                   R"("s":{"dtype":"U8","shape":[5,1],"data_offsets":[14,19]}}  )",
                   "0123456789abcdefghi");
}

std::string header_error(const std::string& header, std::string_view data = "") {
  const TempFolder folder;
  return open_error(folder.write("a.safetensors", make_file(header, data)));
}

std::string tensor(const std::string& shape, const std::string& offsets, const std::string& dtype = "U8") {
  return R"({"w":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

TEST(SafetensorsBad, TruncationAtEveryByteIsRefused) {
  const TempFolder folder;
  const std::string whole = small_file();
  ASSERT_EQ(open_error(folder.write("a.safetensors", whole)), "");
  const size_t data_begin = whole.size() - 19;
  for (size_t n = 0; n < whole.size(); ++n) {
    const std::string path = folder.write("a.safetensors", std::string_view(whole).substr(0, n));
    for (const LoadMode mode : {LoadMode::mmap, LoadMode::read}) {
      const std::string error = open_error(path, mode);
      EXPECT_TRUE(has(error, path)) << n << ": " << error;
      EXPECT_TRUE(has(error, "The download is probably incomplete.")) << n << ": " << error;
      if (n >= 8) {
        EXPECT_TRUE(has(error, concat("file ends at byte ", n, " but "))) << error;
      }
    }
    if (n >= data_begin) {
      const char* name = n < data_begin + 8    ? "\"w\""
                         : n < data_begin + 14 ? "\"model.layers.0.b\""
                                               : "\"s\"";
      EXPECT_TRUE(has(open_error(path), name)) << n;
    }
  }
}

TEST(SafetensorsBad, TrailingBytesAreRefused) {
  const TempFolder folder;
  const std::string error = open_error(folder.write("a.safetensors", small_file() + "xyz"));
  EXPECT_TRUE(has(error, "3 bytes follow the last tensor")) << error;
}

TEST(SafetensorsBad, FlippedBytesAreReadInBoundsOrRefused) {
  const TempFolder folder;
  const std::string whole = small_file();
  const auto check = [&](const std::string& bytes) {
    const std::string path = folder.write("a.safetensors", bytes);
    model_error([&] {
      const auto archive = TensorArchive::open(path, LoadMode::read);
      for (const auto& [name, entry] : archive->entries()) {
        EXPECT_LE(entry.end, static_cast<int64_t>(bytes.size()));
        const Tensor got = archive->tensor(name);
        std::string copy(static_cast<const char*>(got.data()),
                         static_cast<size_t>(got.nbytes()));  // ASan reads all
      }
    });
  };
  for (size_t i = 0; i < whole.size(); ++i)
    for (const int flip : {1, 32, 255}) {
      std::string bytes = whole;
      bytes[i] = static_cast<char>(bytes[i] ^ flip);
      check(bytes);
    }
  std::mt19937 random(3);
  for (int i = 0; i < 500; ++i) {
    std::string bytes = whole;
    for (int k = 0; k < 4; ++k) bytes[random() % bytes.size()] = static_cast<char>(random());
    check(bytes);
  }
}

TEST(SafetensorsBad, HeaderLengthsOutOfRangeAreRefused) {
  const TempFolder folder;
  const auto error = [&](uint64_t length) {
    return open_error(folder.write("a.safetensors", with_length("{}", length)));
  };
  EXPECT_TRUE(has(error(0), "the header length is 0"));
  EXPECT_TRUE(has(error(1), "invalid JSON at byte 1"));
  EXPECT_TRUE(has(error(3), "file ends at byte 10 but its header needs 11"));
  EXPECT_TRUE(has(error(100'000'000), "file ends at byte 10 but its header needs 100000008"));
  EXPECT_TRUE(has(error(100'000'001), "the header length is 100000001"));
  EXPECT_TRUE(has(error(uint64_t{1} << 63), "the header length is 9223372036854775808"));
  EXPECT_TRUE(has(error(UINT64_MAX), "the header length is 18446744073709551615"));
  EXPECT_TRUE(has(open_error(folder.write("b.safetensors", "version https://git-lfs.github.com/spec/v1\n")),
                  "Git LFS"));
}

TEST(SafetensorsBad, ALargeHeaderInASparseFileIsNotAllocatedBlindly) {
  const TempFolder folder;
  const std::string path = folder.write("a.safetensors", with_length("{}", 100'000'001));
  std::filesystem::resize_file(path, 200'000'000);
  EXPECT_TRUE(has(open_error(path), "the header length is 100000001"));
}

TEST(SafetensorsBad, IllFormedHeadersAreRefused) {
  const std::pair<std::string, const char*> cases[] = {
      {"[]", "expected an object"},
      {"1", "expected an object"},
      {"null", "expected an object"},
      {"\"x\"", "expected an object"},
      {"{", "invalid JSON"},
      {"{} {}", "invalid JSON"},
      {R"({"w":1})", "tensor \"w\": must be an object"},
      {R"({"w":[]})", "tensor \"w\": must be an object"},
      {R"({"w":null})", "tensor \"w\": must be an object"},
      {R"({"w":{}})", "needs dtype, shape and two data_offsets"},
      {R"({"w":{"dtype":"U8","shape":[]}})", "needs dtype, shape and two data_offsets"},
      {R"({"w":{"dtype":"U8","data_offsets":[0,0]}})", "needs dtype, shape and two data_offsets"},
      {R"({"w":{"shape":[0],"data_offsets":[0,0]}})", "needs dtype, shape and two data_offsets"},
      {R"({"w":{"dtype":8,"shape":[0],"data_offsets":[0,0]}})", "dtype must be a string"},
      {R"({"w":{"dtype":{},"shape":[0],"data_offsets":[0,0]}})", "dtype must be a string"},
      {R"({"w":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})", "dtype appears twice"},
      {R"({"w":{"dtype":"U8","shape":[0],"shape":[0],"data_offsets":[0,0]}})", "shape appears twice"},
      {R"({"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"data_offsets":[0,0]}})",
       "data_offsets appears twice"},
      {R"({"__metadata__":[]})", "__metadata__ must be an object"},
      {R"({"__metadata__":"x"})", "__metadata__ must be an object"},
      {R"({"__metadata__":{"a":1}})", "__metadata__ must hold strings only"},
      {R"({"__metadata__":{"a":null}})", "__metadata__ must hold strings only"},
      {R"({"__metadata__":{"a":{}}})", "__metadata__ must hold strings only"},
      {R"({"__metadata__":{"a":[]}})", "__metadata__ must hold strings only"},
      {R"({"__metadata__":{},"__metadata__":{}})", "__metadata__ appears twice"},
      {tensor("0", "[0,0]"), "shape must be a list"},
      {tensor("{}", "[0,0]"), "shape must be a list"},
      {tensor("[[]]", "[0,0]"), "shape must be a list"},
      {tensor("[2.0]", "[0,2]"), "shape must be a list"},
      {tensor("[\"2\"]", "[0,2]"), "shape must be a list"},
      {tensor("[-1]", "[0,0]"), "each from 0 to 2^63 - 1"},
      {tensor("[9223372036854775808]", "[0,0]"), "each from 0 to 2^63 - 1"},
      {tensor("[1,1,1,1,1,1,1,1,1]", "[0,1]"), "at most 8 extents"},
      {tensor("[0]", "[0]"), "two data_offsets"},
      {tensor("[0]", "[]"), "two data_offsets"},
      {tensor("[0]", "[0,0,0]"), "must be two integers"},
      {tensor("[0]", "[-1,0]"), "must be two integers"},
      {tensor("[0]", "[0,1.5]"), "must be two integers"},
      {tensor("[0]", "[0,18446744073709551615]"), "must be two integers"},
      {tensor("[0]", "null"), "must be two integers"},
  };
  for (const auto& [header, expected] : cases) {
    const std::string error = header_error(header);
    EXPECT_TRUE(has(error, expected)) << "header: " << header << "\nerror: " << error;
    EXPECT_TRUE(has(error, "a.safetensors")) << error;
  }
}

TEST(SafetensorsBad, SizesThatOverflowAreRefused) {
  EXPECT_TRUE(has(header_error(tensor("[1099511627776,1099511627776]", "[0,0]")), "more than 2^63 elements"));
  EXPECT_TRUE(
      has(header_error(tensor("[1099511627776,1099511627776,0]", "[0,0]")), "more than 2^63 elements"));
  EXPECT_TRUE(has(header_error(tensor("[4294967296,4294967296]", "[0,0]")), "more than 2^63 elements"));
  EXPECT_TRUE(has(header_error(tensor("[4611686018427387904]", "[0,0]", "F32")), "larger than any file"));
  // 2^58 * 64 bits = 2^64 bits: a product of bits that wraps to zero.
  EXPECT_TRUE(has(header_error(tensor("[288230376151711744]", "[0,0]", "F64")), "larger than any file"));
  EXPECT_EQ(header_error(tensor("[9223372036854775807]", "[0,0]", "Q3")), "");  // size unknown, never used
  EXPECT_TRUE(has(header_error(tensor("[0]", "[9223372036854775807,9223372036854775807]")), "out of range"));
  EXPECT_TRUE(has(header_error(tensor("[3]", "[0,1]", "F4")), "does not fill whole bytes"));
}

TEST(SafetensorsBad, ExtentsMustMatchTheShapeAndTileTheData) {
  const auto two = [](const std::string& a, const std::string& b, const std::string& shape_b = "[2]") {
    return R"({"a":{"dtype":"U8","shape":[2],"data_offsets":)" + a + R"(},"b":{"dtype":"U8","shape":)" +
           shape_b + R"(,"data_offsets":)" + b + "}}";
  };
  ASSERT_EQ(header_error(two("[0,2]", "[2,4]"), "wxyz"), "");
  ASSERT_EQ(header_error(two("[2,4]", "[0,2]"), "wxyz"), "");
  EXPECT_TRUE(has(header_error(two("[0,2]", "[1,3]"), "xyz"),
                  "tensor \"b\" begins at data byte 1, expected 2 (tensors overlap)"));
  EXPECT_TRUE(has(header_error(two("[0,2]", "[0,2]"), "xy"), "tensors overlap"));
  EXPECT_TRUE(has(header_error(two("[0,2]", "[3,5]"), "vwxyz"),
                  "tensor \"b\" begins at data byte 3, expected 2 (a hole"));
  EXPECT_TRUE(has(header_error(two("[1,3]", "[3,5]"), "vwxyz"),
                  "tensor \"a\" begins at data byte 1, expected 0 (a hole"));
  EXPECT_TRUE(has(header_error(two("[0,2]", "[1,1]", "[0]"), "xy"), "tensors overlap"));
  EXPECT_TRUE(has(header_error(tensor("[2]", "[2,0]"), "xy"), "data_offsets [2, 0] run backwards"));
  EXPECT_TRUE(has(header_error(tensor("[3]", "[0,2]"), "xy"), "needs 3 bytes, data_offsets span 2"));
  EXPECT_TRUE(has(header_error(tensor("[2]", "[0,2]", "BF16"), "xy"), "needs 4 bytes, data_offsets span 2"));
  EXPECT_TRUE(has(header_error(tensor("[2]", "[0,3]", "Q3"), "xy"), "file ends at byte"));
  EXPECT_TRUE(has(header_error("{}", "xy"), "2 bytes follow"));
}

TEST(SafetensorsBad, DuplicateAndOddNamesAreHandled) {
  const std::string info = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  EXPECT_TRUE(has(header_error(R"({"a":)" + info + R"(,"b":)" + info + R"(,"a":)" + info + "}"),
                  "tensor \"a\" appears twice"));
  // One name in two spellings.
  EXPECT_TRUE(
      has(header_error(R"({"a":)" + info + R"(,"\u0061":)" + info + "}"), "tensor \"a\" appears twice"));
  const std::string error = header_error(R"({"x\n\u0000\u001b[31m":1})");
  EXPECT_TRUE(has(error, "tensor \"x\\x0a\\x00\\x1b[31m\"")) << error;
  EXPECT_NE(header_error("{\"" + std::string(4 << 20, 'n') + "\":1}"), "");
}

TEST(SafetensorsBad, ManyTensorsAreCappedInLinearTime) {
  const auto header_of = [](size_t count) {
    std::string header = "{";
    for (size_t i = 0; i < count; ++i)
      header += concat(i == 0 ? "\"" : ",\"", i, R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})");
    return header += "}";
  };
  const std::string over = header_of(kMaxTensors + 1);
  ASSERT_LT(over.size(), static_cast<size_t>(kMaxSafetensorsHeaderBytes));
  const auto size = static_cast<int64_t>(over.size()) + kSafetensorsPrefixBytes;
  const std::string error = model_error([&] { parse_safetensors_header(over, size, "a.safetensors"); });
  EXPECT_TRUE(has(error, "more than 1000000 tensors")) << error;
  // Ten times the tensors, about ten times the work; quadratic work would be a hundred times.
  const auto work_for = [&](size_t count) {
    const std::string header = header_of(count);
    const std::clock_t start = std::clock();
    EXPECT_EQ(parse_safetensors_header(header, static_cast<int64_t>(header.size()) + 8, "a").size(), count);
    return static_cast<double>(std::clock() - start);
  };
  const double few = work_for(20000);
  EXPECT_LT(work_for(200000), 40 * few);
}

TEST(SafetensorsBad, OnlyRegularFilesAreOpened) {
  const TempFolder folder;
  const std::string fifo = folder.path("a.safetensors");
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_TRUE(has(open_error(fifo), "is a FIFO, expected a regular file"));
  EXPECT_TRUE(has(open_error("/dev/zero"), "is a device, expected a regular file"));
  EXPECT_TRUE(has(open_error(folder.path("absent.safetensors")),
                  "absent.safetensors: cannot be opened: No such file"));
  std::filesystem::create_symlink("loop", folder.path("loop"));
  EXPECT_TRUE(has(open_error(folder.path("loop")), "Too many levels of symbolic links"));
}

TEST(SafetensorsBad, AFileWithoutPermissionIsAnIoError) {
  const TempFolder folder;
  const std::string path = folder.write("a.safetensors", small_file());
  std::filesystem::permissions(path, std::filesystem::perms::none);
  const pid_t child = ::fork();
  if (child == 0) {
    if (::geteuid() == 0 && ::setuid(65534) != 0) ::_exit(77);  // root may read everything
    try {
      TensorArchive::open(path);
    } catch (const IoError&) {
      ::_exit(42);
    } catch (...) {
    }
    ::_exit(1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) GTEST_SKIP() << "no way to become another user";
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 42) << status;
}

}  // namespace
}  // namespace trivium::io
