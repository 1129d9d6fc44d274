// libtrivium_hip.so without ROCm, and on a fake runtime: loading, refusals, memory, streams, graphs,
// launches.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "core/registry.h"
#include "gpu/fake_hip.h"
#include "support/backend.h"
#include "support/temp_folder.h"

namespace trivium {
namespace {

using testing::expect_error;

const std::string kModule = concat(TRIVIUM_BACKENDS, "/libtrivium_hip.so");

void write_node(const std::string& nodes, int number, int target, int location) {
  const std::filesystem::path folder = std::filesystem::path(nodes) / std::to_string(number);
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "properties") << "simd_count 80\nsimd_per_cu 4\ngfx_target_version " << target
                                       << "\nlocation_id " << location << "\n";
}

using Check = void (*)(FakeHip&, const trivium_backend_v1&);

void run_check(const char* variant, int second, Check check) {
  const testing::TempFolder folder;
  write_node(folder.file(""), 1, 90402, 0x0100);
  write_node(folder.file(""), 2, second, 0x0200);
  ::setenv("TRIVIUM_KFD_TOPOLOGY", folder.file("").c_str(), 1);
  const std::string file = concat(TRIVIUM_FAKE_HIP, "/", variant, "/libamdhip64.so");
  void* library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(library, nullptr) << ::dlerror();
  const auto fake = reinterpret_cast<FakeHip* (*)()>(::dlsym(library, "fake_hip"));
  check(*fake(), load_backend_file(kModule));
}

// The backend keeps the first runtime it finds, so each test has a process of its own.
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

// Device 0 has the target gfx942, device 1 `second`.
void on_fake_runtime(const char* variant, int second, Check check) {
  in_child([&] { run_check(variant, second, check); });
}

TEST(HipModule, WithoutARuntimeReportsNoDeviceAndWhy) {
  in_child([] {
    const trivium_backend_v1& table = load_backend_file(kModule);
    int32_t count = -1;
    EXPECT_EQ(table.runtime->device_count(&count), Status::ok);
    if (count > 0) GTEST_SKIP() << "an AMD device is here";
    const std::string reason = table.last_error();
    EXPECT_NE(reason.find("libamdhip64.so"), std::string::npos) << reason;
    expect_error<DeviceError>([] { parse_device("hip"); }, {"device hip cannot be had: ", reason});
  });
}

TEST(HipModule, ARuntimeThatLacksAFunctionIsRefusedByItsName) {
  on_fake_runtime("incomplete", 90010, [](FakeHip& fake, const trivium_backend_v1&) {
    expect_error<DeviceError>([] { parse_device("hip"); },
                              {"libamdhip64.so has no function hipGraphExecDestroy", "ROCm 5.2 or later"});
    EXPECT_TRUE(fake.kernels.empty());
  });
}

TEST(HipModule, KernelsAreHandedToTheRuntimeWhenADeviceIsAskedFor) {
  on_fake_runtime("whole", 90010, [](FakeHip& fake, const trivium_backend_v1&) {
    EXPECT_TRUE(fake.kernels.empty());
    EXPECT_EQ(parse_device("hip:1"), (Device{DeviceKind::hip, 1}));
    EXPECT_FALSE(fake.kernels.empty());
  });
}

TEST(HipModule, DevicesAreDescribed) {
  on_fake_runtime("whole", 110000, [](FakeHip&, const trivium_backend_v1&) {
    const DeviceProperties p = device_properties(parse_device("hip:0"));
    EXPECT_STREQ(p.name, "Fake Instinct");
    EXPECT_STREQ(p.arch, "gfx942");
    EXPECT_EQ(p.warp_size, 64);
    EXPECT_EQ(p.num_units, 20);
    EXPECT_EQ(p.shared_bytes, 64 << 10);
    EXPECT_EQ(p.free_bytes, int64_t{1} << 30);
    EXPECT_EQ(device_properties(parse_device("hip:1")).warp_size, 32);
  });
}

TEST(HipModule, ATargetTheBuildLacksIsRefusedWithBothNames) {
  on_fake_runtime("whole", 110501, [](FakeHip&, const trivium_backend_v1& table) {
    const std::vector<std::string> parts{"device hip:1 (Fake Radeon) is gfx1151; this build has kernels for ",
                                         "gfx942"};
    expect_error<DeviceError>([] { parse_device("hip:1"); }, parts);
    expect_error<DeviceError>([] { Tensor::empty({4}, Dtype::f32, {DeviceKind::hip, 1}); }, parts);
    StreamHandle* stream = nullptr;
    EXPECT_EQ(table.runtime->stream_create(1, &stream), Status::device_error);
    EXPECT_EQ(parse_device("hip"), (Device{DeviceKind::hip, 0}));
    EXPECT_EQ(parse_device("auto"), (Device{DeviceKind::hip, 0}));
    const BackendReport report = backend_report().at(2);
    EXPECT_EQ(report.refusals.at(0), "");
    EXPECT_NE(report.refusals.at(1).find("gfx1151"), std::string::npos);
  });
}

TEST(HipModule, TensorsGoThereAndBack) {
  on_fake_runtime("whole", 90010, [](FakeHip& fake, const trivium_backend_v1&) {
    {
      const Tensor t = testing::host_tensor<float>({3}, std::vector<float>{1, 2, 3});
      const Tensor there = t.to(parse_device("hip:1"));
      EXPECT_EQ(fake.current_device, 1);
      EXPECT_EQ(fake.live_memory, 1);
      EXPECT_EQ(testing::values_of<float>(there), (std::vector<float>{1, 2, 3}));
      EXPECT_EQ(testing::values_of<float>(Tensor::zeros({2}, Dtype::f32, there.device())),
                (std::vector<float>{0, 0}));
    }
    EXPECT_EQ(fake.live_memory, 0);
  });
}

TEST(HipModule, MemoryInTheOrderOfAStreamComesFromThePool) {
  on_fake_runtime("whole", 90010, [](FakeHip& fake, const trivium_backend_v1&) {
    const Device device = parse_device("hip:1");
    {
      const Tensor t = Tensor::in_order({3}, Dtype::f32, device);
      EXPECT_EQ(fake.in_order_memory, 1);
      EXPECT_EQ(fake.pool_keeps, 1 << 30);
      EXPECT_EQ(fake.synchronised, 0);
    }
    EXPECT_EQ(fake.live_memory, 0);
    EXPECT_EQ(fake.in_order_memory, 0);
    EXPECT_EQ(fake.synchronised, 0);
  });
}

TEST(HipModule, ThePoolKeepsWhatOthersAskedItToKeep) {
  on_fake_runtime("whole", 90010, [](FakeHip& fake, const trivium_backend_v1&) {
    fake.pool_keeps = int64_t{1} << 40;
    Tensor::in_order({3}, Dtype::f32, parse_device("hip"));
    EXPECT_EQ(fake.pool_keeps, int64_t{1} << 40);
  });
}

TEST(HipModule, WhatThePoolHoldsIsHadBeforeMemoryIsOut) {
  on_fake_runtime("whole", 90010, [](FakeHip& fake, const trivium_backend_v1&) {
    fake.free_bytes = 5 << 20;
    fake.in_pool = 20 << 20;
    EXPECT_NO_THROW(Tensor::empty({3 << 20}, Dtype::f32, parse_device("hip")));
    EXPECT_EQ(fake.in_pool, 0);
  });
}

TEST(HipModule, WithoutAPoolMemoryIsHadAsAlways) {
  on_fake_runtime("whole", 90010, [](FakeHip& fake, const trivium_backend_v1&) {
    fake.has_pools = false;
    {
      const Tensor t = Tensor::in_order({3}, Dtype::f32, parse_device("hip"));
      EXPECT_EQ(fake.live_memory, 1);
      EXPECT_EQ(fake.in_order_memory, 0);
    }
    EXPECT_EQ(fake.live_memory, 0);
  });
}

TEST(HipModule, OutOfMemorySaysWhatIsNeededAndWhatIsFree) {
  on_fake_runtime("whole", 90010, [](FakeHip& fake, const trivium_backend_v1&) {
    fake.free_bytes = 5 << 20;
    for (const auto allocate : {Tensor::empty, Tensor::in_order})
      expect_error<OutOfMemory>([&] { allocate({3 << 20}, Dtype::f32, parse_device("hip")); },
                                {"hip:0: needs 12 MiB of memory; 5 of 2048 MiB are free"});
  });
}

TEST(HipModule, TheDeviceAndOtherLibrariesStreamsAreWaitedFor) {
  on_fake_runtime("whole", 90010, [](FakeHip& fake, const trivium_backend_v1& table) {
    const Device device = parse_device("hip");
    EXPECT_EQ(table.runtime->wait_foreign(default_stream(device), nullptr), Status::ok);
    EXPECT_EQ(table.runtime->foreign_wait(default_stream(device), nullptr), Status::ok);
    EXPECT_EQ(fake.live_events, 0);
    EXPECT_EQ(fake.synchronised, 0);
    EXPECT_EQ(table.runtime->device_synchronize(0), Status::ok);
    EXPECT_EQ(fake.synchronised, 1);
    fake.next_error = 700;
    EXPECT_EQ(table.runtime->device_synchronize(0), Status::device_error);
    EXPECT_NE(std::string(table.last_error()).find("waiting for the device: an illegal memory access"),
              std::string::npos)
        << table.last_error();
  });
}

TEST(HipModule, StreamsEventsAndGraphsAreGivenBack) {
  on_fake_runtime("whole", 90010, [](FakeHip& fake, const trivium_backend_v1& table) {
    const Device device = parse_device("hip");
    {
      Stream stream(device);
      Event event(device), later(device);
      event.record(stream);
      stream.wait(event);
      later.record(stream);
      later.synchronize();
      float ms = 0;
      EXPECT_EQ(table.runtime->event_elapsed(event.handle(), later.handle(), &ms), Status::ok);
      EXPECT_EQ(ms, 1.5f);
      GraphHandle* graph = nullptr;
      EXPECT_EQ(table.runtime->graph_begin(stream.handle()), Status::ok);
      EXPECT_EQ(table.runtime->graph_end(stream.handle(), &graph), Status::ok);
      EXPECT_EQ(table.runtime->graph_launch(graph, stream.handle()), Status::ok);
      EXPECT_EQ(fake.live_graphs, 1);
      EXPECT_EQ(table.runtime->graph_destroy(graph), Status::ok);
      void* pinned = nullptr;
      EXPECT_EQ(table.runtime->allocate_host(0, 100, &pinned), Status::ok);
      EXPECT_EQ(table.runtime->deallocate_host(0, pinned), Status::ok);
    }
    EXPECT_EQ(fake.live_streams + fake.live_events + fake.live_graphs + fake.live_memory, 0);
  });
}

TEST(HipModule, AnotherLibrarysStreamIsUsedAndLeftAlone) {
  on_fake_runtime("whole", 90010, [](FakeHip& fake, const trivium_backend_v1& table) {
    const Device device = parse_device("hip");
    Stream theirs(device);
    void* native = nullptr;
    ASSERT_EQ(table.runtime->stream_native(theirs.handle(), &native), Status::ok);
    {
      Stream borrowed(device, native);
      void* seen = nullptr;
      EXPECT_EQ(table.runtime->stream_native(borrowed.handle(), &seen), Status::ok);
      EXPECT_EQ(seen, native);
      EXPECT_EQ(fake.live_streams, 1);
    }
    EXPECT_EQ(fake.live_streams, 1);
    expect_error<DeviceError>(
        [&] {
          Stream(Device{DeviceKind::hip, 7}, native);
        },
        {"hip:7", "does not exist"});
  });
}

Status launch(const trivium_backend_v1& table, Stream& stream, int64_t tokens) {
  static int32_t positions[8];
  static double inv_freq[4];
  static float out[8 * 4 * 2];
  const RopeTableArgs args{positions, inv_freq, out, tokens, 4, 1.0};
  return table.kernels->rope_table(stream.handle(), &args);
}

TEST(HipModule, AKernelReachesTheRuntimeUnderItsRegisteredName) {
  on_fake_runtime("whole", 90010, [](FakeHip& fake, const trivium_backend_v1& table) {
    Stream stream(parse_device("hip"));
    ASSERT_EQ(launch(table, stream, 8), Status::ok) << table.last_error();
    ASSERT_EQ(fake.launches.size(), 1u);
    EXPECT_NE(fake.launches[0].kernel.find("rope_table"), std::string::npos) << fake.launches[0].kernel;
    EXPECT_GE(fake.launches[0].grid[0] * fake.launches[0].block[0], 1u);
    EXPECT_EQ(fake.synchronised, 0);
    ASSERT_EQ(launch(table, stream, 0), Status::ok);
    EXPECT_EQ(fake.launches.size(), 1u) << "an empty launch does nothing";
  });
}

TEST(HipModule, AFailedLaunchIsASentence) {
  on_fake_runtime("whole", 90010, [](FakeHip& fake, const trivium_backend_v1& table) {
    Stream stream(parse_device("hip"));
    fake.next_error = 700;
    EXPECT_EQ(launch(table, stream, 8), Status::device_error);
    const std::string text = table.last_error();
    EXPECT_NE(text.find("hip:0: a kernel of "), std::string::npos) << text;
    EXPECT_NE(text.find("an illegal memory access was encountered"), std::string::npos) << text;
  });
}

TEST(HipModule, SyncOptionWaitsAfterEachLaunchButNotWhileRecording) {
  ::setenv("TRIVIUM_SYNC", "1", 1);
  on_fake_runtime("whole", 90010, [](FakeHip& fake, const trivium_backend_v1& table) {
    Stream stream(parse_device("hip"));
    ASSERT_EQ(launch(table, stream, 8), Status::ok);
    EXPECT_EQ(fake.synchronised, 1);
    ASSERT_EQ(table.runtime->graph_begin(stream.handle()), Status::ok);
    ASSERT_EQ(launch(table, stream, 8), Status::ok);
    EXPECT_EQ(fake.synchronised, 1);
  });
  ::unsetenv("TRIVIUM_SYNC");
}

}  // namespace
}  // namespace trivium
