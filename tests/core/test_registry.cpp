// Backends: finding, loading and refusing them, and errors that cross their edge.
#include "core/registry.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "core/log.h"
#include "ops/ops.h"
#include "support/backend.h"
#include "support/temp_folder.h"

namespace trivium::testing {
namespace {

constexpr Device kDummy{DeviceKind::test, 0};

std::string dummy(const std::string& variant, const std::string& kind = "test") {
  return concat(TRIVIUM_DUMMIES, "/", variant, "/libtrivium_", kind, ".so");
}

int64_t live_objects() { return device_properties(kDummy).free_bytes; }

// Runs fn in a child process: what it finds out about backends stays there.
template <class Fn>
void in_child(Fn&& fn) {
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    fn();
    std::fflush(nullptr);
    ::_exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
}

std::vector<std::string> g_warnings;
void keep_warning(LogLevel, const char* message) { g_warnings.emplace_back(message); }

TEST(LoadBackendFile, RegistersAGoodLibrary) {
  in_child([] {
    const trivium_backend_v1& table = load_backend_file(dummy("good"));
    EXPECT_EQ(table.kind, DeviceKind::test);
    EXPECT_EQ(device_count(DeviceKind::test), 2);
    EXPECT_STREQ(device_properties({DeviceKind::test, 1}).name, "dummy one");
    EXPECT_EQ(parse_device("test"), kDummy);
    EXPECT_EQ(parse_device("test:1"), (Device{DeviceKind::test, 1}));
    EXPECT_EQ(to_string(kDummy), "test:0");
    expect_error<DeviceError>([] { parse_device("test:2"); },
                              {"device test:2 does not exist", "test has 2 device(s)"});
    expect_error<DeviceError>([] { device_properties({DeviceKind::test, 7}); }, {"dummy: no such device"});
  });
}

TEST(LoadBackendFile, SaysWhatIsWrongWithALibrary) {
  const auto refuse = [](const std::string& variant, const std::vector<std::string>& parts) {
    std::vector<std::string> all = parts;
    all.push_back(dummy(variant));
    expect_error<DeviceError>([&] { load_backend_file(dummy(variant)); }, all);
  };
  refuse("wrong_abi", {"backend ABI 99, expected 1"});
  refuse("wrong_struct_size", {"backend ABI 1, expected 1"});
  refuse("wrong_build_id", {"built as 0.0.1+other, this library is ", build_id()});
  refuse("no_build_id", {"built as , this library is "});
  refuse("wrong_table_size", {"tables have another size"});
  refuse("missing_tables", {"one of its tables is missing"});
  refuse("missing_symbol", {"no symbol trivium_backend_get"});
  refuse("null_table", {"does not serve backend ABI 1"});
  refuse("nowhere", {"cannot be loaded", "No such file"});
}

TEST(LoadBackendFile, RefusesAFileThatIsNoLibrary) {
  const TempFolder folder;
  const std::string text = folder.write("libtrivium_cuda.so", "not a library\n"),
                    empty = folder.write("empty.so", "");
  expect_error<DeviceError>([&] { load_backend_file(text); }, {text, "cannot be loaded"});
  expect_error<DeviceError>([&] { load_backend_file(empty); }, {empty, "cannot be loaded"});
}

TEST(LoadBackendFile, ARefusedLibraryLeavesNothingBehind) {
  in_child([] {
    EXPECT_THROW(load_backend_file(dummy("wrong_abi")), DeviceError);
    EXPECT_EQ(device_count(DeviceKind::test), 0);
  });
}

TEST(BackendPath, IsSearchedOnFirstUse) {
  in_child([] {
    ::setenv("TRIVIUM_BACKEND_PATH", concat(TRIVIUM_DUMMIES, "/good").c_str(), 1);
    EXPECT_EQ(device_count(DeviceKind::test), 2);
    EXPECT_EQ(parse_device("test:1").index, 1);
    EXPECT_EQ(parse_device("auto"), Device{});
  });
}

TEST(BackendPath, TheReasonOfABrokenLibraryIsKept) {
  in_child([] {
    const TempFolder folder;
    std::filesystem::copy(dummy("wrong_build_id"), folder.file("libtrivium_cuda.so"));
    std::filesystem::copy(dummy("good"), folder.file("libtrivium_emu32.so"));
    ::setenv("TRIVIUM_BACKEND_PATH", folder.file("").c_str(), 1);
    expect_error<DeviceError>([] { parse_device("cuda"); },
                              {"device cuda cannot be had", "built as 0.0.1+other"});
    expect_error<DeviceError>([] { backend(DeviceKind::cuda); },
                              {"device cuda cannot be had", "libtrivium_cuda.so"});
    expect_error<DeviceError>([] { parse_device("emu32"); },
                              {"libtrivium_emu32.so", "is a backend for test"});
    EXPECT_EQ(device_count(DeviceKind::cuda), 0);
    const BackendReport cuda = backend_report().at(1);
    EXPECT_EQ(cuda.name, "cuda");
    EXPECT_FALSE(cuda.loaded);
    EXPECT_NE(cuda.reason.find("0.0.1+other"), std::string::npos) << cuda.reason;
    EXPECT_EQ(cuda.file, folder.file("") + "/libtrivium_cuda.so");
  });
}

TEST(BackendPath, ALoadedBackendWithoutDevicesSaysWhy) {
  in_child([] {
    ::setenv("TRIVIUM_BACKEND_PATH", concat(TRIVIUM_DUMMIES, "/zero_devices").c_str(), 1);
    expect_error<DeviceError>([] { parse_device("hip"); },
                              {"device hip cannot be had", "the driver has gone home"});
    EXPECT_EQ(parse_device("auto"), Device{});
    const BackendReport hip = backend_report().at(2);
    EXPECT_TRUE(hip.loaded && hip.devices.empty());
    EXPECT_EQ(hip.reason, "dummy: the driver has gone home");
  });
}

TEST(BackendPath, AFolderThatEveryoneCanWriteIsIgnoredWithAWarning) {
  in_child([] {
    const TempFolder folder;
    std::filesystem::copy(dummy("good"), folder.file("libtrivium_test.so"));
    ::chmod(folder.file("").c_str(), 0777);
    ::setenv("TRIVIUM_BACKEND_PATH", folder.file("").c_str(), 1);
    set_log_sink(keep_warning);
    expect_error<DeviceError>([] { parse_device("test"); }, {"device test cannot be had", "not built into"});
    ASSERT_EQ(g_warnings.size(), 1u);
    EXPECT_NE(g_warnings[0].find("writable by everyone"), std::string::npos) << g_warnings[0];
    EXPECT_NE(g_warnings[0].find(folder.file("")), std::string::npos) << g_warnings[0];
  });
}

TEST(BackendPath, TheWorkingDirectoryIsNotSearched) {
  in_child([] {
    ::unsetenv("TRIVIUM_BACKEND_PATH");
    ASSERT_EQ(::chdir(concat(TRIVIUM_DUMMIES, "/good").c_str()), 0);
    EXPECT_EQ(device_count(DeviceKind::test), 0);
  });
}

TEST(Report, TheCpuIsAlwaysThere) {
  const BackendReport cpu = backend_report().at(0);
  EXPECT_EQ(cpu.name, "cpu");
  EXPECT_TRUE(cpu.loaded && cpu.file.empty() && cpu.reason.empty());
  ASSERT_EQ(cpu.devices.size(), 1u);
  EXPECT_EQ(cpu.devices[0].arch, cpu_level());
  EXPECT_GT(cpu.devices[0].total_bytes, 0);
  EXPECT_EQ(cpu.devices[0].warp_size, 1);
}

TEST(ParseDevice, ErrorsNameTheDeviceAndTheChoices) {
  EXPECT_EQ(parse_device("cpu"), Device{});
  EXPECT_EQ(parse_device("cpu:0"), Device{});
  expect_error<DeviceError>([] { parse_device("cpu:1"); },
                            {"device cpu:1 does not exist", "cpu has 1 device(s)"});
  expect_error<DeviceError>([] { parse_device("emu64"); }, {"device emu64 cannot be had", "not built into"});
  for (const char* text :
       {"", "gpu", "CPU", "cpu:", "cpu:x", "cpu:-1", "cpu:00001", "cpu:1:2", " cpu", "cpu\n"})
    expect_error([&] { parse_device(text); }, {"unknown device", "expected auto, cpu, cuda"});
  expect_error([] { parse_device(std::string(1000, 'x')); }, {"unknown device", "xxx..."});
}

class Dummy : public ::testing::Test {
 protected:
  void SetUp() override { load_backend_file(dummy("good")); }
};

TEST_F(Dummy, TensorsTravelThereAndBackAndAreGivenBack) {
  const int64_t before = live_objects();
  {
    const std::vector<float> values{1, 2, 3, 4, 5, 6};
    const Tensor there = host_tensor<float>({2, 3}, values).to(kDummy);
    EXPECT_EQ(there.device(), kDummy);
    EXPECT_EQ(live_objects(), before + 1);
    EXPECT_EQ(values_of<float>(there.slice(1, 2)), (std::vector<float>{4, 5, 6}));
    EXPECT_EQ(values_of<float>(there.to(Device{DeviceKind::test, 1})), values);
    EXPECT_EQ(values_of<int32_t>(Tensor::zeros({3}, Dtype::i32, kDummy)), (std::vector<int32_t>{0, 0, 0}));
  }
  EXPECT_EQ(live_objects(), before);
}

TEST_F(Dummy, StreamsAndEventsAreGivenBack) {
  const int64_t before = live_objects();
  {
    Stream stream(kDummy);
    Event event(kDummy);
    EXPECT_EQ(live_objects(), before + 2);
    event.record(stream);
    stream.wait(event);
    stream.synchronize();
    expect_error<Error>([&] { event.synchronize(); }, {"dummy: the event is lost"});
  }
  EXPECT_EQ(live_objects(), before);
}

TEST_F(Dummy, ErrorsOfTheBackendArriveWithTheirKindAndSentence) {
  const Tensor x = Tensor::zeros({2, 4}, Dtype::f32, kDummy), w = Tensor::zeros({4}, Dtype::f32, kDummy);
  expect_error<Error>([&] { ops::rms_norm(x, w, 1e-5f); }, {"dummy: rms_norm fails"});
  expect_error<OutOfMemory>([&] { ops::linear(x, ops::Weight::dense(x, "w")); }, {"dummy: linear fails"});
  expect_error<InvalidArgument>([&] { x.to(Dtype::bf16); }, {"dummy: convert fails"});
  expect_error<DeviceError>([&] { ops::moe_route(x, 1); }, {"dummy: route fails"});
  const Tensor q = x.reshape({2, 1, 4});
  expect_error<NotImplemented>([&] { ops::attention(q, q, q, {}, 0, 1); }, {"dummy: attention fails"});
  expect_error<OutOfMemory>([] { Tensor::empty({1 << 21}, Dtype::u8, kDummy); }, {"dummy: 1 MiB"});
}

TEST_F(Dummy, AnEmptyEntryIsNotImplementedAndNeverFallsBack) {
  const Tensor x = Tensor::zeros({2, 4}, Dtype::f32, kDummy);
  expect_error<NotImplemented>([&] { ops::swiglu(x); }, {"swiglu on test"});
  const Tensor ids = Tensor::zeros({1}, Dtype::i32, kDummy);
  expect_error<NotImplemented>([&] { ops::embedding(ids, x); }, {"embedding on test"});
}

TEST_F(Dummy, TensorsOfTwoDevicesDoNotMix) {
  const Tensor there = Tensor::zeros({2, 4}, Dtype::f32, kDummy), here = Tensor::zeros({2, 4}, Dtype::f32);
  const std::string both = "cpu and test:0";
  expect_error([&] { ops::linear(here, ops::Weight::dense(there, "w")); }, {"linear: tensors on " + both});
  expect_error([&] { ops::rms_norm(here, Tensor::zeros({4}, Dtype::f32, kDummy), 0); },
               {"rms_norm: w", "on cpu"});
  const Tensor q = here.reshape({2, 1, 4}), k = there.reshape({2, 1, 4});
  expect_error([&] { ops::attention(q, k, k, {}, 0, 1); }, {"attention: tensors on " + both});
  expect_error([&] { ops::rope(q, Tensor::zeros({2}, Dtype::i32, kDummy), ops::rope_frequencies(4, {})); },
               {"rope: tensors on " + both});
  expect_error([&] { ops::embedding(Tensor::zeros({2}, Dtype::i32), there); },
               {"embedding: tensors on " + both});
}

}  // namespace
}  // namespace trivium::testing
