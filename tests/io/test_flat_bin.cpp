// model.bin: header checks, the order of the tensors, and both element types.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <tuple>

#include "core/half.h"
#include "io/flat_bin.h"
#include "io/safetensors_support.h"

namespace trivium::io {
namespace {

FlatBinHeader small_header() {
  return {.vocab_size = 11,
          .hidden_size = 6,
          .num_experts = 3,
          .experts_per_token = 2,
          .intermediate_size = 5,
          .num_layers = 2,
          .head_dim = 4,
          .num_heads = 4,
          .num_kv_heads = 2,
          .seq_len = 2048,
          .initial_context_length = 4096,
          .rope_theta = 150000.0f,
          .rope_scaling_factor = 32.0f,
          .sliding_window = 5,
          .swiglu_limit = 7.0f};
}

// Elements of all weights of small_header(), counted by hand from the list of categories.
constexpr int64_t kParameters = 11 * 6 * 2 + 2 * 6 * 2 + 6 + 2 * (32 * 6 + 32) + 2 * (6 * 16 + 6) + 2 * 4 +
                                2 * (3 * 6 + 3) + 2 * (3 * 10 * 6 + 3 * 10) + 2 * (3 * 6 * 5 + 3 * 6);

std::string header_bytes(const FlatBinHeader& header) {
  return {reinterpret_cast<const char*>(&header), sizeof header};
}

// Every element holds its own index.
std::string small_file(bool bf16_elements = false) {
  std::string file = header_bytes(small_header());
  for (int64_t i = 0; i < kParameters; ++i) {
    const float value = static_cast<float>(i);
    const bf16 rounded = to_bf16(value);
    file.append(
        bf16_elements ? reinterpret_cast<const char*>(&rounded) : reinterpret_cast<const char*>(&value),
        bf16_elements ? 2 : 4);
  }
  return file;
}

TEST(FlatBin, TensorsLieInTheOrderOfTheExporter) {
  const TempFolder folder;
  const std::string path = folder.write("model.bin", small_file());
  for (const LoadMode mode : {LoadMode::mmap, LoadMode::read}) {
    const FlatBinModel model = open_flat_bin(path, mode);
    EXPECT_EQ(model.header.num_experts, 3);
    EXPECT_EQ(model.header.rope_theta, 150000.0f);
    EXPECT_EQ(model.header.swiglu_limit, 7.0f);
    const std::tuple<const char*, Shape, int64_t> expected[] = {
        {"embedding.weight", {11, 6}, 0},
        {"unembedding.weight", {11, 6}, 66},
        {"block.0.attn.norm.scale", {6}, 132},
        {"block.1.attn.norm.scale", {6}, 138},
        {"block.0.mlp.norm.scale", {6}, 144},
        {"block.1.mlp.norm.scale", {6}, 150},
        {"norm.scale", {6}, 156},
        {"block.0.attn.qkv.weight", {32, 6}, 162},
        {"block.1.attn.qkv.weight", {32, 6}, 354},
        {"block.0.attn.qkv.bias", {32}, 546},
        {"block.1.attn.qkv.bias", {32}, 578},
        {"block.0.attn.out.weight", {6, 16}, 610},
        {"block.1.attn.out.weight", {6, 16}, 706},
        {"block.0.attn.out.bias", {6}, 802},
        {"block.1.attn.out.bias", {6}, 808},
        {"block.0.attn.sinks", {4}, 814},
        {"block.1.attn.sinks", {4}, 818},
        {"block.0.mlp.gate.weight", {3, 6}, 822},
        {"block.1.mlp.gate.weight", {3, 6}, 840},
        {"block.0.mlp.gate.bias", {3}, 858},
        {"block.1.mlp.gate.bias", {3}, 861},
        {"block.0.mlp.mlp1_weight", {3, 10, 6}, 864},
        {"block.1.mlp.mlp1_weight", {3, 10, 6}, 1044},
        {"block.0.mlp.mlp1_bias", {3, 10}, 1224},
        {"block.1.mlp.mlp1_bias", {3, 10}, 1254},
        {"block.0.mlp.mlp2_weight", {3, 6, 5}, 1284},
        {"block.1.mlp.mlp2_weight", {3, 6, 5}, 1374},
        {"block.0.mlp.mlp2_bias", {3, 6}, 1464},
        {"block.1.mlp.mlp2_bias", {3, 6}, 1482},
    };
    EXPECT_EQ(model.weights->entries().size(), std::size(expected));
    for (const auto& [name, shape, first] : expected) {
      const Tensor tensor = model.weights->tensor(name);
      EXPECT_EQ(tensor.shape(), shape) << name;
      EXPECT_EQ(tensor.data_as<float>()[0], static_cast<float>(first)) << name;
      EXPECT_EQ(tensor.data_as<float>()[tensor.numel() - 1], static_cast<float>(first + tensor.numel() - 1))
          << name;
    }
    EXPECT_EQ(1482 + 18, kParameters);
  }
}

TEST(FlatBin, TheFileSizeDecidesTheDtype) {
  const TempFolder folder;
  const FlatBinModel model = open_flat_bin(folder.write("model.bin", small_file(true)));
  const Tensor bias = model.weights->tensor("block.1.mlp.gate.bias");
  ASSERT_EQ(bias.dtype(), Dtype::bf16);
  EXPECT_EQ(to_float(bias.data_as<bf16>()[0]), to_float(to_bf16(861.0f)));
  EXPECT_EQ(model.weights->file_of("norm.scale"), folder.path("model.bin"));
  EXPECT_NE(model.weights->fingerprint(),
            open_flat_bin(folder.write("model.bin", small_file())).weights->fingerprint());
}

TEST(FlatBin, EveryOtherSizeIsRefused) {
  const TempFolder folder;
  const std::string whole = small_file();
  const std::string path = folder.write("model.bin", whole);
  for (size_t n = whole.size() - 1; n + 1 > 0; --n) {
    if (static_cast<int64_t>(n) == kFlatBinHeaderBytes + 2 * kParameters) continue;
    std::filesystem::resize_file(path, n);
    const std::string error = model_error([&] { open_flat_bin(path); });
    EXPECT_TRUE(has(error, path) && has(error, concat(" has ", n, " bytes"))) << n << ": " << error;
  }
  const std::string longer = model_error([&] { open_flat_bin(folder.write("model.bin", whole + "x")); });
  EXPECT_TRUE(has(longer, concat("asks for ", 60 + 4 * kParameters, " (float32) or ", 60 + 2 * kParameters,
                                 " (bfloat16)")));
  EXPECT_FALSE(has(longer, "incomplete"));
}

TEST(FlatBin, EveryHeaderFieldIsChecked) {
  const auto error_with = [](const auto& change) {
    FlatBinHeader header = small_header();
    change(header);
    return model_error([&] { parse_flat_bin_header(header_bytes(header), "model.bin"); });
  };
  ASSERT_EQ(error_with([](FlatBinHeader&) {}), "");
  using Field = int32_t FlatBinHeader::*;
  const std::pair<Field, const char*> counts[] = {
      {&FlatBinHeader::vocab_size, "vocab_size"},
      {&FlatBinHeader::hidden_size, "hidden_dim"},
      {&FlatBinHeader::num_experts, "n_experts"},
      {&FlatBinHeader::experts_per_token, "experts_per_token"},
      {&FlatBinHeader::intermediate_size, "intermediate_dim"},
      {&FlatBinHeader::num_layers, "n_layers"},
      {&FlatBinHeader::head_dim, "head_dim"},
      {&FlatBinHeader::num_heads, "n_attn_heads"},
      {&FlatBinHeader::num_kv_heads, "n_kv_heads"},
      {&FlatBinHeader::seq_len, "seq_len"},
      {&FlatBinHeader::initial_context_length, "initial_context_length"},
  };
  for (const auto& [field, name] : counts)
    for (const int32_t value : {0, -1, INT32_MIN, INT32_MAX, (1 << 24) + 1}) {
      const std::string error = error_with([&, f = field](FlatBinHeader& h) { h.*f = value; });
      EXPECT_TRUE(has(error, concat("model.bin: header field ", name, " is "))) << error;
    }
  EXPECT_TRUE(has(error_with([](FlatBinHeader& h) { h.sliding_window = -1; }), "sliding_window is -1"));
  EXPECT_EQ(error_with([](FlatBinHeader& h) { h.sliding_window = 0; }), "");
  EXPECT_TRUE(has(error_with([](FlatBinHeader& h) { h.experts_per_token = 4; }),
                  "experts_per_token is 4, expected 1 to 3"));
  EXPECT_TRUE(has(error_with([](FlatBinHeader& h) { h.num_kv_heads = 3; }), "a multiple of n_kv_heads"));
  EXPECT_TRUE(has(error_with([](FlatBinHeader& h) { h.head_dim = 5; }), "expected an even number"));
  EXPECT_TRUE(has(error_with([](FlatBinHeader& h) { h.num_layers = 4097; }), "n_layers is 4097"));
  // The exporter writes an integer rope_theta as an integer: read as a float it is nearly 0.
  const int32_t integer_theta = 150000;
  EXPECT_TRUE(has(error_with([&](FlatBinHeader& h) { std::memcpy(&h.rope_theta, &integer_theta, 4); }),
                  "rope_theta is 2.1"));
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), -1.0f}) {
    EXPECT_TRUE(has(error_with([&](FlatBinHeader& h) { h.rope_theta = bad; }), "rope_theta"));
    EXPECT_TRUE(
        has(error_with([&](FlatBinHeader& h) { h.rope_scaling_factor = bad; }), "rope_scaling_factor"));
    EXPECT_TRUE(has(error_with([&](FlatBinHeader& h) { h.swiglu_limit = bad; }), "swiglu_limit"));
  }
}

