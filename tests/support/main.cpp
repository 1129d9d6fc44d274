// Entry of every C++ test binary. --backend=NAME picks the device the op tests run on; when it cannot be had
// the binary says why and exits with 77, which ctest shows as Skipped.
#include <gtest/gtest.h>

#include <cstdio>
#include <string_view>

#include "core/registry.h"
#include "support/backend.h"

namespace {

constexpr int kSkipped = 77;
constexpr std::string_view kOption = "--backend=";

// Throws when the backend, or the CPU level that TRIVIUM_CPU_LEVEL names, cannot be had here.
void choose_backend(std::string_view name) {
  trivium::testing::g_test_device = trivium::parse_device(name);
  trivium::device_properties(trivium::testing::g_test_device);
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (!argument.starts_with(kOption)) {
      std::fprintf(stderr, "unknown argument %s; expected --backend=NAME or GoogleTest's options\n", argv[i]);
      return 2;
    }
    try {
      choose_backend(argument.substr(kOption.size()));
    } catch (const trivium::DeviceError& error) {
      std::printf("Skipped: %s\n", error.what());
      return kSkipped;
    } catch (const trivium::Error& error) {
      std::fprintf(stderr, "%s\n", error.what());
      return 2;
    }
  }
  return RUN_ALL_TESTS();
}
