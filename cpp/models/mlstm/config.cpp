#include "models/mlstm/config.h"

#include <cmath>

#include "models/config_reader.h"

namespace trivium::xlstm {
namespace {

std::string text_of(const io::JsonValue& json, const char* key, const char* missing) {
  const io::JsonValue* value = json.find(key);
  if (!value) return missing;
  return value->string() ? *value->string() : "(not a string)";
}

// A positive number, or 0 for null: no cap. Absent: `fallback`.
double cap_of(ConfigReader& r, const io::JsonValue& json, const char* key, double fallback) {
  const io::JsonValue::Object* object = json.object();
  const auto found = object->find(key);
  if (found != object->end() && found->second.is_null()) return 0;
  const double cap = r.number({key}, fallback);
  r.require(std::isfinite(cap) && cap > 0,
            concat("\"", key, "\" is ", cap, ", expected a positive number or null"));
  return cap;
}

int64_t scaled(ConfigReader& r, const char* key, double factor, int64_t hidden) {
  r.require(std::isfinite(factor) && factor > 0 && factor <= 64,
            concat("\"", key, "\" is ", factor, ", expected 0 to 64"));
  return std::isfinite(factor) && factor <= 64 ? static_cast<int64_t>(static_cast<double>(hidden) * factor)
                                               : 0;
}

// What would make it another function than the one computed here.
void refuse_variants(ConfigReader& r, const io::JsonValue& json) {
  for (const char* key : {"chunkwise_kernel", "sequence_kernel", "step_kernel"}) {
    const std::string kernel = text_of(json, key, "");
    r.require(
        kernel.find("siging") == std::string::npos,
        concat("\"", key, "\" is \"", printable(kernel), "\": the sigmoid input gate is not supported"));
  }
  r.require(!r.boolean("use_bias", false), "\"use_bias\" true is not supported");
  r.require(r.boolean("add_out_norm", true), "\"add_out_norm\" false is not supported");
}

}  // namespace

XlstmConfig parse_config(const io::JsonValue& json, const std::string& name) {
  ConfigReader r(json, name);
  XlstmConfig c;
  c.vocab_size = r.integer({"vocab_size"});
  c.hidden_size = r.integer({"hidden_size", "embedding_dim"});
  c.num_layers = r.integer({"num_hidden_layers", "num_blocks"});
  c.num_heads = r.integer({"num_heads"});
  bool sizes = r.in_range("vocab_size", c.vocab_size, 1, 1 << 24);
  sizes &= r.in_range("hidden_size", c.hidden_size, 1, 1 << 20);
  sizes &= r.in_range("num_hidden_layers", c.num_layers, 1, 4096);
  sizes &= r.in_range("num_heads", c.num_heads, 1, 1 << 14);
  const int64_t multiple = r.integer({"ffn_round_up_to_multiple_of"}, 64);
  sizes &= r.in_range("ffn_round_up_to_multiple_of", multiple, 1, 1 << 16);
  if (!sizes) r.finish();
  c.qk_dim = scaled(r, "qk_dim_factor", r.number({"qk_dim_factor"}, 0.5), c.hidden_size);
  c.v_dim = scaled(r, "v_dim_factor", r.number({"v_dim_factor"}, 1.0), c.hidden_size);
  const double inner = r.number({"ffn_proj_factor"}, 2.667);
  scaled(r, "ffn_proj_factor", inner, c.hidden_size);
  const double padded = static_cast<double>(c.hidden_size) * inner + static_cast<double>(multiple) - 1;
  if (std::isfinite(padded) && padded < 1e9)
    c.intermediate_size = static_cast<int64_t>(padded / static_cast<double>(multiple)) * multiple;
  for (const auto& [what, dim] : {std::pair{"queries", c.qk_dim}, {"values", c.v_dim}})
    r.require(dim >= c.num_heads && dim % c.num_heads == 0,
              concat("num_heads ", c.num_heads, " does not divide the ", dim, " dimensions of ", what));
  c.norm_eps = r.number({"norm_eps"}, 1e-6);
  c.eps = r.number({"eps"}, 1e-6);
  r.positive("norm_eps", c.norm_eps);
  r.require(std::isfinite(c.eps) && c.eps >= 0, concat("\"eps\" is ", c.eps, ", expected a number >= 0"));
  c.gate_soft_cap = cap_of(r, json, "gate_soft_cap", 15);
  c.logit_soft_cap = cap_of(r, json, "output_logit_soft_cap", 30);
  const std::string mode = text_of(json, "weight_mode", "single");
  r.require(mode == "single" || mode == "fused",
            concat("\"weight_mode\" is \"", printable(mode), "\", expected single or fused"));
  c.fused_weights = mode == "fused";
  c.tie_word_embeddings = r.boolean("tie_word_embeddings", false);
  refuse_variants(r, json);
  c.eos_ids = r.token_ids("eos_token_id");
  r.finish();
  return c;
}

}  // namespace trivium::xlstm