TEST(FlatBin, LegalFieldsWhoseProductOverflowsAreRefused) {
  FlatBinHeader header = small_header();
  header.num_experts = header.intermediate_size = header.hidden_size = 1 << 24;
  EXPECT_TRUE(has(model_error([&] { flat_bin_tensors(header, 1 << 20, "model.bin"); }),
                  "more weights than any file can hold"));
  header.num_experts = header.intermediate_size = header.hidden_size = 1 << 16;
  EXPECT_TRUE(
      has(model_error([&] { flat_bin_tensors(header, 1 << 20, "model.bin"); }), "its header asks for"));
}

TEST(FlatBin, RandomHeadersAreRefusedOrFitTheFile) {
  std::mt19937 random(5);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = header_bytes(small_header());
    for (int k = 0; k < 2; ++k) bytes[random() % bytes.size()] = static_cast<char>(random());
    const int64_t size = kFlatBinHeaderBytes + 4 * kParameters;
    model_error([&] {
      for (const TensorEntry& tensor :
           flat_bin_tensors(parse_flat_bin_header(bytes, "model.bin"), size, "model.bin"))
        EXPECT_TRUE(tensor.begin >= kFlatBinHeaderBytes && tensor.begin <= tensor.end && tensor.end <= size);
    });
  }
}

}  // namespace
}  // namespace trivium::io
