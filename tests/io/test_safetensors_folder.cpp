// Folders of shards: which files are taken, and what an index may not do.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "io/safetensors_support.h"

namespace trivium::io {
namespace {

// One u8 tensor of one byte.
std::string one_tensor(const std::string& name, char value) {
  return make_file("{\"" + name + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                   std::string(1, value));
}

std::string index_of(const std::string& weight_map) {
  return R"({"metadata":{"total_size":2},"weight_map":)" + weight_map + "}";
}

constexpr char kIndex[] = "model.safetensors.index.json";

uint8_t value_of(const TensorArchive& archive, std::string_view name) {
  return *archive.tensor(name).data_as<uint8_t>();
}

TEST(SafetensorsFolder, ShardsOfAnIndexAreOneArchive) {
  const TempFolder folder;
  const std::string first = folder.write("model-00000-of-00001.safetensors", one_tensor("a", 'x'));
  const std::string second = folder.write("model-00001-of-00001.safetensors", one_tensor("b", 'y'));
  folder.write("unrelated.safetensors", "not a weight file");
  folder.write(
      kIndex, index_of(R"({"a":"model-00000-of-00001.safetensors","b":"model-00001-of-00001.safetensors"})"));
  for (const LoadMode mode : {LoadMode::mmap, LoadMode::read}) {
    const auto archive = TensorArchive::open(folder.path(), mode);
    EXPECT_EQ(archive->entries().size(), 2u);
    EXPECT_EQ(value_of(*archive, "a"), 'x');
    EXPECT_EQ(value_of(*archive, "b"), 'y');
    EXPECT_EQ(archive->file_of("b"), second);
    EXPECT_EQ(archive->total_bytes(),
              static_cast<int64_t>(std::filesystem::file_size(first) + std::filesystem::file_size(second)));
    EXPECT_TRUE(has(model_error([&] { archive->tensor("c"); }), "tensor \"c\" is missing"));
  }
}

TEST(SafetensorsFolder, ASingleFileComesBeforeAnIndex) {
  const TempFolder folder;
  folder.write("model.safetensors", one_tensor("a", 'x'));
  folder.write(kIndex, "not even JSON");
  EXPECT_EQ(value_of(*TensorArchive::open(folder.path()), "a"), 'x');
}

TEST(SafetensorsFolder, ShardsWithoutAnIndexAreAllTaken) {
  const TempFolder folder;
  folder.write("model--00001-of-00002.safetensors", one_tensor("a", 'x'));
  folder.write("model--00002-of-00002.safetensors", one_tensor("b", 'y'));
  folder.write("config.json", "{}");
  const auto archive = TensorArchive::open(folder.path());
  EXPECT_EQ(archive->entries().size(), 2u);
  const uint64_t before = archive->fingerprint();
  EXPECT_EQ(TensorArchive::open(folder.path() + "/")->fingerprint(), before);
}

TEST(SafetensorsFolder, AFolderWithoutWeightsSaysWhatItLacks) {
  const TempFolder folder;
  EXPECT_TRUE(has(open_error(folder.path()), "has no model.safetensors, no model.safetensors.index.json"));
  EXPECT_TRUE(has(open_error(folder.path("absent")), "No such file"));
}

TEST(SafetensorsFolder, AMissingShardIsNamed) {
  const TempFolder folder;
  folder.write("s1.safetensors", one_tensor("a", 'x'));
  folder.write(kIndex, index_of(R"({"a":"s1.safetensors","b":"s2.safetensors"})"));
  EXPECT_TRUE(has(open_error(folder.path()), "shard \"s2.safetensors\" is missing"));
}

TEST(SafetensorsFolder, ATruncatedShardIsNamed) {
  const TempFolder folder;
  const std::string whole = one_tensor("b", 'y');
  folder.write("s1.safetensors", one_tensor("a", 'x'));
  folder.write("s2.safetensors", whole.substr(0, whole.size() - 1));
  folder.write(kIndex, index_of(R"({"a":"s1.safetensors","b":"s2.safetensors"})"));
  const std::string error = open_error(folder.path());
  EXPECT_TRUE(
      has(error, concat("s2.safetensors: file ends at byte ", whole.size() - 1, " but tensor \"b\" needs ",
                        whole.size(), ". The download is probably incomplete.")))
      << error;
}

TEST(SafetensorsFolder, TensorsMustBeWhereTheIndexSays) {
  const TempFolder folder;
  folder.write("s1.safetensors", one_tensor("a", 'x'));
  folder.write("s2.safetensors", one_tensor("b", 'y'));
  folder.write(kIndex, index_of(R"({"a":"s2.safetensors","b":"s1.safetensors"})"));
  EXPECT_TRUE(has(open_error(folder.path()), "tensor \"a\" is not in \"s2.safetensors\""));
}

TEST(SafetensorsFolder, ATensorInTwoShardsIsRefused) {
  const TempFolder folder;
  folder.write("s1.safetensors", one_tensor("a", 'x'));
  folder.write("s2.safetensors", one_tensor("a", 'y'));
  const std::string error = open_error(folder.path());
  EXPECT_TRUE(has(error, "tensor \"a\" is also in ") && has(error, "s1.safetensors") &&
              has(error, "s2.safetensors"))
      << error;
}

TEST(SafetensorsFolder, AnIndexMayNotLeaveItsFolder) {
  const TempFolder folder;
  std::filesystem::create_directory(folder.path("model"));
  folder.write("secret.safetensors", one_tensor("a", 'x'));
  const std::string absolute = folder.path("secret.safetensors");
  for (const std::string& name :
       {std::string("../secret.safetensors"), absolute, std::string("."), std::string(".."), std::string(""),
        std::string("x/../../secret.safetensors"), std::string("./secret.safetensors"),
        std::string("a\\u0000b"), std::string("..\\\\secret.safetensors"),
        std::string("file:///etc/passwd")}) {
    folder.write(std::string("model/") + kIndex, index_of(R"({"a":")" + name + R"("})"));
    const std::string error = open_error(folder.path("model"));
    EXPECT_TRUE(has(error, "is not the plain name of a file beside the index")) << name << ": " << error;
  }
}

TEST(SafetensorsFolder, LinksMustLeadToRegularFiles) {
  const TempFolder folder;
  std::filesystem::create_directory(folder.path("blobs"));
  std::filesystem::create_directory(folder.path("model"));
  folder.write("blobs/0123", one_tensor("a", 'x'));
  folder.write(std::string("model/") + kIndex, index_of(R"({"a":"s.safetensors"})"));
  const std::string shard = folder.path("model/s.safetensors");
  std::filesystem::create_symlink("../blobs/0123", shard);  // the layout of a model cache
  EXPECT_EQ(value_of(*TensorArchive::open(folder.path("model")), "a"), 'x');

  const auto relink = [&](const std::string& target) {
    std::filesystem::remove(shard);
    std::filesystem::create_symlink(target, shard);
    return open_error(folder.path("model"));
  };
  EXPECT_TRUE(has(relink("../blobs"), "is a folder, expected a regular file"));
  EXPECT_TRUE(has(relink("/dev/zero"), "is a device, expected a regular file"));
  EXPECT_TRUE(has(relink("s.safetensors"), "Too many levels"));
  EXPECT_TRUE(has(relink("../blobs/absent"), "s.safetensors: cannot be opened: No such file"));
  ASSERT_EQ(::mkfifo(folder.path("blobs/fifo").c_str(), 0600), 0);
  EXPECT_TRUE(has(relink("../blobs/fifo"), "is a FIFO, expected a regular file"));
}

TEST(SafetensorsFolder, BadIndexesAreRefused) {
  const TempFolder folder;
  folder.write("s.safetensors", one_tensor("a", 'x'));
  const std::pair<std::string, const char*> cases[] = {
      {"", "invalid JSON at byte 0"},
      {"[]", "weight_map is missing"},
      {"{}", "weight_map is missing"},
      {index_of("[]"), "weight_map is missing or is not an object"},
      {index_of("{}"), "weight_map is empty"},
      {index_of(R"({"a":1})"), "entry \"a\" is not the name of a file"},
      {index_of(R"({"a":"s.safetensors","a":"s.safetensors"})"), "key \"a\" appears twice"},
      {index_of(R"({"a":"s.safetensors","b":"s.safetensors"})"), "tensor \"b\" is not in \"s.safetensors\""},
      {index_of(std::string(70, '[')), "nesting is deeper"},
  };
  for (const auto& [text, expected] : cases) {
    folder.write(kIndex, text);
    const std::string error = open_error(folder.path());
    EXPECT_TRUE(has(error, expected)) << text << ": " << error;
    EXPECT_TRUE(has(error, kIndex)) << error;
  }
  std::filesystem::resize_file(folder.path(kIndex), int64_t{1} << 40);
  EXPECT_TRUE(has(open_error(folder.path()), "bytes, at most 33554432 are accepted"));
  std::filesystem::remove(folder.path(kIndex));
  ASSERT_EQ(::mkfifo(folder.path(kIndex).c_str(), 0600), 0);
  EXPECT_TRUE(has(open_error(folder.path()), "is a FIFO"));
}

}  // namespace
}  // namespace trivium::io
