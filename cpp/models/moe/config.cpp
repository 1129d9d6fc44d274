#include "models/moe/config.h"

#include <cmath>
#include <limits>

#include "models/config_reader.h"

namespace trivium::moe {
namespace {

void read_rope(ConfigReader& reader, const io::JsonValue& json, MoeConfig& c) {
  const io::JsonValue* nested = json.find("rope_parameters");
  if (!nested) nested = json.find("rope_scaling");
  reader.require(!nested || nested->object(), "rope_scaling is not an object");
  static const io::JsonValue kNone;
  ConfigReader rope(nested ? *nested : kNone, "");
  c.rope.theta = nested && nested->find("rope_theta") ? rope.number({"rope_theta"}, 0)
                                                      : reader.number({"rope_theta"}, 150000);
  // Without the object the family's published scaling holds, as in transformers.
  std::string type = nested ? "default" : "yarn";
  if (const io::JsonValue* value = rope.find({"rope_type", "type"}))
    type = value->string() ? *value->string() : "?";
  reader.require(type == "yarn" || type == "default",
                 concat("rope_type is \"", printable(type), "\", expected yarn or default"));
  c.rope.factor = type == "yarn" ? rope.number({"factor"}, 32) : 1;
  c.rope.beta_fast = rope.number({"beta_fast"}, 32);
  c.rope.beta_slow = rope.number({"beta_slow"}, 1);
  c.rope.original_context =
      rope.number({"original_max_position_embeddings"}, reader.number({"initial_context_length"}, 4096));
  c.rope.truncate = rope.boolean("truncate", type == "yarn" && nested);
  if (type != "yarn" || !nested) return;
  if (nested->find("attention_factor")) {
    c.rope.attention_factor = rope.number({"attention_factor"}, 1);
  } else if (nested->find("mscale") && nested->find("mscale_all_dim")) {
    const double log_factor = 0.1 * std::log(std::max(c.rope.factor, 1.0));
    const double all = rope.number({"mscale_all_dim"}, 1);
    c.rope.attention_factor = (rope.number({"mscale"}, 1) * log_factor + 1) / (all * log_factor + 1);
  }
  try {
    rope.finish();
  } catch (const ModelFormatError& e) {
    reader.problem(concat("rope_scaling", e.what()));
  }
}

void read_layer_types(ConfigReader& reader, const io::JsonValue& json, MoeConfig& c) {
  const io::JsonValue* types = json.find("layer_types");
  for (int64_t l = 0; l < c.num_layers && !types; ++l) c.sliding.push_back(l % 2 == 0);
  if (!types) return;
  if (!types->array()) return reader.problem("\"layer_types\" is not a list");
  for (const io::JsonValue& type : *types->array()) {
    const std::string text = type.string() ? *type.string() : "?";
    reader.require(
        text == "sliding_attention" || text == "full_attention",
        concat("layer_types holds \"", printable(text), "\", expected sliding_attention or full_attention"));
    c.sliding.push_back(text == "sliding_attention");
  }
  reader.require(
      static_cast<int64_t>(c.sliding.size()) == c.num_layers,
      concat("layer_types has ", c.sliding.size(), " entries, num_hidden_layers is ", c.num_layers));
}

// The keys that both published layouts spell alike.
void read_sizes(ConfigReader& r, MoeConfig& c) {
  c.vocab_size = r.integer({"vocab_size"});
  c.hidden_size = r.integer({"hidden_size"});
  c.intermediate_size = r.integer({"intermediate_size"});
  c.num_layers = r.integer({"num_hidden_layers"});
  c.num_heads = r.integer({"num_attention_heads"});
  c.num_kv_heads = r.integer({"num_key_value_heads"});
  c.head_dim = r.integer({"head_dim"});
  c.sliding_window = r.integer({"sliding_window"}, 0);
  c.swiglu_limit = r.number({"swiglu_limit"}, 7.0);
}

// Everything a kernel or an allocation relies on.
void validate(ConfigReader& r, const MoeConfig& c) {
  bool sizes = r.in_range("vocab_size", c.vocab_size, 1, 1 << 24);
  sizes &= r.in_range("hidden_size", c.hidden_size, 1, 1 << 20);
  sizes &= r.in_range("intermediate_size", c.intermediate_size, 1, 1 << 20);
  sizes &= r.in_range("num_hidden_layers", c.num_layers, 1, 4096);
  sizes &= r.in_range("num_attention_heads", c.num_heads, 1, 1 << 14);
  sizes &= r.in_range("num_key_value_heads", c.num_kv_heads, 1, 1 << 14);
  sizes &= r.in_range("head_dim", c.head_dim, 2, 1 << 14);
  sizes &= r.in_range("num_local_experts", c.num_experts, 1, 1 << 16);
  sizes &= r.in_range("max_position_embeddings", c.max_positions, 1, 1 << 30);
  r.in_range("sliding_window", c.sliding_window, 0, 1 << 30);
  if (!sizes) return;
  r.in_range("num_experts_per_tok", c.top_k, 1, c.num_experts);
  r.require(c.num_heads % c.num_kv_heads == 0,
            concat("num_attention_heads ", c.num_heads, " is not a multiple of num_key_value_heads ",
                   c.num_kv_heads));
  r.require(c.head_dim % 2 == 0, concat("head_dim ", c.head_dim, " is odd"));
  if (c.mxfp4) {
    r.require(c.hidden_size % 32 == 0,
              concat("hidden_size ", c.hidden_size, " is not a multiple of 32 (MXFP4)"));
    r.require(c.intermediate_size % 32 == 0,
              concat("intermediate_size ", c.intermediate_size, " is not a multiple of 32 (MXFP4)"));
  }
  for (const bool sliding : c.sliding)
    if (sliding && c.sliding_window == 0) {
      r.problem("\"sliding_window\" is 0, but there are sliding_attention layers");
      break;
    }
  r.positive("rms_norm_eps", c.rms_norm_eps);
  r.positive("swiglu_limit", c.swiglu_limit);
  r.require(std::isfinite(c.swiglu_alpha), concat("\"swiglu_alpha\" is ", c.swiglu_alpha));
  r.require(c.rope.theta > 1 && c.rope.theta <= 1e12,
            concat("\"rope_theta\" is ", c.rope.theta, ", expected 1 to 1e12"));
  const auto moderate = [&r](const char* key, double value) {  // quotients of these must stay finite
    r.require(value >= 1e-100 && value <= 1e100,
              concat("\"rope ", key, "\" is ", value, ", expected 1e-100 to 1e100"));
  };
  moderate("factor", c.rope.factor);
  moderate("beta_fast", c.rope.beta_fast);
  moderate("beta_slow", c.rope.beta_slow);
  moderate("original_max_position_embeddings", c.rope.original_context);
}

void alternate_layers(MoeConfig& c) {
  for (int64_t l = 0; l < std::min<int64_t>(c.num_layers, 4096); ++l)
    c.sliding.push_back(c.sliding_window > 0 && l % 2 == 0);
}

}  // namespace

MoeConfig parse_hf_config(const io::JsonValue& json, const std::string& name) {
  ConfigReader r(json, name);
  MoeConfig c;
  read_sizes(r, c);
  c.num_experts = r.integer({"num_local_experts", "num_experts"});
  c.top_k = r.integer({"num_experts_per_tok", "experts_per_token"});
  c.max_positions = r.integer({"max_position_embeddings"}, 131072);
  c.rms_norm_eps = r.number({"rms_norm_eps"}, 1e-5);
  c.swiglu_alpha = r.number({"swiglu_alpha"}, 1.702);
  c.attention_bias = r.boolean("attention_bias", true);
  c.tie_word_embeddings = r.boolean("tie_word_embeddings", false);
  if (const io::JsonValue* quantization = json.find("quantization_config")) {
    const io::JsonValue* method = quantization->find("quant_method");
    const std::string text = method && method->string() ? *method->string() : "?";
    r.require(text == "mxfp4", concat("quant_method is \"", printable(text), "\", expected mxfp4"));
    c.mxfp4 = true;
  }
  if (c.num_layers >= 1 && c.num_layers <= 4096) read_layer_types(r, json, c);
  read_rope(r, json, c);
  c.eos_ids = r.token_ids("eos_token_id");
  validate(r, c);
  r.finish();
  return c;
}

MoeConfig parse_openai_config(const io::JsonValue& json, const std::string& name) {
  ConfigReader r(json, name);
  MoeConfig c;
  read_sizes(r, c);
  c.num_experts = r.integer({"num_experts"});
  c.top_k = r.integer({"experts_per_token"});
  c.rope.theta = r.number({"rope_theta"}, 150000);
  c.rope.factor = r.number({"rope_scaling_factor"}, 32);
  c.rope.beta_fast = r.number({"rope_ntk_beta"}, 32);
  c.rope.beta_slow = r.number({"rope_ntk_alpha"}, 1);
  c.rope.original_context = r.number({"initial_context_length"}, 4096);
  c.mxfp4 = true;
  alternate_layers(c);
  validate(r, c);
  r.finish();
  return c;
}

MoeConfig from_flat_bin(const io::FlatBinHeader& h, const std::string& name) {
  static const io::JsonValue kNone;
  ConfigReader r(kNone, name);
  MoeConfig c;
  c.vocab_size = h.vocab_size;
  c.hidden_size = h.hidden_size;
  c.intermediate_size = h.intermediate_size;
  c.num_layers = h.num_layers;
  c.num_heads = h.num_heads;
  c.num_kv_heads = h.num_kv_heads;
  c.head_dim = h.head_dim;
  c.num_experts = h.num_experts;
  c.top_k = h.experts_per_token;
  c.sliding_window = h.sliding_window;
  c.swiglu_limit = h.swiglu_limit;
  c.rope.theta = h.rope_theta;
  c.rope.factor = h.rope_scaling_factor;
  c.rope.original_context = h.initial_context_length;
  // The file's seq_len sizes the predecessor's buffers; it does not bound the model.
  alternate_layers(c);
  validate(r, c);
  r.finish();
  return c;
}

}  // namespace trivium::moe
