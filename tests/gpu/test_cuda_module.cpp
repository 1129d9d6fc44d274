// libtrivium_cuda.so on a machine without a driver.
#include <gtest/gtest.h>

#include "core/registry.h"
#include "support/backend.h"

namespace trivium {
namespace {

using testing::expect_error;

class CudaModule : public ::testing::Test {
 protected:
  void SetUp() override { table_ = &load_backend_file(concat(TRIVIUM_BACKENDS, "/libtrivium_cuda.so")); }
  const trivium_backend_v1* table_ = nullptr;
};

TEST_F(CudaModule, LoadsAndNamesItself) {
  EXPECT_STREQ(table_->name, "cuda");
  EXPECT_EQ(table_->kind, DeviceKind::cuda);
}

TEST_F(CudaModule, WithoutADriverReportsNoDeviceAndWhy) {
  int32_t count = -1;
  EXPECT_EQ(table_->runtime->device_count(&count), Status::ok);
  if (count > 0) GTEST_SKIP() << "an NVIDIA device is here";
  EXPECT_EQ(count, 0);
  const std::string reason = table_->last_error();
  EXPECT_TRUE(reason.find("driver") != std::string::npos) << reason;
  expect_error<DeviceError>([] { parse_device("cuda"); }, {"device cuda cannot be had: ", reason});
  expect_error<DeviceError>([] { parse_device("cuda:3"); }, {"device cuda:3 cannot be had: ", reason});
  EXPECT_NE(parse_device("auto").kind, DeviceKind::cuda);
}

TEST_F(CudaModule, CallsForADeviceThatIsNotThereAreErrors) {
  int32_t count = 0;
  table_->runtime->device_count(&count);
  void* memory = nullptr;
  StreamHandle* stream = nullptr;
  DeviceProperties properties{};
  EXPECT_EQ(table_->runtime->allocate(count, 16, &memory), Status::device_error);
  EXPECT_EQ(std::string(table_->last_error()),
            concat("device cuda:", count, " does not exist: there are ", count));
  EXPECT_EQ(table_->runtime->stream_create(-1, &stream), Status::device_error);
  EXPECT_EQ(table_->runtime->device_properties(count, &properties), Status::device_error);
}

}  // namespace
}  // namespace trivium
