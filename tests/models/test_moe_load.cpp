// Loading a checkpoint: layouts that hold the same weights give the same logits, and what is refused.
#include "core/log.h"
#include "models/tiny_checkpoint.h"
#include "ops/ops.h"
#include "support/compare.h"

namespace trivium::testing {
namespace {

std::vector<float> logits(Model& model) {
  const auto states = model.make_states({.num_slots = 1, .max_length = 64, .max_step_tokens = 64});
  EXPECT_TRUE(states->reserve(0, 24));
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 24; ++i) tokens.push_back(i * 7 % 97);
  const std::vector<Segment> segments{{0, 0, 24, Segment::Logits::all}};
  return values_of<float>(model.forward({tokens, segments}, *states));
}

std::string without(std::string text, const std::string& part) {
  const size_t at = text.find(part);
  EXPECT_NE(at, std::string::npos) << part;
  return text.replace(at, part.size(), "");
}

const std::string kExpertsName = "model.layers.1.mlp.experts.";
const std::string kDenseConfig =
    without(kTinyConfig, ",\n  \"quantization_config\": {\"quant_method\": \"mxfp4\"}");

// [E, rows, cols] -> [E, cols, rows], element by element.
Tensor turned(const Tensor& t) {
  const int64_t strides[] = {t.dim(1) * t.dim(2), 1, t.dim(2)};
  return Tensor::wrap(t.data(), {t.dim(0), t.dim(2), t.dim(1)}, t.dtype(), {}, t.owner(), strides)
      .contiguous();
}

Tensors with_dense_experts(Dtype dtype) {
  Tensors t = tiny_tensors();
  for (int64_t l = 0; l < kLayers; ++l)
    for (const char* part : {"gate_up_proj", "down_proj"}) {
      const std::string name = concat("model.layers.", l, ".mlp.experts.", part);
      t[name] = turned(ops::mxfp4_decode(t.at(name + "_blocks"), t.at(name + "_scales"))).to(dtype);
      t.erase(name + "_blocks");
      t.erase(name + "_scales");
    }
  return t;
}

TEST(Load, DescribesTheModel) {
  const TinyCheckpoint checkpoint;
  const auto model = checkpoint.load(Precision::bfloat16);
  const ModelInfo& info = model->info();
  EXPECT_EQ(info.model_type, "gpt_oss");
  EXPECT_EQ(info.path, checkpoint.path());
  EXPECT_EQ(info.vocab_size, 97);
  EXPECT_EQ(info.max_positions, 64);
  EXPECT_EQ(info.stop_ids, std::vector<int32_t>{2});
  EXPECT_EQ(info.precision, Precision::bfloat16);
  EXPECT_EQ(info.config_json, kTinyConfig);
  EXPECT_GT(info.weight_bytes, 40000);
  EXPECT_EQ(model->default_kv_dtype(), Dtype::bf16);
  EXPECT_EQ(model->tokenizer(), nullptr);
  EXPECT_EQ(checkpoint.load(Precision::float32)->default_kv_dtype(), Dtype::f32);
  EXPECT_NE(checkpoint.load(Precision::automatic)->info().precision, Precision::automatic);
  EXPECT_EQ(info.fingerprint, 0u);  // nobody asked for it
  checkpoint.folder().write("generation_config.json", R"({"eos_token_id": [5, 6]})");
  EXPECT_EQ(checkpoint.load()->info().stop_ids, (std::vector<int32_t>{5, 6}));
  model->warm_up();
}

TEST(Load, HashesTheWeightsWhenAsked) {
  const auto fingerprint = [](const std::string& path) {
    LoadOptions options;
    options.device = test_device();
    options.fingerprint = true;
    return load_model(path, options)->info().fingerprint;
  };
  const TinyCheckpoint checkpoint;
  EXPECT_EQ(fingerprint(checkpoint.path()), fingerprint(checkpoint.path()));
  Tensors changed = tiny_tensors();
  Tensor& blocks = changed.at("model.layers.1.mlp.experts.down_proj_blocks");
  blocks.data_as<uint8_t>()[blocks.numel() / 3] ^= 1;
  EXPECT_NE(fingerprint(TinyCheckpoint(changed).path()), fingerprint(checkpoint.path()));
}

TEST(Load, DenseTransposedExpertsEqualMxfp4) {
  const auto want = logits(*TinyCheckpoint().load());
  for (const Dtype dtype : {Dtype::bf16, Dtype::f16, Dtype::f32})
    expect_same_bits(logits(*TinyCheckpoint(with_dense_experts(dtype), kDenseConfig).load()), want,
                     name_of(dtype));
}

TEST(Load, DenseWeightsMayBeWider) {
  Tensors wide = tiny_tensors();
  for (auto& [name, tensor] : wide)
    if (tensor.dtype() == Dtype::bf16) tensor = tensor.to(Dtype::f32);
  expect_same_bits(logits(*TinyCheckpoint(wide).load()), logits(*TinyCheckpoint().load()), "float32 weights");
}

void expect_refused(const Tensors& tensors, const std::vector<std::string>& parts,
                    const std::string& config = kTinyConfig) {
  const TinyCheckpoint checkpoint(tensors, config);
  expect_error<ModelFormatError>([&] { checkpoint.load(); }, parts);
}

TEST(Load, MissingTensorsAreListedUpToFive) {
  Tensors t = tiny_tensors();
  t.erase("model.norm.weight");
  expect_refused(t, {"missing tensors: model.norm.weight"});
  for (auto it = t.begin(); it != t.end();)
    it = it->first.find(".q_proj.") != std::string::npos ? t.erase(it) : std::next(it);
  expect_refused(t, {"missing tensors: model.layers.0.self_attn.q_proj.weight", " and 2 more"});
}

TEST(Load, WrongShapesAndDtypesNameFileAndTensor) {
  Tensors t = tiny_tensors();
  t["lm_head.weight"] = random_normal({kVocab, kHidden + 1}, 1).to(Dtype::bf16);
  expect_refused(t, {"model.safetensors: tensor \"lm_head.weight\" is [97, 33], expected [97, 32]"});
  t = tiny_tensors();
  t["model.layers.0.self_attn.sinks"] = Tensor::zeros({kHeads}, Dtype::i32);
  expect_refused(t, {"\"model.layers.0.self_attn.sinks\" is int32"});
  t = tiny_tensors();
  t[kExpertsName + "down_proj_scales"] = Tensor::zeros({kExperts, kHidden, kInter / 32}, Dtype::i8);
  expect_refused(t, {kExpertsName + "down_proj_scales", "int8", "uint8"});
  t = tiny_tensors();
  t.erase(kExpertsName + "down_proj_scales");
  expect_refused(t, {"missing tensors: " + kExpertsName + "down_proj_scales"});
  // Stored [out, in] instead of [E, in, out].
  t = with_dense_experts(Dtype::bf16);
  t[kExpertsName + "down_proj"] = turned(t.at(kExpertsName + "down_proj"));
  expect_refused(t, {kExpertsName + "down_proj", "[4, 32, 64], expected [4, 64, 32]"}, kDenseConfig);
}

TEST(Load, ValuesNoModelHasAreRefusedUnlessUnchecked) {
  Tensors t = tiny_tensors();
  Tensor bad = t.at("lm_head.weight").to(Dtype::f32);
  bad.data_as<float>()[33] = NAN;
  t["lm_head.weight"] = bad.to(Dtype::bf16);
  expect_refused(t,
                 {"model.safetensors: tensor \"lm_head.weight\" holds a NaN or an infinity at element 33"});
  const TinyCheckpoint checkpoint(t);
  LoadOptions options;
  options.precision = Precision::float32;
  options.check_weights = false;
  const auto rows = logits(*load_model(checkpoint.path(), options));
  EXPECT_TRUE(std::isnan(rows[1])) << "element 33 belongs to the logit of token 1";
  EXPECT_FALSE(std::isnan(rows[0]));
  t = tiny_tensors();
  Tensor& scales = t.at(kExpertsName + "gate_up_proj_scales");
  scales.data_as<uint8_t>()[100] = 253;
  expect_refused(
      t, {kExpertsName + "gate_up_proj_scales\" holds scale 253 at element 100, expected at most 252"});
}

std::string g_warning;

TEST(Load, ExtraTensorsAreOneWarning) {
  Tensors t = tiny_tensors();
  t["model.extra"] = Tensor::zeros({2}, Dtype::f32);
  t["model.more"] = Tensor::zeros({2}, Dtype::f32);
  set_log_sink([](LogLevel, const char* message) { g_warning += message; });
  TinyCheckpoint(t).load();
  set_log_sink(nullptr);
  EXPECT_NE(g_warning.find("2 tensor(s) are not used, the first is \"model.extra\""), std::string::npos)
      << g_warning;
}

TEST(Load, ProgressEndsAtTheTotalAndCancellingStops) {
  const TinyCheckpoint checkpoint;
  int64_t last = 0, total = 0;
  CancelToken token;
  LoadOptions options;
  options.cancel = &token;
  options.on_progress = [&](int64_t done, int64_t all) {
    EXPECT_GE(done, last);
    last = done, total = all;
  };
  load_model(checkpoint.path(), options);
  EXPECT_GT(last, 40000);
  EXPECT_GE(total, last);
  EXPECT_GT(static_cast<double>(last), 0.8 * static_cast<double>(total));
  options.on_progress = [&](int64_t, int64_t) { token.cancel(); };
  EXPECT_THROW(load_model(checkpoint.path(), options), Cancelled);
}

TEST(Load, PathsWithoutAModelSayWhatIsMissing) {
  const TempFolder folder;
  const std::string path = folder.file("");
  const auto refuse = [](const std::string& where, const std::vector<std::string>& parts) {
    expect_error<ModelFormatError>([&] { load_model(where); }, parts);
  };
  refuse(path + "/nowhere", {"no model at", "nowhere"});
  refuse(path, {"no config.json", "it is empty"});
  folder.write("notes.txt", "");
  refuse(path, {"no config.json", "found: notes.txt"});
  refuse(folder.write("w.safetensors", ""), {"w.safetensors\" is a weight file"});
  const auto refuse_config = [&](const std::string& text, const std::vector<std::string>& parts) {
    folder.write("config.json", text);
    refuse(path, parts);
  };
  refuse_config("[]", {"config.json: is not a JSON object"});
  refuse_config("{", {"config.json: invalid JSON"});
  refuse_config("{}", {"\"model_type\" is missing"});
  refuse_config(R"({"model_type": 3})", {"model_type is \"(not a string)\""});
  refuse_config(R"({"model_type": "llama"})", {"model_type is \"llama\"; this build runs gpt_oss"});
  EXPECT_EQ(parse_precision("bf16"), Precision::bfloat16);
  expect_error([] { parse_precision("fp8"); },
               {"unknown precision \"fp8\"", "expected auto, float32 or bfloat16"});
}

}  // namespace
}  // namespace trivium::testing
