// config.json of the gpt-oss family: spellings, defaults, and every violation in one message.
#include <cmath>
#include <map>

#include "models/moe/config.h"
#include "support/backend.h"

namespace trivium::testing {
namespace {

using moe::MoeConfig;
using Keys = std::map<std::string, std::string>;  // key -> JSON text; "" removes the key

const Keys kBase{{"vocab_size", "320"},
                 {"hidden_size", "64"},
                 {"intermediate_size", "96"},
                 {"num_hidden_layers", "4"},
                 {"num_attention_heads", "8"},
                 {"num_key_value_heads", "2"},
                 {"head_dim", "16"},
                 {"num_local_experts", "6"},
                 {"num_experts_per_tok", "2"},
                 {"sliding_window", "5"},
                 {"max_position_embeddings", "256"}};

std::string json_with(const Keys& changes, Keys keys = kBase) {
  for (const auto& [key, value] : changes) keys[key] = value;
  std::string text = "{";
  for (const auto& [key, value] : keys)
    if (!value.empty()) text += concat(text.size() > 1 ? "," : "", '"', key, "\":", value);
  return text + "}";
}

MoeConfig parse(const Keys& changes) {
  return moe::parse_hf_config(io::parse_json_document(json_with(changes), "c.json"), "c.json");
}

void expect_refused(const Keys& changes, std::vector<std::string> parts) {
  parts.emplace_back("c.json: ");
  expect_error<ModelFormatError>([&] { parse(changes); }, parts);
}

TEST(HfConfig, ReadsThePublishedKeys) {
  const MoeConfig c = parse(
      {{"rope_theta", "150000"},
       {"rope_scaling",
        R"({"rope_type":"yarn","factor":32.0,"beta_fast":32.0,"beta_slow":1.0,"original_max_position_embeddings":4096,"truncate":false})"},
       {"quantization_config", R"({"quant_method":"mxfp4","modules_to_not_convert":["lm_head"]})"},
       {"rms_norm_eps", "1e-06"},
       {"swiglu_limit", "6.5"},
       {"eos_token_id", "7"},
       {"hidden_act", "\"silu\""},
       {"router_aux_loss_coef", "0.9"}});
  EXPECT_EQ(c.vocab_size, 320);
  EXPECT_EQ(c.hidden_size, 64);
  EXPECT_EQ(c.intermediate_size, 96);
  EXPECT_EQ(c.num_layers, 4);
  EXPECT_EQ(c.num_heads, 8);
  EXPECT_EQ(c.num_kv_heads, 2);
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.num_experts, 6);
  EXPECT_EQ(c.top_k, 2);
  EXPECT_EQ(c.sliding_window, 5);
  EXPECT_EQ(c.max_positions, 256);
  EXPECT_EQ(c.sliding, (std::vector<bool>{true, false, true, false}));
  EXPECT_EQ(c.rms_norm_eps, 1e-6);
  EXPECT_EQ(c.swiglu_limit, 6.5);
  EXPECT_EQ(c.swiglu_alpha, 1.702);
  EXPECT_EQ(c.rope.theta, 150000);
  EXPECT_EQ(c.rope.factor, 32);
  EXPECT_EQ(c.rope.beta_fast, 32);
  EXPECT_EQ(c.rope.beta_slow, 1);
  EXPECT_EQ(c.rope.original_context, 4096);
  EXPECT_FALSE(c.rope.truncate || c.rope.attention_factor);
  EXPECT_TRUE(c.mxfp4 && c.attention_bias && !c.tie_word_embeddings);
  EXPECT_EQ(c.eos_ids, std::vector<int32_t>{7});
  EXPECT_EQ(c.q_dim(), 128);
  EXPECT_EQ(c.kv_dim(), 32);
}

TEST(HfConfig, ReadsNewerSpellings) {
  const MoeConfig c = parse({{"num_local_experts", ""},
                             {"num_experts", "12"},
                             {"num_experts_per_tok", ""},
                             {"experts_per_token", "3"},
                             {"swiglu_alpha", "1.5"},
                             {"rope_theta", "5"},
                             {"rope_parameters", R"({"rope_type":"yarn","rope_theta":9000,"factor":8})"},
                             {"attention_bias", "false"},
                             {"tie_word_embeddings", "true"},
                             {"eos_token_id", "[7, 8]"},
                             {"initial_context_length", "2048"}});
  EXPECT_EQ(c.num_experts, 12);
  EXPECT_EQ(c.top_k, 3);
  EXPECT_EQ(c.swiglu_alpha, 1.5);
  EXPECT_EQ(c.rope.theta, 9000);
  EXPECT_EQ(c.rope.factor, 8);
  EXPECT_EQ(c.rope.original_context, 2048);
  EXPECT_TRUE(c.rope.truncate) << "the default of writers that leave it out";
  EXPECT_TRUE(!c.attention_bias && c.tie_word_embeddings && !c.mxfp4);
  EXPECT_EQ(c.eos_ids, (std::vector<int32_t>{7, 8}));
  EXPECT_EQ(parse({{"num_experts", "99"}, {"experts_per_token", "1"}}).num_experts, 6)
      << "the published name wins";
}

TEST(HfConfig, LayerTypesOverrideTheParityRule) {
  const std::string full = "\"full_attention\"", sliding = "\"sliding_attention\"";
  const MoeConfig c = parse({{"layer_types", concat('[', full, ',', full, ',', sliding, ',', full, ']')}});
  EXPECT_EQ(c.sliding, (std::vector<bool>{false, false, true, false}));
  expect_refused({{"layer_types", concat('[', full, ']')}},
                 {"layer_types has 1 entries, num_hidden_layers is 4"});
  expect_refused(
      {{"layer_types", R"(["full_attention","linear_attention","full_attention","full_attention"])"}},
      {"layer_types holds \"linear_attention\""});
  expect_refused({{"layer_types", "3"}}, {"\"layer_types\" is not a list"});
  expect_refused({{"sliding_window", "0"}}, {"\"sliding_window\" is 0"});
  const std::string all = concat('[', full, ',', full, ',', full, ',', full, ']');
  EXPECT_EQ(parse({{"sliding_window", "null"}, {"layer_types", all}}).sliding_window, 0);
}

TEST(HfConfig, RopeIsPlainWhenItsTypeIsDefaultAndThatOfTheReleasesWhenNothingIsSaid) {
  const MoeConfig plain = parse({{"rope_scaling", R"({"rope_type":"default"})"}, {"rope_theta", "10000.5"}});
  EXPECT_EQ(plain.rope.factor, 1);
  EXPECT_EQ(plain.rope.theta, 10000.5);
  EXPECT_FALSE(plain.rope.attention_factor);
  const MoeConfig released = parse({});
  EXPECT_EQ(released.rope.factor, 32);
  EXPECT_EQ(released.rope.theta, 150000);
  EXPECT_EQ(released.rope.original_context, 4096);
  EXPECT_FALSE(released.rope.truncate || released.rope.attention_factor);
}

TEST(HfConfig, AttentionFactorAndMscaleReplaceTheConcentration) {
  const auto yarn = [](const char* more) {
    return *parse({{"rope_scaling", concat(R"({"type":"yarn","factor":40)", more, "}")}})
                .rope.attention_factor;
  };
  EXPECT_EQ(yarn(R"(,"attention_factor":1.25)"), 1.25);
  const double log_factor = 0.1 * std::log(40.0);
  EXPECT_DOUBLE_EQ(yarn(R"(,"mscale":2,"mscale_all_dim":0.5)"),
                   (2 * log_factor + 1) / (0.5 * log_factor + 1));
}

TEST(HfConfig, EveryRequiredKeyIsNamedWhenMissingOrOfAnotherType) {
  for (const auto& [key, value] : kBase) {
    if (key == "sliding_window" || key == "max_position_embeddings") continue;  // these have defaults
    const std::string quoted = concat('"', key, '"');
    expect_refused({{key, ""}}, {quoted + " is missing"});
    expect_refused({{key, "\"3\""}}, {quoted + " is not an integer"});
    expect_refused({{key, "2.5"}}, {quoted + " is not an integer"});
    expect_refused({{key, "0"}}, {quoted + " is 0"});
    expect_refused({{key, "-4"}}, {quoted + " is -4"});
    expect_refused({{key, "99999999999"}}, {quoted + " is 99999999999"});
    expect_refused({{key, "18446744073709551615"}}, {quoted + " is not an integer"});
  }
}

TEST(HfConfig, EveryConstraintIsNamedWithItsValue) {
  expect_refused({{"num_experts_per_tok", "7"}}, {"\"num_experts_per_tok\" is 7, expected 1 to 6"});
  expect_refused({{"num_attention_heads", "7"}}, {"num_attention_heads 7", "num_key_value_heads 2"});
  expect_refused({{"head_dim", "15"}}, {"head_dim 15 is odd"});
  const std::string mxfp4 = R"({"quant_method":"mxfp4"})";
  expect_refused({{"hidden_size", "72"}, {"quantization_config", mxfp4}},
                 {"hidden_size 72", "multiple of 32"});
  expect_refused({{"intermediate_size", "40"}, {"quantization_config", mxfp4}}, {"intermediate_size 40"});
  EXPECT_EQ(parse({{"hidden_size", "72"}}).hidden_size, 72) << "dense weights have no blocks";
  expect_refused({{"quantization_config", R"({"quant_method":"awq"})"}},
                 {"quant_method is \"awq\", expected mxfp4"});
  expect_refused({{"quantization_config", "{}"}}, {"quant_method"});
  expect_refused({{"rope_scaling", R"({"rope_type":"llama3"})"}},
                 {"rope_type is \"llama3\", expected yarn or default"});
  expect_refused({{"rope_scaling", "\"yarn\""}}, {"rope_scaling"});
  expect_refused({{"rope_scaling", R"({"rope_type":"yarn","factor":"big"})"}},
                 {"rope_scaling", "\"factor\" is not a number"});
  expect_refused({{"rope_scaling", R"({"rope_type":"yarn","factor":0})"}}, {"rope factor", "is 0"});
  expect_refused({{"rope_scaling", R"({"rope_type":"yarn","beta_slow":-1})"}}, {"beta_slow"});
  expect_refused({{"rope_scaling", R"({"rope_type":"yarn","original_max_position_embeddings":0})"}},
                 {"original_max_position_embeddings"});
  expect_refused({{"rope_theta", "1"}}, {"\"rope_theta\" is 1"});
  expect_refused({{"rms_norm_eps", "0"}}, {"\"rms_norm_eps\" is 0, expected a positive number"});
  expect_refused({{"swiglu_limit", "-7"}}, {"\"swiglu_limit\" is -7"});
  expect_refused({{"attention_bias", "1"}}, {"\"attention_bias\" is not true or false"});
  expect_refused({{"sliding_window", "-1"}}, {"\"sliding_window\" is -1"});
  for (const char* eos : {"-1", "\"x\"", "4294967296", "[1, 2.5]"})
    expect_refused({{"eos_token_id", eos}}, {"eos_token_id"});
}

TEST(HfConfig, OneMessageListsEverything) {
  expect_refused({{"vocab_size", ""},
                  {"hidden_size", "\"wide\""},
                  {"num_experts_per_tok", "true"},
                  {"rms_norm_eps", "\"small\""},
                  {"rope_scaling", R"({"rope_type":"linear"})"}},
                 {"\"vocab_size\" is missing", "\"hidden_size\" is not an integer",
                  "\"num_experts_per_tok\" is not an integer", "\"rms_norm_eps\" is not a number",
                  "rope_type is \"linear\"", "; "});
}

const Keys kOpenAi{{"num_hidden_layers", "4"},   {"num_experts", "6"},
                   {"experts_per_token", "2"},   {"vocab_size", "320"},
                   {"hidden_size", "64"},        {"intermediate_size", "96"},
                   {"swiglu_limit", "7.0"},      {"head_dim", "16"},
                   {"num_attention_heads", "8"}, {"num_key_value_heads", "2"},
                   {"sliding_window", "5"},      {"initial_context_length", "2048"},
                   {"rope_theta", "10000"},      {"rope_scaling_factor", "16"},
                   {"rope_ntk_alpha", "2"},      {"rope_ntk_beta", "30"}};

MoeConfig parse_openai(const Keys& changes) {
  return moe::parse_openai_config(io::parse_json_document(json_with(changes, kOpenAi), "c.json"), "c.json");
}

TEST(OpenAiConfig, ReadsTheOriginalKeys) {
  const MoeConfig c = parse_openai({});
  EXPECT_EQ(c.num_experts, 6);
  EXPECT_EQ(c.top_k, 2);
  EXPECT_EQ(c.rope.factor, 16);
  EXPECT_EQ(c.rope.beta_slow, 2);
  EXPECT_EQ(c.rope.beta_fast, 30);
  EXPECT_EQ(c.rope.original_context, 2048);
  EXPECT_EQ(c.rope.theta, 10000);
  EXPECT_FALSE(c.rope.truncate);
  EXPECT_TRUE(c.mxfp4);
  EXPECT_EQ(c.sliding, (std::vector<bool>{true, false, true, false}));
  EXPECT_EQ(parse_openai({{"sliding_window", "0"}}).sliding, std::vector<bool>(4, false));
}

TEST(OpenAiConfig, RefusesWhatTheHuggingFaceFormRefuses) {
  expect_error<ModelFormatError>(
      [] {
        parse_openai({{"num_experts", ""}, {"head_dim", "3"}});
      },
      {"c.json: ", "\"num_experts\" is missing"});
  expect_error<ModelFormatError>([] { parse_openai({{"hidden_size", "70"}}); }, {"hidden_size 70"});
}

TEST(FlatBinConfig, TakesTheHeadersSizes) {
  const io::FlatBinHeader header{320, 64, 6, 2, 96, 3, 16, 8, 2, 2048, 4096, 150000.0f, 32.0f, 5, 7.0f};
  const MoeConfig c = moe::from_flat_bin(header, "model.bin");
  EXPECT_EQ(c.vocab_size, 320);
  EXPECT_EQ(c.intermediate_size, 96);
  EXPECT_EQ(c.top_k, 2);
  EXPECT_EQ(c.sliding, (std::vector<bool>{true, false, true}));
  EXPECT_EQ(c.rope.factor, 32);
  EXPECT_EQ(c.max_positions, 131072)
      << "seq_len sized the predecessor's buffers, it does not bound the model";
  io::FlatBinHeader bad = header;
  bad.experts_per_token = 7;
  expect_error<ModelFormatError>([&] { moe::from_flat_bin(bad, "model.bin"); },
                                 {"model.bin: ", "is 7, expected 1 to 6"});
}

}  // namespace
}  // namespace trivium::testing
