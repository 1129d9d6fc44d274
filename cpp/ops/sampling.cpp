#include "ops/sampling.h"

#include <algorithm>

#include "core/registry.h"

namespace trivium::ops {
namespace {

SampleParams checked(const SampleRow& row) {
  const SamplingParams& p = row.params;
  TRIVIUM_CHECK(p.temperature >= 0, "sample: temperature is ", p.temperature, ", expected >= 0");
  TRIVIUM_CHECK(!(p.min_p > 1), "sample: min_p is ", p.min_p, ", expected 0 to 1");
  return {p.temperature, p.top_p, p.min_p, p.top_k, p.seed, row.step};
}

}  // namespace

Sampler::Sampler(Device device, int64_t max_rows) : max_rows_(max_rows) {
  const Shape params{max_rows, static_cast<int64_t>(sizeof(SampleParams))};
  host_params_ = Tensor::pinned(params, Dtype::u8, device);
  host_tokens_ = Tensor::pinned({max_rows}, Dtype::i32, device);
  if (!is_gpu(device.kind)) {
    params_ = host_params_;
    tokens_ = host_tokens_;
    return;
  }
  stream_ = std::make_unique<Stream>(device);
  params_ = Tensor::empty(params, Dtype::u8, device);
  tokens_ = Tensor::empty({max_rows}, Dtype::i32, device);
}

void Sampler::enqueue(Stream* on, const Tensor& logits, std::span<const SampleRow> rows) {
  TRIVIUM_CHECK(logits.data() && logits.rank() == 2 && logits.dtype() == Dtype::f32 &&
                    logits.is_contiguous() && logits.dim(1) > 0,
                "sample: logits are ", logits.shape(), " ", logits.dtype(),
                ", expected contiguous float32 [rows, vocab]");
  const Device device = logits.device();
  TRIVIUM_CHECK(device == tokens_.device(), "sample: logits are on ", device, ", the sampler on ",
                tokens_.device());
  const int64_t count = logits.dim(0);
  TRIVIUM_CHECK(static_cast<int64_t>(rows.size()) == count, "sample: ", count, " rows of logits, ",
                rows.size(), " of parameters");
  TRIVIUM_CHECK(count <= max_rows_, "sample: ", count, " rows of logits, at most ", max_rows_);
  auto* list = static_cast<SampleParams*>(host_params_.data());
  std::transform(rows.begin(), rows.end(), list, checked);
  StreamHandle* stream = on ? on->handle() : nullptr;
  const auto copy = [&](const Tensor& to, const Tensor& from, int64_t row_bytes) {
    const Status status =
        runtime(device).copy(device.index, stream, to.data(), from.data(), count * row_bytes);
    if (status != Status::ok) throw_status(device.kind, status);
  };
  if (on) copy(params_, host_params_, sizeof(SampleParams));
  const SampleArgs args{.logits = logits.data_as<float>(),
                        .params = static_cast<const SampleParams*>(params_.data()),
                        .tokens = tokens_.data_as<int32_t>(),
                        .rows = count,
                        .vocab = logits.dim(1)};
  call_kernel(device, &Kernels::sample, "sample", stream, args);
  if (on) copy(host_tokens_, tokens_, sizeof(int32_t));
  count_ = count;
}

std::span<const int32_t> Sampler::tokens() const {
  return {host_tokens_.data_as<int32_t>(), static_cast<size_t>(count_)};
}

std::span<const int32_t> Sampler::sample(const Tensor& logits, std::span<const SampleRow> rows) {
  enqueue(stream_.get(), logits, rows);
  if (stream_) stream_->synchronize();
  return tokens();
}

void sample(const Tensor& logits, std::span<const SampleRow> rows, std::span<int32_t> tokens) {
  Sampler sampler(logits.device(), std::max<int64_t>(static_cast<int64_t>(rows.size()), 1));
  const auto chosen = sampler.sample(logits, rows);
  TRIVIUM_CHECK(tokens.size() == chosen.size(), "sample: ", chosen.size(), " rows of logits, room for ",
                tokens.size(), " tokens");
  std::copy(chosen.begin(), chosen.end(), tokens.begin());
}

}  // namespace trivium::ops
