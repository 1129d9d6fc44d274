// safetensors: what is written is read back, in both load modes, and how an archive behaves.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <set>

#include "core/half.h"
#include "core/parallel.h"
#include "io/hash.h"
#include "io/safetensors_support.h"

namespace trivium::io {
namespace {

Tensor counting(const Shape& shape, Dtype dtype) {
  Tensor tensor = Tensor::zeros(shape, dtype);
  auto* bytes = static_cast<unsigned char*>(tensor.data());
  const int64_t step = dtype == Dtype::boolean ? 0 : 7;
  for (int64_t i = 0; i < tensor.nbytes(); ++i) bytes[i] = static_cast<unsigned char>(i * step + 1);
  return tensor;
}

void expect_same(const Tensor& got, const Tensor& want) {
  EXPECT_EQ(got.shape(), want.shape());
  ASSERT_EQ(got.dtype(), want.dtype());
  ASSERT_EQ(got.nbytes(), want.nbytes());
  if (got.nbytes() > 0) {
    EXPECT_EQ(std::memcmp(got.data(), want.data(), static_cast<size_t>(got.nbytes())), 0);
  }
}

const LoadMode kModes[] = {LoadMode::automatic, LoadMode::mmap, LoadMode::read};

TEST(Safetensors, EveryDtypeAndShapeReadsBackAligned) {
  const TempFolder folder;
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (int d = 0; d <= static_cast<int>(Dtype::boolean); ++d) {
    const auto dtype = static_cast<Dtype>(d);
    for (const Shape& shape :
         {Shape{}, Shape{0}, Shape{3}, Shape{2, 3, 5}, Shape{4, 0, 2}, Shape{1, 1, 1, 1, 1, 1, 1, 7}})
      tensors.emplace_back(concat(dtype, shape), counting(shape, dtype));
  }
  const std::string path = folder.path("a.safetensors");
  save_safetensors(path, tensors);
  for (const LoadMode mode : kModes) {
    const auto archive = TensorArchive::open(path, mode);
    EXPECT_EQ(archive->entries().size(), tensors.size());
    EXPECT_EQ(archive->total_bytes(), static_cast<int64_t>(std::filesystem::file_size(path)));
    for (const auto& [name, want] : tensors) {
      SCOPED_TRACE(name);
      const Tensor got = archive->tensor(name);
      expect_same(got, want);
      EXPECT_TRUE(got.read_only());
      EXPECT_EQ(reinterpret_cast<uintptr_t>(got.data()) % static_cast<uintptr_t>(size_of(got.dtype())), 0u);
      EXPECT_EQ(archive->file_of(name), path);
    }
  }
}

TEST(Safetensors, DataOfACopyStartsAt64Bytes) {
  const TempFolder folder;
  for (const int spaces : {0, 1, 13, 63}) {
    const std::string header =
        R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})" + std::string(spaces, ' ');
    const auto archive =
        TensorArchive::open(folder.write("a.safetensors", make_file(header, "xy")), LoadMode::read);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(archive->tensor("a").data()) % 64, 0u);
    EXPECT_EQ(*archive->tensor("a").data_as<uint8_t>(), 'x');
  }
}

TEST(Safetensors, UnalignedTensorsAreCopiedRight) {
  const TempFolder folder;
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})";
  const float values[] = {1.5f, -2.25f};
  std::string data = "x";
  data.append(reinterpret_cast<const char*>(values), 8);
  const std::string path = folder.write("a.safetensors", make_file(header, data));
  for (const LoadMode mode : kModes) {
    const Tensor b = TensorArchive::open(path, mode)->tensor("b");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data()) % 4, 0u);
    EXPECT_EQ(b.data_as<float>()[0], 1.5f);
    EXPECT_EQ(b.data_as<float>()[1], -2.25f);
  }
}

TEST(Safetensors, ATensorKeepsItsFileAlive) {
  const TempFolder folder;
  const Tensor want = counting({100, 100}, Dtype::f32);
  save_safetensors(folder.path("a.safetensors"), {{"w", want}});
  for (const LoadMode mode : kModes) {
    const Tensor got = TensorArchive::open(folder.path("a.safetensors"), mode)->tensor("w");
    expect_same(got, want);
  }
}

TEST(Safetensors, AMissingTensorIsNamed) {
  const TempFolder folder;
  save_safetensors(folder.path("a.safetensors"), {{"w", counting({2}, Dtype::f32)}});
  const auto archive = TensorArchive::open(folder.path("a.safetensors"));
  EXPECT_FALSE(archive->contains("x\n"));
  const std::string error = model_error([&] { archive->tensor("x\n"); });
  EXPECT_TRUE(has(error, "a.safetensors: tensor \"x\\x0a\" is missing")) << error;
}

