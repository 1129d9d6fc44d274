#include <gtest/gtest.h>

#include "core/error.h"
#include "getp/fake_model.h"
#include "getp/files.h"
#include "getp/input.h"
#include "getp/job.h"
#include "getp/output.h"
#include "getp/overwrite.h"
#include "io/hash.h"
#include "io/json.h"
#include "support/temp_folder.h"

namespace trivium::getp {
namespace {

using testing::error_of;
using testing::TempFolder;

std::vector<std::string> prompts_of(const InputFile& file) {
  std::vector<std::string> out;
  for (const InputItem& item : file.items) out.push_back(item.prompt);
  return out;
}

InputFile text(const std::string& bytes, int64_t limit = 0) {
  const TempFolder folder;
  return read_inputfile(folder.write("in.txt", bytes), limit);
}

InputFile jsonl(const std::string& bytes, size_t max_line = kMaxLineBytes) {
  const TempFolder folder;
  return read_inputfile(folder.write("in.jsonl", bytes), 0, max_line);
}

using Strings = std::vector<std::string>;

TEST(TextInput, TakesPromptsAsTheyStand) {
  EXPECT_EQ(prompts_of(text("2\nhello world\n a\tb \n")), (Strings{"hello world", " a\tb "}));
  EXPECT_EQ(prompts_of(text("2\nhello\nlast")), (Strings{"hello", "last"}));
  EXPECT_EQ(prompts_of(text("2\r\nhello\r\nx\r\r\n")), (Strings{"hello", "x\r"}));
  EXPECT_EQ(prompts_of(text("3\na\n\nb\n")), (Strings{"a", "", "b"}));
  EXPECT_EQ(prompts_of(text("\xef\xbb\xbf"
                            "1\na\n")),
            (Strings{"a"}));
  EXPECT_EQ(prompts_of(text(std::string("1\na\0b\xff\n", 7))), (Strings{std::string("a\0b\xff", 4)}));
  EXPECT_EQ(prompts_of(text("3\na\nb\nc\n", 2)), (Strings{"a", "b"}));
  EXPECT_TRUE(text("0\n").items.empty());
  EXPECT_TRUE(text("0").items.empty());
}

TEST(TextInput, WarnsAboutMoreLinesThanDeclared) {
  const InputFile file = text("1\na\nb\nc\n");
  EXPECT_EQ(prompts_of(file), (Strings{"a"}));
  ASSERT_EQ(file.warnings.size(), 1u);
  EXPECT_NE(file.warnings[0].find("input declares 1 prompts, 2 more lines are ignored"), std::string::npos);
  EXPECT_TRUE(text("1\na\n\n\n").warnings.empty()) << "blank lines at the end are nothing to warn about";
}

TEST(TextInput, RefusesWhatMakesNoSense) {
  const auto why = [](const std::string& bytes) { return error_of([&] { text(bytes); }); };
  EXPECT_NE(why("10\na\nb\nc\nd\ne\nf\ng\n").find("input declares 10 prompts, found 7"), std::string::npos);
  EXPECT_NE(why("").find("empty input file"), std::string::npos);
  for (const char* first : {"abc", "1.5", "3 x", "", "1e12", "0x10"})
    EXPECT_NE(why(concat(first, "\na\n")).find("line 1 must be the number of prompts"), std::string::npos)
        << first;
  EXPECT_NE(why("-1\na\n").find("declares -1 prompts, expected 0 or more"), std::string::npos);
  EXPECT_NE(why("1000000000000\na\n").find("at most 100000000 are supported"), std::string::npos);
  EXPECT_NE(why("99999999999999999999999\na\n").find("at most 100000000 are supported"), std::string::npos);
}

TEST(TextInput, MissingFilesAndFoldersAreIoErrors) {
  EXPECT_THROW(read_inputfile("/nonexistent/in.txt"), IoError);
  EXPECT_THROW(read_inputfile("/tmp"), IoError);
}

TEST(TextInput, ALineOverTheCapFailsAlone) {
  const TempFolder folder;
  const auto path =
      folder.write("in.txt", "4\nok\n" + std::string(101, 'x') + "\n" + std::string(100, 'y') + "\r\nz\n");
  const InputFile file = read_inputfile(path, 0, 100);
  ASSERT_EQ(file.items.size(), 4u);
  EXPECT_EQ(file.items[1].error, "line 3 is longer than 100 bytes");
  EXPECT_EQ(file.items[2].prompt, std::string(100, 'y'));
  for (const size_t i : {0u, 2u, 3u}) EXPECT_EQ(file.items[i].error, "");
}

TEST(JsonlInput, ReadsEveryKey) {
  const InputFile file = jsonl(
      R"({"custom_id": "a", "prompt": "hi", "max_tokens": 5, "temperature": 0.5, "top_p": 0.25, "seed": 18446744073709551615, "stop": ["x", "y"]})"
      "\n\n"
      R"({"custom_id": 7, "prompt": [1, 2, 3], "stop": "z", "top_k": 4, "min_p": 0.125})"
      "\r\n"
      R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]})");
  ASSERT_EQ(file.items.size(), 3u);
  const InputItem &a = file.items[0], &b = file.items[1], &c = file.items[2];
  EXPECT_EQ(a.custom_id, "a");
  EXPECT_EQ(a.prompt, "hi");
  EXPECT_EQ(a.max_tokens, 5);
  EXPECT_EQ(a.temperature, 0.5f);
  EXPECT_EQ(a.top_p, 0.25f);
  EXPECT_EQ(a.seed, UINT64_MAX);
  EXPECT_EQ(a.stop, (Strings{"x", "y"}));
  EXPECT_EQ(b.custom_id, "7");
  EXPECT_EQ(b.ids, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(b.stop, Strings{"z"});
  EXPECT_EQ(b.top_k, 4);
  EXPECT_EQ(b.min_p, 0.125f);
  EXPECT_EQ(c.custom_id, "line-4");
  ASSERT_EQ(c.messages.size(), 2u);
  EXPECT_EQ(c.messages[1].content, "u");
  EXPECT_TRUE(file.warnings.empty());
}

TEST(JsonlInput, AContentMayBeAListOfTextParts) {
  const auto content = [](const std::string& json) {
    const InputItem item =
        jsonl("{\"messages\":[{\"role\":\"user\",\"content\":" + json + "}]}\n").items.at(0);
    return item.error.empty() ? item.messages.at(0).content : item.error;
  };
  EXPECT_EQ(content(R"([{"type":"text","text":"a "},{"text":"b"}])"), "a b");
  EXPECT_EQ(content("[]"), "");
  EXPECT_EQ(content(R"([{"type":"text","text":"a"},"b"])"),
            "line 1: a part of a content is \"b\", expected one with a text");
  EXPECT_EQ(content(R"([{"type":"image_url","image_url":"x"}])"),
            "line 1: a part of a content is an object, expected one with a text");
  EXPECT_EQ(content(R"([{"text":null}])"),
            "line 1: a part of a content is an object, expected one with a text");
  EXPECT_EQ(content("7"), "line 1: a content is 7, expected a string or a list of text parts");
}

TEST(JsonlInput, ABadLineFailsAlone) {
  const auto error = [](const std::string& line) {
    const InputFile file = jsonl("{\"prompt\":\"first\"}\n" + line + "\n{\"prompt\":\"last\"}\n");
    EXPECT_EQ(file.items.size(), 3u) << line;
    EXPECT_EQ(file.items.front().error + file.items.back().error, "") << line;
    return file.items[1].error;
  };
  EXPECT_NE(error("{\"prompt\": \"x\"").find("line 2: invalid JSON"), std::string::npos);
  EXPECT_NE(error("[1]").find("line 2 is a list, expected an object"), std::string::npos);
  EXPECT_NE(error("{}").find("line 2 has neither \"prompt\" nor \"messages\""), std::string::npos);
  EXPECT_NE(error(R"({"prompt":"x","messages":[{"role":"user","content":"x"}]})").find("has both"),
            std::string::npos);
  EXPECT_NE(error(R"({"prompt":5})").find("line 2: prompt is 5, expected a string"), std::string::npos);
  EXPECT_NE(error(R"({"prompt":[1,-2]})").find("a token id of prompt is -2"), std::string::npos);
  EXPECT_NE(error(R"({"prompt":"x","temperature":-1})").find("temperature is -1, expected a number"),
            std::string::npos);
  EXPECT_NE(error(R"({"prompt":"x","temperature":1e99})").find("temperature is 1e+99"), std::string::npos);
  EXPECT_NE(error(R"({"prompt":"x","top_p":1.5})").find("top_p is 1.5, expected a number from 0 to 1"),
            std::string::npos);
  EXPECT_NE(error(R"({"prompt":"x","max_tokens":-1})").find("max_tokens is -1, expected an integer"),
            std::string::npos);
  EXPECT_NE(error(R"({"prompt":"x","seed":1.5})").find("seed is 1.5"), std::string::npos);
  EXPECT_NE(error(R"({"prompt":"x","stop":[1]})").find("stop is 1, expected a string"), std::string::npos);
  EXPECT_NE(error(R"({"messages":[]})").find("a list of at least one message"), std::string::npos);
  EXPECT_NE(error(R"({"messages":[{"role":"user"}]})").find("\"role\" and \"content\""), std::string::npos);
}

TEST(JsonlInput, KeepsTheIdOfABadLineAndWarnsOnceAboutUnknownKeys) {
  const InputFile file = jsonl(
      "{\"custom_id\":\"q\",\"prompt\":\"x\",\"top_p\":7}\n{\"prompt\":\"a\",\"temprature\":1}\n{\"prompt\":"
      "\"a\",\"temprature\":2}\n");
  EXPECT_EQ(file.items[0].custom_id, "q");
  ASSERT_EQ(file.warnings.size(), 1u);
  EXPECT_NE(file.warnings[0].find("unknown key \"temprature\""), std::string::npos);
}

TEST(JsonlInput, ALineOverTheCapFailsAlone) {
  const InputFile file =
      jsonl("{\"prompt\":\"a\"}\n{\"prompt\":\"" + std::string(100, 'x') + "\"}\n{\"prompt\":\"b\"}\n", 60);
  ASSERT_EQ(file.items.size(), 3u);
  EXPECT_EQ(file.items[1].error, "line 2 is longer than 60 bytes");
}

TEST(Output, TextLinesReadBack) {
  Result r;
  r.tokens = {5, 0, 2000000000};
  EXPECT_EQ(format_result(FileKind::text, "", r), "5 0 2000000000");
  const TempFolder folder;
  std::vector<std::vector<int32_t>> got;
  read_outputfile(folder.write("o.txt", "5 0 7\n\n1 2 \r\n3"),
                  [&](int64_t, const auto& ids) { got.push_back(ids); });
  EXPECT_EQ(got, (std::vector<std::vector<int32_t>>{{5, 0, 7}, {}, {1, 2}, {3}}));
  for (const char* bad : {"5 x\n", "5,6\n", "-3\n", "99999999999\n", "1.5\n"}) {
    const std::string why =
        error_of([&] { read_outputfile(folder.write("b.txt", bad), [](int64_t, const auto&) {}); });
    EXPECT_NE(why.find("b.txt: line 1: "), std::string::npos) << bad << why;
  }
}

TEST(Output, JsonLinesHoldEveryKeyAndReadBack) {
  Result r;
  r.tokens = {5, 6};
  r.text = "a\"\n\xff";
  r.finish_reason = FinishReason::stop;
  r.prompt_tokens = 3;
  r.completion_tokens = 2;
  const std::string line = format_result(FileKind::jsonl, "id", r);
  EXPECT_EQ(
      line,
      "{\"custom_id\":\"id\",\"text\":\"a\\\"\\n\xef\xbf\xbd\",\"tokens\":[5,6],\"finish_reason\":\"stop\","
      "\"prompt_tokens\":3,\"completion_tokens\":2,\"error\":null}");
  const TempFolder folder;
  read_outputfile(folder.write("o.jsonl", line + "\n"),
                  [&](int64_t, const std::vector<int32_t>& ids) { EXPECT_EQ(ids, r.tokens); });
}

TEST(WriteFile, LeavesTheOldFileWhenFillingFails) {
  const TempFolder folder;
  const std::string path = folder.write("out", "old");
  EXPECT_THROW(write_file(path,
                          [](const Write& write) {
                            write(std::string(200000, 'x'));
                            throw InvalidArgument("stop");
                          }),
               InvalidArgument);
  EXPECT_EQ(folder.read("out"), "old");
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
  write_file(path, [](const Write& write) { write("new"); });
  EXPECT_EQ(folder.read("out"), "new");
}

TEST(WriteFile, FollowsLinksAndReportsFullDevices) {
  const TempFolder folder;
  folder.write("target", "old");
  std::filesystem::create_symlink("target", folder.file("link"));
  write_file(folder.file("link"), [](const Write& write) { write("new"); });
  EXPECT_TRUE(std::filesystem::is_symlink(folder.file("link")));
  EXPECT_EQ(folder.read("target"), "new");
  EXPECT_FALSE(is_plain_target("/dev/full"));
  const std::string why = error_of([] { write_file("/dev/full", [](const Write& write) { write("x"); }); });
  EXPECT_NE(why.find("/dev/full: cannot write: No space left on device"), std::string::npos) << why;
}

TEST(WriteFile, ALinkMayBeThereBeforeItsTarget) {
  const TempFolder folder;
  std::filesystem::create_directory(folder.file("deep"));
  std::filesystem::create_symlink("deep/second", folder.file("first"));
  std::filesystem::create_symlink("target", folder.file("deep/second"));
  write_file(folder.file("first"), [](const Write& write) { write("new"); });
  EXPECT_TRUE(std::filesystem::is_symlink(folder.file("first")));
  EXPECT_EQ(folder.read("deep/target"), "new");
  std::filesystem::create_symlink("loop", folder.file("loop"));
  EXPECT_EQ(real_target(folder.file("loop")), folder.file("loop"));  // and does not go round for ever
}

TEST(SameFile, HoldsForEveryNameOfAFileThereOrNot) {
  const TempFolder folder;
  const std::string file = folder.write("file", "x");
  folder.write("copy", "x");
  std::filesystem::create_symlink("file", folder.file("link"));
  std::filesystem::create_symlink("absent", folder.file("dangling"));
  std::filesystem::create_hard_link(file, folder.file("hard"));
  for (const char* name : {"file", "link", "hard", "./file"}) EXPECT_TRUE(same_file(file, folder.file(name)));
  EXPECT_TRUE(same_file(folder.file("absent"), folder.file("dangling")));
  EXPECT_FALSE(same_file(file, folder.file("copy")));
  EXPECT_FALSE(same_file(file, folder.file("absent")));
  EXPECT_FALSE(same_file(folder.file("absent"), folder.file("gone")));
  for (const char* name : {"-", "", "/dev/null", "/dev/stdout"}) EXPECT_FALSE(same_file(name, name)) << name;
}

TEST(Descriptor, IsNamedInEveryUsualWay) {
  for (const char* name : {"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})
    EXPECT_EQ(descriptor_of(name), 1) << name;
  EXPECT_EQ(descriptor_of("/dev/stderr"), 2);
  EXPECT_EQ(descriptor_of("/dev/fd/17"), 17);
  for (const char* name : {"out", "/dev/fd/", "/dev/fd/x", "/dev/fd/-1", "/dev/fd/1/x", "/dev/null", ""})
    EXPECT_EQ(descriptor_of(name), -1) << name;
}

TEST(CheckWritable, RefusesFoldersAndMissingOnes) {
  const TempFolder folder;
  EXPECT_THROW(check_writable(folder.file("")), IoError);
  EXPECT_THROW(check_writable(folder.file("no/such/out")), IoError);
  EXPECT_NO_THROW(check_writable(folder.file("out")));
  EXPECT_NO_THROW(check_writable("-"));
}

class Merge : public ::testing::Test {
 protected:
  std::string shard(int64_t i, int64_t n, const std::vector<std::string>& all,
                    const std::string& config = "{}", uint64_t hash = 1) {
    std::string bytes;
    int64_t count = 0;
    for (size_t k = static_cast<size_t>(i); k < all.size(); k += static_cast<size_t>(n), ++count)
      bytes += all[k] + "\n";
    const std::string path = folder.write(concat("part", i), bytes);
    write_part(path, {config, FileKind::text, i, n, static_cast<int64_t>(all.size()), count, hash,
                      io::crc32c(bytes)});
    return path;
  }
  std::string why(const std::vector<std::string>& parts) {
    return error_of([&] { merge_parts(parts, folder.file("out")); });
  }

  TempFolder folder;
  const std::vector<std::string> lines = {"0", "1 1", "", "3 3 3", "4", "5", "6 6"};
};

TEST_F(Merge, RestoresTheOrderForAnyNumberOfShardsGivenInAnyOrder) {
  std::string whole;
  for (const std::string& line : lines) whole += line + "\n";
  for (const int64_t n : {1, 2, 3, 7, 9}) {
    std::vector<std::string> parts;
    for (int64_t i = n; i-- > 0;) parts.push_back(shard(i, n, lines));
    EXPECT_EQ(why(parts), "");
    EXPECT_EQ(folder.read("out"), whole) << n;
  }
}

TEST_F(Merge, RefusesWhatDoesNotBelongTogether) {
  const std::string a = shard(0, 2, lines), b = shard(1, 2, lines);
  EXPECT_NE(why({a}).find("shard 1 of 2 is missing"), std::string::npos);
  EXPECT_NE(why({a, a}).find("both shard 0"), std::string::npos);
  EXPECT_NE(why({a, b, a}).find("3 parts given"), std::string::npos);
  EXPECT_NE(why({a, folder.write("plain", "1\n")}).find("no " + folder.file("plain.part")),
            std::string::npos);
  EXPECT_NE(why({a, shard(1, 2, lines, "{\"x\":1}")}).find("other options"), std::string::npos);
  EXPECT_NE(why({a, shard(1, 2, lines, "{}", 2)}).find("another input"), std::string::npos);
  EXPECT_NE(why({a, shard(1, 3, lines)}).find("is one of 3 shards"), std::string::npos);
  shard(1, 2, lines);
  folder.write("part1", "1 1\n3 3 3\n6\n");
  EXPECT_NE(why({a, b}).find("part1 has changed"), std::string::npos);
  folder.write("part1", "1 1\n3 3 3\n");
  EXPECT_NE(why({a, b}).find("part1 has changed"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(folder.file("out")));
}

TEST_F(Merge, ANoteThatGetpDidNotWriteIsRefusedByItsKey) {
  const std::string part = shard(0, 1, lines), note = folder.read("part0.part");
  EXPECT_EQ(why({part}), "");
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = note;
    changed.replace(changed.find(from), from.size(), to);
    folder.write("part0.part", changed);
    return why({part});
  };
  const auto refused = [](const std::string& got, const std::string& words) {
    EXPECT_NE(got.find("part0.part: " + words), std::string::npos) << got;
  };
  refused(with("\"kind\":\"text\"", "\"kind\":\"tex\""), "\"kind\" is \"tex\", expected text or jsonl");
  refused(with("\"shards\":1", "\"shards\":9223372036854775807"), "\"shards\" is not an integer from 0 to");
  refused(with("\"requests\":7", "\"requests\":9223372036854775807"), "\"requests\" is not an integer");
  refused(with("\"requests\":7", "\"requests\":0"), "7 lines, expected 0");
  refused(with("\"crc32c\":", "\"crc32c\":4294967296,\"old\":"), "\"crc32c\" is not an integer");
  refused(with("\"input_hash\":\"1\"", "\"input_hash\":\"x\""), "\"input_hash\" is not a number");
}

TEST(Job, StopIdsLeaveOutTheCallToken) {
  testing::FakeOptions fake;
  fake.stop_ids = {200002, 199999, 200012};
  EXPECT_EQ(batch_stop_ids(testing::FakeModel(fake)), (std::vector<int32_t>{200002, 199999}));
}

TEST(Job, RequestHashCoversWhatDecidesTheTokens) {
  Request base;
  base.prompt = {1, 2, 3};
  base.sampling = {.temperature = 1, .top_p = 0.5f, .top_k = 0, .min_p = 0, .seed = 3};
  const uint64_t hash = request_hash(base);
  const auto changed = [&](auto change) {
    Request r = base;
    change(r);
    return request_hash(r) != hash;
  };
  EXPECT_TRUE(changed([](Request& r) { r.prompt[2] = 4; }));
  EXPECT_TRUE(changed([](Request& r) { r.max_tokens = 3; }));
  EXPECT_TRUE(changed([](Request& r) { r.max_positions = 3; }));
  EXPECT_TRUE(changed([](Request& r) { r.sampling.seed = 4; }));
  EXPECT_TRUE(changed([](Request& r) { r.sampling.temperature = 2; }));
  EXPECT_TRUE(changed([](Request& r) { r.sampling.top_p = 1; }));
  EXPECT_TRUE(changed([](Request& r) { r.stop_ids = {1}; }));
  EXPECT_TRUE(changed([](Request& r) { r.stop = {"a"}; }));
  EXPECT_TRUE(changed([](Request& r) { r.ignore_eos = true; }));
  EXPECT_FALSE(changed([](Request& r) { r.want_text = false; }));
}

TEST(Job, LongestLengthBoundsPromptsByTheirBytes) {
  InputItem item;
  item.prompt = "12345";
  Options options;
  options.steps = 100;
  EXPECT_EQ(longest_length({item}, options, 1000), 100);
  options.max_tokens = 20;
  EXPECT_EQ(longest_length({item}, options, 1000), 25);
  item.max_tokens = 50;
  EXPECT_EQ(longest_length({item}, options, 1000), 55);
  options.steps = 0;
  EXPECT_EQ(longest_length({item}, options, 40), 40);
  item.prompt = "\u0958";  // three bytes, six in NFC
  EXPECT_EQ(longest_length({item}, options, 1000), 56);
}

}  // namespace
}  // namespace trivium::getp
