// What a backward pass is given of its forward: every size and index a kernel trusts is checked here.
#include <algorithm>

#include "ops/lut.h"
#include "ops/lut_checks.h"

namespace trivium::lut {

void check_saved(const Layer& layer, const Saved& s) {
  const int64_t tables = layer.num_tables(), longest = layer.options().sequence_length;
  TRIVIUM_CHECK(s.batch >= 0 && 1 <= s.length && s.length <= longest, "lut backward: saved are ", s.batch,
                " sequences of ", s.length, ", expected a length of 1 to ", longest);
  check_addresses(layer, s);
  const auto matches = [&](const Tensor& t, Dtype dtype, int64_t count) {
    TRIVIUM_CHECK(
        t.dtype() == dtype && t.numel() == count && t.is_contiguous() && t.device() == layer.device(),
        "lut backward: a saved tensor is ", t.shape(), " ", t.dtype(), " on ", t.device(),
        ", expected contiguous ", dtype, " of ", count, " elements on ", layer.device());
  };
  const int64_t rows = s.batch * s.length;
  if (layer.is_product()) {
    matches(s.x, Dtype::f32, rows * layer.options().inputs);
    return check_pe(layer, s.pe, "lut backward");
  }
  matches(s.index, Dtype::i32, rows * tables);
  matches(s.min_delta, Dtype::f32, rows * tables);
  matches(s.min_index, Dtype::i32, rows * tables);
  if (layer.options().positional_dim == 0) return;
  matches(s.pe_index, Dtype::i32, (s.length - 1) * tables);
  matches(s.pe_min_delta, Dtype::f32, (s.length - 1) * tables);
  matches(s.pe_min_index, Dtype::i32, (s.length - 1) * tables);
}

AdmittedIndices::AdmittedIndices(const Layer& layer, const Saved& s, Workspace& work) : saved_(s) {
  if (layer.is_product()) return;
  const int64_t tables = layer.num_tables();
  admit({"index", "min_index", s.index, s.min_index, {}, tables, layer.num_anchors()}, saved_.index,
        saved_.min_index, layer.has_unused_pairs() ? layer.anchors().data_as<int32_t>() : nullptr, work);
  if (layer.options().positional_dim > 0)
    admit(
        {"pe_index", "pe_min_index", s.pe_index, s.pe_min_index, {}, tables, layer.options().positional_dim},
        saved_.pe_index, saved_.pe_min_index, nullptr, work);
  if (layer.device() == Device{}) check();
}

void AdmittedIndices::admit(Side side, Tensor& index, Tensor& min_index, const int32_t* anchors,
                            Workspace& work) {
  if (!side.index.numel()) return;
  const bool copies = work.device().kind != DeviceKind::cpu;
  if (copies) {
    index = work.buffer(side.index.shape(), Dtype::i32);
    min_index = work.buffer(side.min_index.shape(), Dtype::i32);
  }
  side.refused = work.buffer({2, kLutAdmitParts}, Dtype::i64);
  const LutAdmitArgs args{.index = side.index.data_as<int32_t>(),
                          .min_index = side.min_index.data_as<int32_t>(),
                          .anchors = anchors,
                          .kept_index = copies ? index.data_as<int32_t>() : nullptr,
                          .kept_min_index = copies ? min_index.data_as<int32_t>() : nullptr,
                          .refused = side.refused.data_as<int64_t>(),
                          .rows = side.index.numel() / side.num_tables,
                          .num_tables = side.num_tables,
                          .num_bits = side.num_bits};
  work.run_first(&Kernels::lut_admit_indices, "lut_admit_indices", args);
  sides_.push_back(std::move(side));
}

void AdmittedIndices::check() const {
  for (const Side& side : sides_) {
    const Tensor host = side.refused.to(Device{});
    for (const bool least : {false, true}) {
      const int64_t* places = host.data_as<int64_t>() + (least ? kLutAdmitParts : 0);
      int64_t first = -1;
      for (int64_t part = 0; part < kLutAdmitParts; ++part)
        if (places[part] >= 0 && (first < 0 || places[part] < first)) first = places[part];
      if (first < 0) continue;
      const int32_t value = (least ? side.min_index : side.index).to(Device{}).data_as<int32_t>()[first];
      const int64_t lowest = least ? -1 : 0,
                    highest = (least ? side.num_bits : int64_t{1} << side.num_bits) - 1;
      throw InvalidArgument(concat("lut backward: saved ", least ? side.min_index_name : side.index_name,
                                   " of row ", first / side.num_tables, ", table ", first % side.num_tables,
                                   " is ", value, ", expected ", lowest, " to ", highest,
                                   lowest <= value && value <= highest ? " and a pair that is used" : ""));
    }
  }
}

}  // namespace trivium::lut
