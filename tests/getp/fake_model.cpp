#include "getp/fake_model.h"

#include <stdexcept>

#include "io/tokenizer.h"

namespace trivium::testing {

namespace {

uint64_t mix(uint64_t h, uint64_t x) {
  h ^= x + 0x9e3779b97f4a7c15ull + (h << 6) + (h >> 2);
  h ^= h >> 33;
  h *= 0xff51afd7ed558ccdull;
  h ^= h >> 29;
  return h;
}

void require(bool condition, const std::string& message) {
  if (!condition) throw std::logic_error("fake model: " + message);
}

class ByteTokenizer : public io::Tokenizer {
 public:
  ByteTokenizer() {
    for (int b = 0; b < 256; ++b) bytes_.push_back(std::string(1, static_cast<char>(b)));
  }
  std::vector<int32_t> encode(std::string_view bytes, const io::EncodeOptions& options) const override {
    if (options.strict_utf8 && io::sanitize_utf8(bytes) != bytes)
      throw InvalidArgument("invalid UTF-8 at byte 0");
    std::vector<int32_t> ids;
    for (const char c : bytes) ids.push_back(3 + static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(std::span<const int32_t> ids, bool with_specials) const override {
    std::string out;
    for (const int32_t id : ids)
      if (with_specials || !is_special(id)) out += token_bytes(id);
    return out;
  }
  std::string_view token_bytes(int32_t id) const override {
    if (id == 1) return "<|endoftext|>";
    if (id == 2) return "<|return|>";
    return id >= 3 && id < 259 ? std::string_view(bytes_[static_cast<size_t>(id - 3)]) : std::string_view();
  }
  bool is_special(int32_t id) const override { return id >= 0 && id < 3; }
  std::optional<int32_t> special_id(std::string_view name) const override {
    if (name == "<|endoftext|>") return 1;
    if (name == "<|return|>") return 2;
    return std::nullopt;
  }
  int32_t vocab_size() const override { return 259; }

 private:
  std::vector<std::string> bytes_;
};

}  // namespace

std::shared_ptr<const io::Tokenizer> byte_tokenizer() { return std::make_shared<ByteTokenizer>(); }

FakeStates::FakeStates(const FakeOptions& fake, const StateOptions& options)
    : fake_(fake), options_(options) {
  pages_ = options.num_slots * pages_for(options.max_length);
  if (options.budget_bytes > 0) pages_ = std::min(pages_, options.budget_bytes / fake.page_bytes);
  free_pages_ = pages_;
  slots_.resize(static_cast<size_t>(options.num_slots));
}

bool FakeStates::reserve(int slot, int64_t length) {
  Slot& s = slots_.at(static_cast<size_t>(slot));
  require(length <= options_.max_length, "reserve past max_length");
  const int64_t more = pages_for(length) - s.reserved_pages;
  if (more <= 0) return true;
  if (more > free_pages_) return false;
  free_pages_ -= more;
  s.reserved_pages += more;
  return true;
}

void FakeStates::release(int slot) {
  Slot& s = slots_.at(static_cast<size_t>(slot));
  free_pages_ += s.reserved_pages;
  s = {};
}

bool FakeStates::copy(int from, int to) {
  if (!fake_.can_copy) return false;
  const Slot& source = slots_.at(static_cast<size_t>(from));
  require(slots_.at(static_cast<size_t>(to)).hashes.empty(), "copy into a slot in use");
  if (!reserve(to, static_cast<int64_t>(source.hashes.size()))) return false;
  slots_[static_cast<size_t>(to)].hashes = source.hashes;
  return true;
}

FakeModel::FakeModel(FakeOptions options, std::shared_ptr<const io::Tokenizer> tokenizer)
    : fake_(std::move(options)) {
  info_.model_type = "fake";
  info_.path = "fake-model";
  info_.vocab_size = fake_.vocab_size;
  info_.max_positions = fake_.max_positions;
  info_.stop_ids = fake_.stop_ids;
  info_.fingerprint = 0x1234;
  info_.config_json = "{}";
  tokenizer_ = std::move(tokenizer);
}

int64_t FakeModel::state_bytes(const StateOptions& options) const {
  return FakeStates(fake_, options).bytes();
}

std::unique_ptr<SequenceStates> FakeModel::make_states(const StateOptions& options) const {
  return std::make_unique<FakeStates>(fake_, options);
}

Tensor FakeModel::forward(const Batch& batch, SequenceStates& base, const CancelToken* cancel) {
  auto& states = dynamic_cast<FakeStates&>(base);
  largest_batch = std::max(largest_batch, batch.tokens.size());
  require(static_cast<int64_t>(batch.tokens.size()) <= states.options_.max_step_tokens, "step too large");
  std::vector<bool> seen(states.slots_.size());
  std::vector<uint64_t> rows;
  size_t at = 0;
  segment_counts.emplace_back();
  for (const Segment& segment : batch.segments) {
    auto& slot = states.slots_.at(static_cast<size_t>(segment.slot));
    require(!seen[static_cast<size_t>(segment.slot)], "two segments for one slot");
    seen[static_cast<size_t>(segment.slot)] = true;
    require(!slot.poisoned, "slot used after a cancelled step");
    require(segment.count >= 1 && segment.start == static_cast<int64_t>(slot.hashes.size()), "wrong start");
    require(states.pages_for(segment.start + segment.count) <= slot.reserved_pages, "not reserved");
    segment_counts.back().push_back(segment.count);
    for (int64_t i = 0; i < segment.count; ++i) {
      const int32_t token = batch.tokens[at++];
      require(token >= 0 && token < fake_.vocab_size, "token out of range");
      slot.hashes.push_back(mix(slot.hashes.empty() ? 7 : slot.hashes.back(), static_cast<uint64_t>(token)));
      if (segment.wants(i))
        rows.push_back(slot.hashes.back());
    }
  }
  require(at == batch.tokens.size(), "tokens left over");
  ++forwards;
  tokens_processed += static_cast<int64_t>(batch.tokens.size());
  try {
    if (fake_.on_forward) fake_.on_forward(forwards);
    if (cancel) cancel->check();
  } catch (...) {
    for (const Segment& segment : batch.segments)
      states.slots_[static_cast<size_t>(segment.slot)].poisoned = true;
    throw;
  }
  Tensor logits = Tensor::empty({static_cast<int64_t>(rows.size()), fake_.vocab_size}, Dtype::f32);
  float* out = logits.data_as<float>();
  for (const uint64_t row : rows)
    for (int32_t v = 0; v < fake_.vocab_size; ++v)
      *out++ = static_cast<float>(mix(row, static_cast<uint64_t>(v)) >> 40) * 0x1p-24f * 8;
  return logits;
}

}  // namespace trivium::testing
