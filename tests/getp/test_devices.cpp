// Batch jobs on one and several devices: the same file of tokens, whatever does the work.
#include <fstream>
#include <sstream>

#include "getp/driver.h"
#include "getp/memory.h"
#include "support/backend.h"
#include "support/temp_folder.h"

namespace trivium::testing {
namespace {

class Devices : public ::testing::Test {
 protected:
  Devices() { folder_.write("prompts.txt", "3\nReturn\nOpen\nGet the\n"); }

  // The exit code and, when it is 0, the output file. `family` names the demo model.
  std::string run(Device device, const std::vector<int>& devices, const char* family = "",
                  int64_t steps = 5) {
    getp::Options options;
    options.mode = getp::Mode::getp;
    options.model = concat(TRIVIUM_DEMO, family);
    options.inputs = {folder_.file("prompts.txt")};
    options.output = folder_.file("out.txt");
    options.device = name_of(device.kind);
    options.devices = devices;
    options.precision = Precision::float32;
    options.steps = steps;
    options.batch_size = 2;
    options.quiet = true;
    const int code = getp::run(options);
    if (code != getp::kExitOk) return concat("exit ", code);
    std::ifstream file(options.output, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }

  TempFolder folder_;
};

TEST_F(Devices, OneAndSeveralGiveTheCpusTokens) {
  const std::string want = run(Device{}, {});
  ASSERT_EQ(std::count(want.begin(), want.end(), '\n'), 3) << want;
  const Device device = test_device();
  EXPECT_EQ(run(device, {}), want) << "one device";
  const int count = device_count(device.kind);
  const std::vector<int> list = count > 1 ? std::vector<int>{1, 0} : std::vector<int>{0};
  EXPECT_EQ(run(device, list), want) << list.size() << " replica(s)";
}

TEST_F(Devices, EveryFamilyGivesTheCpusTokens) {
  // "Return" alone is six tokens of the LUT model, which reads bytes.
  for (const auto& [family, steps] : {std::pair{"_xlstm", 5}, {"_lut", 12}}) {
    const std::string want = run(Device{}, {}, family, steps);
    ASSERT_EQ(std::count(want.begin(), want.end(), '\n'), 3) << want;
    EXPECT_EQ(run(test_device(), {}, family, steps), want) << family;
  }
}

TEST_F(Devices, TheLineAboutThemNamesWhatTheFamilyDecides) {
  const Device device = test_device();
  const std::string narrow = is_gpu(device.kind) || cpu_has_bf16_dot() ? "bfloat16" : "float32";
  const auto line = [&](const char* family, Precision precision, std::optional<Dtype> kv_dtype) {
    getp::Options options;
    options.model = concat(TRIVIUM_DEMO, family);
    options.precision = precision;
    options.kv_dtype = kv_dtype;
    const CancelToken cancel;
    const std::string text = getp::device_line(options, {device}, cancel);
    EXPECT_EQ(text.find(concat("device: ", device, " (")), 0u) << text;
    return text.substr(text.find("), ") + 3);
  };
  using enum Precision;
  EXPECT_EQ(line("", automatic, {}), concat("precision ", narrow, ", kv ", narrow));
  EXPECT_EQ(line("", float32, {}), "precision float32, kv float32");
  EXPECT_EQ(line("", float32, Dtype::bf16), "precision float32, kv bfloat16");
  EXPECT_EQ(line("_xlstm", automatic, {}), concat("precision ", narrow, ", state float32"));
  EXPECT_EQ(line("_xlstm", float32, Dtype::bf16), "precision float32, state float32");
  EXPECT_EQ(line("_lut", automatic, {}), "precision float32, state int32");
}

TEST_F(Devices, OneThatDoesNotExistIsAnErrorBeforeAnythingIsWritten) {
  const Device device = test_device();
  EXPECT_EQ(run(device, {0, device_count(device.kind)}), "exit 1");
  EXPECT_FALSE(std::ifstream(folder_.file("out.txt")).good());
  EXPECT_FALSE(std::ifstream(folder_.file("out.txt.journal")).good());
}

TEST_F(Devices, SeveralAreForBatchJobsOnly) {
  getp::Options options;
  options.model = TRIVIUM_DEMO;
  options.mode = getp::Mode::generate;
  options.inputs = {"Return"};
  options.device = name_of(test_device().kind);
  options.devices = {0, 1};
  EXPECT_EQ(getp::run(options), getp::kExitUsage);
}

}  // namespace
}  // namespace trivium::testing