TEST(Safetensors, UnknownDtypesAreRefusedOnlyWhenUsed) {
  const TempFolder folder;
  const std::string header = R"({"a":{"dtype":"Q3_K","shape":[2],"data_offsets":[0,2]},)"
                             R"("b":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[2,5]},)"
                             R"("c":{"dtype":"F4","shape":[2],"data_offsets":[5,6]},)"
                             R"("d":{"dtype":"U8","shape":[1],"data_offsets":[6,7]}})";
  const auto archive = TensorArchive::open(folder.write("a.safetensors", make_file(header, "abcdefg")));
  EXPECT_EQ(*archive->tensor("d").data_as<uint8_t>(), 'g');
  for (const char* name : {"a", "b", "c"}) {
    const std::string error = model_error([&] { archive->tensor(name); });
    EXPECT_TRUE(has(error, "which is not supported")) << error;
  }
}

TEST(Safetensors, MetadataAndUnknownFieldsAreIgnored) {
  const TempFolder folder;
  const std::string header =
      R"( {"__metadata__":{"format":"pt","a":"b"},"w":{"x":{"y":[1,{"dtype":2}],"shape":null},"dtype":"U8",)"
      R"("n":null,"shape":[1],"t":true,"data_offsets":[0,1],"f":1.5,"s":"z"},"v":{"data_offsets":[1,1],"shape":[0],)"
      R"("dtype":"F32"}}  )";
  const auto archive = TensorArchive::open(folder.write("a.safetensors", make_file(header, "q")));
  EXPECT_EQ(archive->entries().size(), 2u);
  EXPECT_EQ(*archive->tensor("w").data_as<uint8_t>(), 'q');
  EXPECT_EQ(archive->tensor("v").numel(), 0);
  EXPECT_EQ(open_error(folder.write("b.safetensors", make_file("{}"))), "");
}

TEST(Safetensors, FingerprintSeesNamesHeadersAndData) {
  const TempFolder folder;
  const auto fingerprint = [&](const std::string& name, const std::string& tensor, int64_t changed) {
    Tensor w = counting({1000}, Dtype::u8);
    if (changed >= 0) w.data_as<uint8_t>()[changed] ^= 1;
    save_safetensors(folder.path(name), {{tensor, w}});
    const uint64_t mapped = TensorArchive::open(folder.path(name), LoadMode::mmap)->fingerprint();
    EXPECT_EQ(mapped, TensorArchive::open(folder.path(name), LoadMode::read)->fingerprint());
    return mapped;
  };
  const std::set<uint64_t> all = {
      fingerprint("a.safetensors", "w", -1),  fingerprint("b.safetensors", "w", -1),
      fingerprint("a.safetensors", "v", -1),  fingerprint("a.safetensors", "w", 0),
      fingerprint("a.safetensors", "w", 500), fingerprint("a.safetensors", "w", 999)};
  EXPECT_EQ(all.size(), 6u);
  EXPECT_EQ(fingerprint("a.safetensors", "w", -1), fingerprint("a.safetensors", "w", -1));
  std::filesystem::create_directory(folder.path("moved"));
  std::filesystem::copy(folder.path("a.safetensors"), folder.path("moved/a.safetensors"));
  EXPECT_EQ(TensorArchive::open(folder.path("moved/a.safetensors"))->fingerprint(),
            TensorArchive::open(folder.path("a.safetensors"))->fingerprint());
}

// Larger than what one task hashes and than a round, with bytes that a sample would hardly meet.
TEST(Safetensors, FingerprintSeesEveryByteWhateverTheThreads) {
  const TempFolder folder;
  constexpr int64_t kChunk = 1 << 20, kBytes = 5 * kChunk + 77;
  const Tensor w = counting({kBytes}, Dtype::u8);
  const std::string path = folder.path("a.safetensors");
  save_safetensors(path, {{"w", w}});
  const auto start = static_cast<int64_t>(std::filesystem::file_size(path)) - kBytes;
  const auto fingerprint = [&](LoadMode mode) { return TensorArchive::open(path, mode)->fingerprint(); };
  const auto flip = [&](int64_t at) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(start + at);
    const char byte = static_cast<char>(file.get() ^ 0x10);
    file.seekp(start + at);
    file.put(byte);
  };
  std::set<uint64_t> seen;
  const uint64_t whole = fingerprint(LoadMode::mmap);
  seen.insert(whole);
  for (const int64_t at : {int64_t{0}, int64_t{1}, int64_t{63}, kChunk - 1, kChunk, 2 * kChunk + 12345,
                           kBytes / 2 + 1, kBytes - 78, kBytes - 1}) {
    flip(at);
    const uint64_t hash = fingerprint(LoadMode::mmap);
    EXPECT_TRUE(seen.insert(hash).second) << at;
    EXPECT_EQ(hash, fingerprint(LoadMode::read)) << at;
    flip(at);
  }
  for (const int threads : {1, 2, 5}) {
    set_num_threads(threads);
    EXPECT_EQ(fingerprint(LoadMode::mmap), whole) << threads;
  }
  set_num_threads(0);
}

