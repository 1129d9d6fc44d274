// Mapped files: pages given back, files that change or shrink while they are used.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "io/mmap.h"
#include "io/safetensors_support.h"

namespace trivium::io {
namespace {

constexpr int64_t kBytes = 8 << 20;

// A u8 tensor "w" of kBytes ones.
std::string write_large(const TempFolder& folder, const std::string& name = "a.safetensors") {
  const std::string header =
      concat(R"({"w":{"dtype":"U8","shape":[)", kBytes, R"(],"data_offsets":[0,)", kBytes, "]}}");
  return folder.write(name, make_file(header, std::string(static_cast<size_t>(kBytes), '\1')));
}

int64_t sum(const Tensor& tensor) {
  const auto* bytes = static_cast<const volatile uint8_t*>(tensor.data());
  int64_t total = 0;
  for (int64_t i = 0; i < tensor.nbytes(); ++i) total += bytes[i];
  return total;
}

// Pages of the tensor that are in memory of this process.
int64_t resident_kib(const void* address) {
  std::ifstream smaps("/proc/self/smaps");
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  std::string line;
  for (bool inside = false; std::getline(smaps, line);) {
    uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) inside = wanted >= begin && wanted < end;
    long kib = 0;
    if (inside && std::sscanf(line.c_str(), "Rss: %ld kB", &kib) == 1) return kib;
  }
  return -1;
}

// Runs `body` in a child; its exit status, or 1000 + the signal that killed it. What it wrote to stderr goes
// to `message`.
int run_child(const std::function<void()>& body, std::string* message = nullptr) {
  int pipe_ends[2];
  EXPECT_EQ(::pipe(pipe_ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(pipe_ends[1], STDERR_FILENO);
    ::alarm(60);
    body();
    ::_exit(0);
  }
  ::close(pipe_ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(pipe_ends[0], buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<size_t>(n));
  ::close(pipe_ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  if (message != nullptr) *message = text;
  return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

TEST(SafetensorsMmap, DropPagesGivesMemoryBackAndKeepsTheValues) {
  const TempFolder folder;
  const auto archive = TensorArchive::open(write_large(folder), LoadMode::mmap);
  const Tensor w = archive->tensor("w");
  ASSERT_EQ(sum(w), kBytes);
  const int64_t before = resident_kib(w.data());
  ASSERT_GE(before, kBytes / 1024 - 8);
  archive->drop_pages(w.slice(0, kBytes / 2));
  EXPECT_LE(resident_kib(w.data()), before / 2 + 16);
  archive->drop_pages(w);
  EXPECT_LE(resident_kib(w.data()), 16);
  EXPECT_EQ(sum(w), kBytes);
}

TEST(SafetensorsMmap, AFingerprintLeavesNoPagesBehind) {
  const TempFolder folder;
  const auto archive = TensorArchive::open(write_large(folder), LoadMode::mmap);
  archive->fingerprint();
  EXPECT_LE(resident_kib(archive->tensor("w").data()), 16);
}

TEST(SafetensorsMmap, ACopyOfAnUnalignedTensorGivesItsPagesBack) {
  const TempFolder folder;
  const std::string header =
      concat(R"({"w":{"dtype":"BF16","shape":[)", kBytes / 2, R"(],"data_offsets":[0,)", kBytes, "]}}");
  const std::string odd = header.size() % 2 ? header : header + " ";
  const auto archive = TensorArchive::open(
      folder.write("a.safetensors", make_file(odd, std::string(static_cast<size_t>(kBytes), '\1'))),
      LoadMode::mmap);
  const Tensor view = archive->view("w"), copy = archive->tensor("w");
  EXPECT_FALSE(view.is_aligned());
  EXPECT_TRUE(copy.is_aligned());
  EXPECT_LE(resident_kib(view.data()), 64);
  EXPECT_EQ(std::memcmp(view.data(), copy.data(), static_cast<size_t>(kBytes)), 0);
}

TEST(SafetensorsMmap, DropPagesLeavesCopiesAndForeignTensorsAlone) {
  const TempFolder folder;
  const std::string path = write_large(folder);
  const auto copied = TensorArchive::open(path, LoadMode::read);
  const auto mapped = TensorArchive::open(path, LoadMode::mmap);
  Tensor other = Tensor::zeros({1 << 20}, Dtype::u8);
  std::memset(other.data(), 1, 1 << 20);
  mapped->drop_pages(copied->tensor("w"));
  copied->drop_pages(copied->tensor("w"));
  mapped->drop_pages(other);
  mapped->drop_pages(Tensor());
  EXPECT_EQ(sum(copied->tensor("w")), kBytes);
  EXPECT_EQ(sum(other), 1 << 20);
}

TEST(SafetensorsMmap, ChangesAreFound) {
  const TempFolder folder;
  for (const LoadMode mode : {LoadMode::mmap, LoadMode::read}) {
    const std::string path = write_large(folder);
    const auto archive = TensorArchive::open(path, mode);
    archive->check_unchanged();
    std::filesystem::resize_file(path, static_cast<uintmax_t>(kBytes / 2));
    EXPECT_TRUE(has(model_error([&] { archive->check_unchanged(); }),
                    concat(" bytes when it was opened and has ", kBytes / 2)));
  }
  const std::string path = write_large(folder);
  const auto archive = TensorArchive::open(path);
  std::filesystem::last_write_time(path,
                                   std::filesystem::file_time_type::clock::now() + std::chrono::hours(1));
  EXPECT_TRUE(has(model_error([&] { archive->check_unchanged(); }), "was modified after it was opened"));
}

TEST(SafetensorsMmap, AReplacedFileStaysAsItWas) {
  const TempFolder folder;
  const std::string path = write_large(folder);
  const auto archive = TensorArchive::open(path, LoadMode::mmap);
  folder.write("new", "short");
  std::filesystem::rename(folder.path("new"), path);
  EXPECT_EQ(sum(archive->tensor("w")), kBytes);
  archive->check_unchanged();
}

TEST(SafetensorsMmap, AGuardedReadOfAShrunkFileIsAnError) {
  const TempFolder folder;
  const std::string path = write_large(folder);
  const int status = run_child([&] {
    const auto archive = TensorArchive::open(path, LoadMode::mmap);
    const Tensor w = archive->tensor("w");
    std::filesystem::resize_file(path, 65536);
    const std::string error = model_error([&] { guarded([&] { sum(w); }); });
    if (!has(error, "a.safetensors: byte 65536 could not be read")) ::_exit(2);
    // An error made of the zeros gives way to the reason for the zeros.
    const auto again = TensorArchive::open(write_large(folder, "b.safetensors"), LoadMode::mmap);
    std::filesystem::resize_file(folder.path("b.safetensors"), 4096);
    const std::string second = model_error([&] {
      guarded([&] {
        if (sum(again->tensor("w")) != kBytes) throw InvalidArgument("wrong sum");
      });
    });
    if (!has(second, "b.safetensors: byte 4096 could not be read")) ::_exit(3);
    if (!has(model_error([&] { archive->check_unchanged(); }), "a.safetensors")) ::_exit(4);
    // Another thread is guarded by its own call only, and both keep working.
    const auto third = TensorArchive::open(write_large(folder, "c.safetensors"), LoadMode::mmap);
    std::filesystem::resize_file(folder.path("c.safetensors"), 4096);
    std::string in_thread;
    std::thread([&] { in_thread = model_error([&] { guarded([&] { sum(third->tensor("w")); }); }); }).join();
    if (!has(in_thread, "c.safetensors")) ::_exit(5);
  });
  EXPECT_EQ(status, 0);
}

TEST(SafetensorsMmap, FingerprintOfAShrunkFileIsAnError) {
  const TempFolder folder;
  const std::string path = write_large(folder);
  const int status = run_child([&] {
    const auto archive = TensorArchive::open(path, LoadMode::mmap);
    std::filesystem::resize_file(path, 4096);
    if (!has(model_error([&] { archive->fingerprint(); }), "it was truncated")) ::_exit(2);
  });
  EXPECT_EQ(status, 0);
}

TEST(SafetensorsMmap, ReadModeIsImmuneToShrinking) {
  const TempFolder folder;
  const std::string path = write_large(folder);
  const auto archive = TensorArchive::open(path, LoadMode::read);
  std::filesystem::resize_file(path, 0);
  EXPECT_EQ(sum(archive->tensor("w")), kBytes);
}

TEST(SafetensorsMmap, TheInstalledHandlerExitsWithOneSentence) {
  const TempFolder folder;
  const std::string path = write_large(folder);
  std::string message;
  const int status = run_child(
      [&] {
        install_sigbus_handler();
        const auto archive = TensorArchive::open(path, LoadMode::mmap);
        const Tensor w = archive->tensor("w");
        std::filesystem::resize_file(path, 4096);
        std::thread([&] { sum(w); }).join();
      },
      &message);
  EXPECT_EQ(status, 1);
  EXPECT_EQ(message,
            "error: " + path +
                ": a part of the file could not be read; it was truncated or its disk failed while in use\n");
}

// Reads a page that is gone from a mapping that is not a FileBytes.
void fault_elsewhere() {
  const int file = ::memfd_create("elsewhere", 0);
  if (::ftruncate(file, 4096) != 0) ::_exit(3);
  const void* memory = ::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, file, 0);
  if (memory == MAP_FAILED || ::ftruncate(file, 0) != 0) ::_exit(4);
  [[maybe_unused]] const volatile char c = *static_cast<const volatile char*>(memory);
}

TEST(SafetensorsMmap, FaultsElsewhereGoToTheHandlerBefore) {
  // A new process, where the handler is not installed yet.
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto after = [](auto* handler, const std::function<void()>& work) {
    std::signal(SIGBUS, handler);
    install_sigbus_handler();
    work();
    ::_exit(0);
  };
  const auto exit_42 = [](int) { ::_exit(42); };
  EXPECT_EXIT(after(SIG_DFL, [] { guarded(fault_elsewhere); }), testing::KilledBySignal(SIGBUS), "");
  EXPECT_EXIT(after(+exit_42, [] { guarded(fault_elsewhere); }), testing::ExitedWithCode(42), "");
  EXPECT_EXIT(after(SIG_DFL, [] { ::raise(SIGBUS); }), testing::KilledBySignal(SIGBUS), "");
  EXPECT_EXIT(after(SIG_IGN, [] { ::raise(SIGBUS); }), testing::ExitedWithCode(0), "");
}

TEST(SafetensorsMmap, GuardedPassesResultsAndErrorsThrough) {
  int calls = 0;
  guarded([&] { guarded([&] { ++calls; }); });
  EXPECT_EQ(calls, 1);
  EXPECT_THROW(guarded([] { throw InvalidArgument("x"); }), InvalidArgument);
}

TEST(SafetensorsMmap, SmallFilesAreReadWholeOrRefused) {
  const TempFolder folder;
  const std::string path = folder.write("config.json", "{}\n");
  EXPECT_EQ(read_small_file(path, 3), "{}\n");
  EXPECT_TRUE(has(model_error([&] { read_small_file(path, 2); }), "has 3 bytes, at most 2 are accepted"));
  EXPECT_EQ(read_small_file(folder.write("empty", ""), 0), "");
}

}  // namespace
}  // namespace trivium::io
