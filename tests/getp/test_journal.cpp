#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "core/error.h"
#include "getp/journal.h"
#include "support/temp_folder.h"

namespace trivium::getp {
namespace {

using testing::error_of;
using testing::TempFolder;

const std::string kConfig = R"({"weights":"12ab","precision":"float32","steps":64,"stop_ids":[1,2]})";

std::vector<JournalRecord> some_records() {
  return {{0, 11, FinishReason::stop, {5, 6, 1}},
          {2, 13, FinishReason::length, {}},
          {1, 12, FinishReason::length, {7, 2000000000, 8, 9}}};
}

std::string written(const TempFolder& folder) {
  {
    Journal journal(folder.file("j"), kConfig, false);
    for (const JournalRecord& r : some_records()) journal.append(r);
  }
  return folder.read("j");
}

TEST(Journal, GivesBackWhatWasAppended) {
  const TempFolder folder;
  written(folder);
  {
    Journal journal(folder.file("j"), kConfig, false);
    EXPECT_EQ(journal.records(), some_records());
    journal.append({9, 9, FinishReason::stop, {1}});
  }
  Journal again(folder.file("j"), kConfig, false);
  ASSERT_EQ(again.records().size(), 4u);
  EXPECT_EQ(again.records().back().index, 9);
  EXPECT_EQ(Journal::peek_config(folder.file("j")), kConfig);
}

TEST(Journal, ATornTailAtAnyByteKeepsTheRecordsBeforeIt) {
  const TempFolder folder;
  const std::string bytes = written(folder);
  const auto all = some_records();
  size_t last = 0;
  for (size_t cut = 0; cut <= bytes.size(); ++cut) {
    folder.write("j", bytes.substr(0, cut));
    size_t kept = 0;
    {
      Journal journal(folder.file("j"), kConfig, false);
      kept = journal.records().size();
      ASSERT_LE(kept, all.size());
      for (size_t i = 0; i < kept; ++i) EXPECT_EQ(journal.records()[i], all[i]) << "cut at " << cut;
      EXPECT_GE(kept, last) << "cut at " << cut;
      journal.append({7, 7, FinishReason::stop, {70}});
    }
    last = kept;
    Journal again(folder.file("j"), kConfig, false);
    ASSERT_EQ(again.records().size(), kept + 1) << "cut at " << cut;
    EXPECT_EQ(again.records().back().tokens, std::vector<int32_t>{70});
    EXPECT_EQ(again.dropped_bytes(), 0);
  }
  EXPECT_EQ(last, all.size());
}

TEST(Journal, ADamagedByteNeverGivesAWrongRecord) {
  const TempFolder folder;
  const std::string bytes = written(folder);
  const auto all = some_records();
  for (size_t at = 8; at < bytes.size(); ++at) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x20);
    folder.write("j", damaged);
    Journal journal(folder.file("j"), kConfig, false);
    ASSERT_LT(journal.records().size(), all.size()) << "byte " << at;
    for (size_t i = 0; i < journal.records().size(); ++i)
      EXPECT_EQ(journal.records()[i], all[i]) << "byte " << at;
  }
}

TEST(Journal, AnotherConfigurationIsRefusedByName) {
  const TempFolder folder;
  const std::string bytes = written(folder);
  const std::string other = R"({"weights":"12ab","precision":"bfloat16","steps":64,"stop_ids":[1]})";
  const std::string why = error_of([&] { Journal(folder.file("j"), other, false); });
  EXPECT_NE(why.find("precision was float32 and is bfloat16 now"), std::string::npos) << why;
  EXPECT_NE(why.find("stop_ids"), std::string::npos) << why;
  EXPECT_EQ(why.find("steps"), std::string::npos) << why;
  EXPECT_NE(why.find("--restart"), std::string::npos) << why;
  EXPECT_EQ(folder.read("j"), bytes) << "a refused journal stays as it is";
  const std::string more = R"({"weights":"12ab","precision":"float32","steps":64,"stop_ids":[1,2],"x":1})";
  EXPECT_THROW(Journal(folder.file("j"), more, false), InvalidArgument);
  Journal restarted(folder.file("j"), other, true);
  EXPECT_TRUE(restarted.records().empty());
}

TEST(Journal, WithoutRecordsItIsNotKeptAndRefusesNothing) {
  const TempFolder folder;
  { const Journal journal(folder.file("j"), kConfig, false); }
  EXPECT_FALSE(std::filesystem::exists(folder.file("j")));
  const std::string header = written(folder).substr(0, 8 + 8 + kConfig.size());
  folder.write("j", header);
  EXPECT_NO_THROW(Journal(folder.file("j"), R"({"weights":"other"})", false));
}

TEST(Journal, ForeignFilesAreLeftAlone) {
  const TempFolder folder;
  folder.write("j", "my precious notes");
  for (const bool restart : {false, true})
    EXPECT_NE(error_of([&] { Journal(folder.file("j"), kConfig, restart); }).find("not a journal"),
              std::string::npos);
  EXPECT_EQ(folder.read("j"), "my precious notes");
}

TEST(Journal, AFifoIsRefusedAndNotWaitedFor) {
  const TempFolder folder;
  ASSERT_EQ(::mkfifo(folder.file("j").c_str(), 0600), 0);
  EXPECT_NE(error_of([&] { Journal(folder.file("j"), kConfig, false); }).find("not a journal"),
            std::string::npos);
}

TEST(Journal, ADamagedHeaderCountsWhatIsLost) {
  const TempFolder folder;
  std::string bytes = written(folder);
  bytes[20] ^= 1;
  folder.write("j", bytes);
  const Journal journal(folder.file("j"), kConfig, false);
  EXPECT_TRUE(journal.records().empty());
  EXPECT_EQ(journal.dropped_bytes(), static_cast<int64_t>(bytes.size()));
}

TEST(Journal, ASecondProcessIsRefusedWhileTheFirstLives) {
  const TempFolder folder;
  {
    Journal journal(folder.file("j"), kConfig, false);
    const pid_t child = ::fork();
    if (child == 0) {
      const std::string why = error_of([&] { Journal(folder.file("j"), kConfig, false); });
      ::_exit(why.find("another getp") != std::string::npos ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  EXPECT_NO_THROW(Journal(folder.file("j"), kConfig, false));
}

TEST(Journal, RemoveDeletesTheFile) {
  const TempFolder folder;
  Journal journal(folder.file("j"), kConfig, false);
  journal.remove();
  EXPECT_FALSE(std::filesystem::exists(folder.file("j")));
}

TEST(Journal, APlaceThatTakesNoFilesIsAnIoError) {
  const TempFolder folder;
  const std::string why = error_of([&] { Journal("/proc/self/j", kConfig, false); });
  EXPECT_NE(why.find("cannot open the journal"), std::string::npos) << why;
}

}  // namespace
}  // namespace trivium::getp
