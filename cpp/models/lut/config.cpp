#include "models/lut/config.h"

#include <cmath>

#include "models/config_reader.h"

namespace trivium::lut {

LutConfig parse_config(const io::JsonValue& json, const std::string& name) {
  ConfigReader r(json, name);
  LutConfig c;
  const auto size = [&](const char* key, int64_t low, int64_t high, std::optional<int64_t> fallback = {}) {
    const int64_t value = r.integer({key}, fallback);
    return r.in_range(key, value, low, high) ? value : low;  // what is computed from it must not overflow
  };
  c.vocab_size = size("vocab_size", 1, 1 << 24);
  c.embedding_dim = size("embedding_dim", 2, 1 << 20);
  c.context_size = size("context_size", 2, 1 << 20);
  c.positional_dim = size("positional_dim", 0, 28);
  c.num_layers = size("num_layers", 0, 4096);
  c.num_heads = size("num_heads", 1, 1 << 16);
  c.num_tables = size("n_detectors", 1, 1 << 16);
  c.num_anchors = size("n_anchors_per_detector", 1, 30);
  c.attention_anchors = size("n_anchors_per_detector_attention", 1, 15, c.num_anchors);
  c.max_positions = size("max_position_embeddings", 1, 1 << 30, 131072);
  c.no_ffn = r.boolean("no_ffn", false);
  c.unified_pe = r.boolean("unified_pe", false);
  c.use_batch_norm = r.boolean("use_batch_norm", false);
  c.cmp_eps = r.number({"cmp_eps"}, 0);
  r.require(std::isfinite(c.cmp_eps) && c.cmp_eps >= 0,
            concat("\"cmp_eps\" is ", c.cmp_eps, ", expected a number of at least 0"));
  r.require(2 * c.attention_anchors + c.positional_dim <= 30,
            concat("attention addresses have ", 2 * c.attention_anchors + c.positional_dim,
                   " bits, expected at most 30"));
  if (const io::JsonValue* eos = json.find("eos_token_id")) {
    const bool good = eos->is_integer() && eos->integer() >= 0 && eos->integer() < c.vocab_size;
    r.require(good, "\"eos_token_id\" is not a token id");
    if (good) c.eos_ids.push_back(static_cast<int32_t>(eos->integer()));
  }
  r.finish();
  return c;
}

}  // namespace trivium::lut
