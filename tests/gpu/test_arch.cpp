// Which devices a build serves, and how the kernel driver describes AMD devices.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "cuda/arch.h"
#include "hip/kfd.h"
#include "support/temp_folder.h"

namespace trivium {
namespace {

constexpr const char* kShipped = "80 86 89 90a 100a 120 ptx90";

TEST(CudaArch, MachineCodeServesLaterMinorVersionsOfItsGeneration) {
  EXPECT_TRUE(cuda_arch_served("80", 8, 0));
  EXPECT_TRUE(cuda_arch_served("80", 8, 7));
  EXPECT_FALSE(cuda_arch_served("86", 8, 0));
  EXPECT_FALSE(cuda_arch_served("80", 9, 0));
  EXPECT_TRUE(cuda_arch_served("120", 12, 1));
  EXPECT_FALSE(cuda_arch_served("", 9, 0));
}

TEST(CudaArch, ChipSpecificCodeServesOneVersion) {
  EXPECT_TRUE(cuda_arch_served("90a", 9, 0));
  EXPECT_FALSE(cuda_arch_served("100a", 10, 3));
  EXPECT_FALSE(cuda_arch_served("90a", 10, 0));
}

TEST(CudaArch, PtxServesEverythingLater) {
  EXPECT_TRUE(cuda_arch_served("ptx90", 9, 0));
  EXPECT_TRUE(cuda_arch_served("ptx90", 10, 3));
  EXPECT_TRUE(cuda_arch_served("ptx90", 13, 0));
  EXPECT_FALSE(cuda_arch_served("ptx90", 8, 9));
}

TEST(CudaArch, TheShippedBuildServesFromAmpereOn) {
  const int served[][2] = {{8, 0}, {8, 6}, {8, 7}, {8, 9}, {9, 0}, {10, 0}, {10, 3}, {12, 0}, {12, 1}};
  for (const auto& [major, minor] : served)
    EXPECT_TRUE(cuda_arch_served(kShipped, major, minor)) << major << minor;
  const int refused[][2] = {{5, 2}, {6, 1}, {7, 0}, {7, 5}};
  for (const auto& [major, minor] : refused)
    EXPECT_FALSE(cuda_arch_served(kShipped, major, minor)) << major << minor;
}

TEST(CudaArch, NamesAreThoseOfTheVendor) {
  EXPECT_EQ(cuda_arch_names(kShipped), "sm_80 sm_86 sm_89 sm_90a sm_100a sm_120 and everything after sm_90");
  EXPECT_EQ(cuda_arch_names("90a"), "sm_90a");
}

TEST(HipArch, OnlyTheExactTargetIsServed) {
  EXPECT_TRUE(hip_arch_served("gfx90a gfx942", "gfx942"));
  EXPECT_FALSE(hip_arch_served("gfx90a gfx942", "gfx94"));
  EXPECT_FALSE(hip_arch_served("gfx90a gfx942", "gfx908"));
  EXPECT_FALSE(hip_arch_served("gfx90a gfx942", ""));
}

TEST(HipArch, NamesFollowTheKernelDriversNumbers) {
  EXPECT_EQ(hip_arch_name(90010), "gfx90a");
  EXPECT_EQ(hip_arch_name(90402), "gfx942");
  EXPECT_EQ(hip_arch_name(90008), "gfx908");
  EXPECT_EQ(hip_arch_name(100300), "gfx1030");
  EXPECT_EQ(hip_arch_name(110000), "gfx1100");
  EXPECT_EQ(hip_arch_name(110501), "gfx1151");
  EXPECT_EQ(hip_arch_name(120001), "gfx1201");
  EXPECT_EQ(hip_arch_name(0), "");
}

void write_node(const std::filesystem::path& nodes, const char* name, const char* properties) {
  std::filesystem::create_directories(nodes / name);
  std::ofstream(nodes / name / "properties") << properties;
}

TEST(KfdDevice, IsFoundByItsPlaceOnTheBus) {
  const testing::TempFolder folder;
  const std::filesystem::path nodes = folder.file("nodes");
  write_node(nodes, "0", "cpu_cores_count 64\nsimd_count 0\ngfx_target_version 0\nlocation_id 0\n");
  write_node(nodes, "1",
             "cpu_cores_count 0\nsimd_count 440\nsimd_per_cu 4\ngfx_target_version 90010\n"
             "location_id 49408\ndomain 0\n");  // 0xc100
  write_node(nodes, "2",
             "simd_count 1216\nsimd_per_cu 4\ngfx_target_version 90402\nlocation_id 49408\ndomain 1\n");
  EXPECT_EQ(kfd_device(nodes, "0000:c1:00.0").arch, "gfx90a");
  EXPECT_EQ(kfd_device(nodes, "0000:c1:00.0").num_units, 110);
  EXPECT_EQ(kfd_device(nodes, "0001:c1:00.0").arch, "gfx942");
  EXPECT_EQ(kfd_device(nodes, "0001:c1:00.0").num_units, 304);
  EXPECT_EQ(kfd_device(nodes, "0000:c2:00.0").arch, "");
  EXPECT_EQ(kfd_device(nodes, "nonsense").arch, "");
  EXPECT_EQ(kfd_device(folder.file("missing"), "0000:c1:00.0").arch, "");
}

}  // namespace
}  // namespace trivium
