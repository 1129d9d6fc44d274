// What fake_hip.cpp remembers, for the test to read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct FakeLaunch {
  std::string kernel;  // name in the code object
  uint32_t grid[3], block[3];
  size_t shared_bytes;
};

struct FakeHip {
  int num_devices = 2;
  int64_t free_bytes = int64_t{1} << 30;
  int next_error = 0;  // of the next launch, synchronise or copy
  int current_device = -1;
  int live_memory = 0, live_streams = 0, live_events = 0, live_graphs = 0, synchronised = 0;
  bool capturing = false;
  bool has_pools = true;             // gives memory in the order of a stream
  int64_t pool_keeps = 0;            // bytes, as asked
  int64_t in_pool = 0;               // bytes that the pool would give back
  int in_order_memory = 0;           // live, of live_memory
  std::vector<std::string> kernels;  // registered
  std::vector<FakeLaunch> launches;
};

extern "C" FakeHip* fake_hip();
