#include "io/flat_bin.h"

#include <cmath>
#include <cstring>

namespace trivium::io {
namespace {

static_assert(sizeof(FlatBinHeader) == kFlatBinHeaderBytes);

constexpr int32_t kMaxExtent = 1 << 24;
constexpr int32_t kMaxLayers = 4096;  // each layer makes 15 tensors

void check_range(const std::string& file, const char* field, double value, double low, double high) {
  // Written so that NaN fails.
  if (!(value >= low && value <= high))
    throw ModelFormatError(concat(file, ": header field ", field, " is ", value, ", expected ", low, " to ",
                                  high, "; this is not a model.bin or it was exported wrongly"));
}

void check_header(const FlatBinHeader& h, const std::string& file) {
  const std::pair<const char*, int32_t> extents[] = {
      {"vocab_size", h.vocab_size},
      {"hidden_dim", h.hidden_size},
      {"n_experts", h.num_experts},
      {"experts_per_token", h.experts_per_token},
      {"intermediate_dim", h.intermediate_size},
      {"head_dim", h.head_dim},
      {"n_attn_heads", h.num_heads},
      {"n_kv_heads", h.num_kv_heads},
      {"seq_len", h.seq_len},
      {"initial_context_length", h.initial_context_length},
  };
  for (const auto& [field, value] : extents) check_range(file, field, value, 1, kMaxExtent);
  check_range(file, "n_layers", h.num_layers, 1, kMaxLayers);
  check_range(file, "experts_per_token", h.experts_per_token, 1, h.num_experts);
  check_range(file, "rope_theta", h.rope_theta, 1, 1e9);
  check_range(file, "rope_scaling_factor", h.rope_scaling_factor, 1, 1e6);
  check_range(file, "sliding_window", h.sliding_window, 0, kMaxExtent);  // 0: no window
  check_range(file, "swiglu_limit", h.swiglu_limit, 0, 1e6);
  if (h.num_heads % h.num_kv_heads != 0)
    throw ModelFormatError(concat(file, ": header field n_attn_heads is ", h.num_heads,
                                  ", expected a multiple of n_kv_heads, ", h.num_kv_heads));
  if (h.head_dim % 2 != 0)
    throw ModelFormatError(
        concat(file, ": header field head_dim is ", h.head_dim, ", expected an even number"));
}

// One kind of weight; its layers lie one after the other.
struct Category {
  const char* name;  // per layer: what follows "block.N."
  bool per_layer;
  Shape shape;  // of one layer
};

std::vector<Category> categories(const FlatBinHeader& h) {
  const int64_t V = h.vocab_size, H = h.hidden_size, E = h.num_experts, I = h.intermediate_size;
  const int64_t D = h.head_dim, Nq = h.num_heads, Nk = h.num_kv_heads;
  const int64_t qkv = (Nq + 2 * Nk) * D;
  return {
      {"embedding.weight", false, {V, H}},
      {"unembedding.weight", false, {V, H}},
      {"attn.norm.scale", true, {H}},
      {"mlp.norm.scale", true, {H}},
      {"norm.scale", false, {H}},
      {"attn.qkv.weight", true, {qkv, H}},
      {"attn.qkv.bias", true, {qkv}},
      {"attn.out.weight", true, {H, Nq * D}},
      {"attn.out.bias", true, {H}},
      {"attn.sinks", true, {Nq}},
      {"mlp.gate.weight", true, {E, H}},
      {"mlp.gate.bias", true, {E}},
      {"mlp.mlp1_weight", true, {E, 2 * I, H}},
      {"mlp.mlp1_bias", true, {E, 2 * I}},
      {"mlp.mlp2_weight", true, {E, H, I}},
      {"mlp.mlp2_bias", true, {E, H}},
  };
}

// Elements of all weights; nothing when they are more than any file can hold.
bool count_parameters(const std::vector<Category>& all, int64_t layers, int64_t& total) {
  total = 0;
  for (const Category& category : all) {
    int64_t elements = category.per_layer ? layers : 1;
    for (const int64_t extent : category.shape)
      if (__builtin_mul_overflow(elements, extent, &elements)) return false;
    if (__builtin_add_overflow(total, elements, &total)) return false;
  }
  return total <= INT64_MAX / 8;
}

}  // namespace

FlatBinHeader parse_flat_bin_header(std::string_view start, const std::string& file_name) {
  if (start.size() < static_cast<size_t>(kFlatBinHeaderBytes))
    throw ModelFormatError(concat(file_name, ": has ", start.size(), " bytes, a model.bin at least ",
                                  kFlatBinHeaderBytes, ". The download is probably incomplete."));
  FlatBinHeader header;
  std::memcpy(&header, start.data(), sizeof header);  // little-endian, as every machine we build for
  check_header(header, file_name);
  return header;
}

std::vector<TensorEntry> flat_bin_tensors(const FlatBinHeader& header, int64_t file_size,
                                          const std::string& file_name) {
  const std::vector<Category> all = categories(header);
  int64_t parameters = 0;
  if (!count_parameters(all, header.num_layers, parameters))
    throw ModelFormatError(concat(file_name, ": the header asks for more weights than any file can hold"));
  const int64_t as_f32 = kFlatBinHeaderBytes + 4 * parameters;
  const int64_t as_bf16 = kFlatBinHeaderBytes + 2 * parameters;
  if (file_size != as_f32 && file_size != as_bf16)
    throw ModelFormatError(concat(file_name, ": has ", file_size, " bytes, but its header asks for ", as_f32,
                                  " (float32) or ", as_bf16, " (bfloat16)",
                                  file_size < as_f32 ? ". The download is probably incomplete." : ""));
  const bool is_f32 = file_size == as_f32;
  std::vector<TensorEntry> tensors;
  int64_t offset = kFlatBinHeaderBytes;
  for (const Category& category : all) {
    const int64_t bytes = category.shape.numel() * (is_f32 ? 4 : 2);
    const int layers = category.per_layer ? header.num_layers : 1;
    for (int layer = 0; layer < layers; ++layer, offset += bytes) {
      std::string name = category.per_layer ? concat("block.", layer, ".", category.name) : category.name;
      tensors.push_back(
          {std::move(name), is_f32 ? "F32" : "BF16", category.shape, offset, offset + bytes, 0});
    }
  }
  return tensors;
}

}  // namespace trivium::io