TEST(Safetensors, FingerprintReportsProgressAndStopsWhenCancelled) {
  const TempFolder folder;
  const std::string path = folder.path("a.safetensors");
  save_safetensors(path, {{"w", counting({3 << 20}, Dtype::u8)}});
  const auto archive = TensorArchive::open(path);
  std::vector<std::pair<int64_t, int64_t>> calls;
  archive->fingerprint(nullptr, [&](int64_t done, int64_t total) { calls.emplace_back(done, total); });
  ASSERT_FALSE(calls.empty());
  EXPECT_EQ(calls.back(), std::pair(archive->total_bytes(), archive->total_bytes()));
  CancelToken token;
  token.cancel();
  EXPECT_THROW(archive->fingerprint(&token), Cancelled);
  EXPECT_THROW(TensorArchive::open(path, LoadMode::read, &token), Cancelled);
}

TEST(SafetensorsSave, RefusesWhatItCannotWrite) {
  const TempFolder folder;
  const std::string path = folder.path("a.safetensors");
  const Tensor w = counting({4, 4}, Dtype::f32);
  const int64_t transposed[] = {1, 4};
  const Tensor strided = Tensor::wrap(w.data(), {4, 4}, Dtype::f32, Device{}, w.owner(), transposed);
  EXPECT_THROW(save_safetensors(path, {{"w", w}, {"w", w}}), InvalidArgument);
  EXPECT_THROW(save_safetensors(path, {{"w", strided}}), InvalidArgument);
  EXPECT_THROW(save_safetensors(path, {{"__metadata__", w}}), InvalidArgument);
  EXPECT_THROW(save_safetensors(path, {{"a\xff", w}}), InvalidArgument);
  EXPECT_THROW(save_safetensors(folder.path("absent/a.safetensors"), {{"w", w}}), IoError);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(SafetensorsSave, AFailedWriteLeavesTheOldFileAndNothingElse) {
  const TempFolder folder;
  const std::string target = folder.path("a.safetensors");
  std::filesystem::create_directory(target);  // rename over a folder fails after everything was written
  EXPECT_THROW(save_safetensors(target, {{"w", counting({4}, Dtype::f32)}}), IoError);
  EXPECT_TRUE(std::filesystem::is_directory(target));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(SafetensorsSave, AFullDiskLeavesTheOldFileAndNothingElse) {
  const TempFolder folder;
  const std::string path = folder.path("a.safetensors");
  save_safetensors(path, {{"w", counting({4}, Dtype::f32)}});
  const std::string before = read_back(path);
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit small{1000, limit.rlim_max};
  std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_THROW(save_safetensors(path, {{"w", counting({1000}, Dtype::f32)}}), IoError);
  ::setrlimit(RLIMIT_FSIZE, &limit);
  EXPECT_EQ(read_back(path), before);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(SafetensorsSave, OddNamesSurvive) {
  const TempFolder folder;
  const std::string name = "quote\" slash\\ line\n nul" + std::string(1, '\0') + " \xE2\x82\xAC";
  save_safetensors(folder.path("a.safetensors"),
                   {{name, counting({2}, Dtype::f32)}, {"", counting({1}, Dtype::i8)}});
  const auto archive = TensorArchive::open(folder.path("a.safetensors"));
  EXPECT_TRUE(archive->contains(name));
  EXPECT_TRUE(archive->contains(""));
}

TEST(Hash, Crc32cMatchesThePublishedVectors) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);  // RFC 3720 B.4
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62A8AB43u);
  EXPECT_EQ(crc32c("6789", crc32c("12345")), crc32c("123456789"));
}

TEST(Hash, EveryBitAndTheLengthMatter) {
  std::set<uint64_t> seen;
  for (size_t n = 0; n < 40; ++n) EXPECT_TRUE(seen.insert(hash64(std::string(n, '\0'))).second) << n;
  const std::string base = "the quick brown fox jumps over";
  EXPECT_TRUE(seen.insert(hash64(base)).second);
  for (size_t bit = 0; bit < base.size() * 8; ++bit) {
    std::string flipped = base;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_TRUE(seen.insert(hash64(flipped)).second) << bit;
  }
  EXPECT_NE(hash64(base, 1), hash64(base, 2));
}

TEST(Hash, OfManyBytesDistinguishesLengthsAndEveryBit) {
  std::set<uint64_t> seen;
  for (size_t n = 0; n < 300; ++n) EXPECT_TRUE(seen.insert(hash64_bulk(std::string(n, '\0'))).second) << n;
  const std::string base = "0123456789abcdef" + std::string(193, 'x');
  EXPECT_TRUE(seen.insert(hash64_bulk(base)).second);
  for (size_t bit = 0; bit < 8 * base.size(); ++bit) {
    std::string flipped = base;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    EXPECT_TRUE(seen.insert(hash64_bulk(flipped)).second) << bit;
  }
  std::string swapped = base;  // between two chains, and within one
  std::swap(swapped[0], swapped[8]);
  EXPECT_TRUE(seen.insert(hash64_bulk(swapped)).second);
  std::swap(swapped[1], swapped[65]);
  EXPECT_TRUE(seen.insert(hash64_bulk(swapped)).second);
}

}  // namespace
}  // namespace trivium::io
