#include "models/upload.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "core/registry.h"
#include "io/mmap.h"

namespace trivium {
namespace {

constexpr int64_t kBufferBytes = 32 << 20;  // several milliseconds of a PCIe 5 link
constexpr int64_t kPieceBytes = 1 << 20;    // copied, and read from the file, by one task

}  // namespace

Uploader::Uploader(Device device, const CancelToken* cancel)
    : device_(device), cancel_(cancel), stream_(device) {
  for (Buffer& buffer : buffers_) {
    buffer.memory = Tensor::pinned({kBufferBytes}, Dtype::u8, device);
    buffer.sent = std::make_unique<Event>(device);
  }
}

Uploader::~Uploader() {
  try {
    finish();
  } catch (const Error&) {  // a caller that wanted to know called finish()
  }
}

Tensor Uploader::upload(const Tensor& host) {
  const Tensor out = Tensor::empty(host.shape(), host.dtype(), device_);
  const auto* from = static_cast<const char*>(host.data());
  auto* to = static_cast<char*>(out.data());
  for (int64_t begin = 0; begin < host.nbytes(); begin += kBufferBytes) {
    if (cancel_) cancel_->check();
    const int64_t bytes = std::min(kBufferBytes, host.nbytes() - begin);
    Buffer& buffer = buffers_[next_++ % buffers_.size()];
    if (buffer.busy) buffer.sent->synchronize();
    auto* staging = static_cast<char*>(buffer.memory.data());
    parallel_for((bytes + kPieceBytes - 1) / kPieceBytes, [&](int64_t piece, int) {
      const int64_t at = piece * kPieceBytes, count = std::min(kPieceBytes, bytes - at);
      io::guarded([&] { std::memcpy(staging + at, from + begin + at, static_cast<size_t>(count)); });
    });
    const Status status = runtime(device_).copy(device_.index, stream_.handle(), to + begin, staging, bytes);
    if (status != Status::ok) throw_status(device_.kind, status);
    buffer.sent->record(stream_);
    buffer.busy = true;
  }
  return out;
}

void Uploader::finish() { stream_.synchronize(); }

Tensor stack_rows(std::initializer_list<Tensor> parts) {
  const Tensor& first = *parts.begin();
  int64_t rows = 0;
  for (const Tensor& part : parts) {
    TRIVIUM_CHECK(part.dtype() == first.dtype() && part.numel() * first.dim(0) == first.numel() * part.dim(0),
                  "stack_rows: ", part.shape(), " ", part.dtype(), " under ", first.shape(), " ",
                  first.dtype());
    rows += part.dim(0);
  }
  const Tensor out =
      Tensor::empty(first.rank() == 1 ? Shape{rows} : Shape{rows, first.dim(1)}, first.dtype());
  char* to = static_cast<char*>(out.data());
  for (const Tensor& part : parts) {
    io::guarded([&] { std::memcpy(to, part.data(), static_cast<size_t>(part.nbytes())); });
    to += part.nbytes();
  }
  return out;
}

}  // namespace trivium
