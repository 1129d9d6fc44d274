// A model without weights: the logits of a position are a hash of all tokens up to it, so any mistake of the
// scheduler (a lost token, a stale state, a wrong position) changes the output. Its states count pages like a
// real cache and refuse what a real model would refuse.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/model.h"

namespace trivium::testing {

struct FakeOptions {
  int32_t vocab_size = 97;
  int64_t max_positions = 4096;
  int64_t page_size = 4;  // positions
  int64_t page_bytes = 1024;
  bool can_copy = true;
  std::vector<int32_t> stop_ids = {1, 2};
  std::function<void(int64_t step)> on_forward;  // may throw
};

class FakeStates : public SequenceStates {
 public:
  FakeStates(const FakeOptions& fake, const StateOptions& options);
  bool reserve(int slot, int64_t length) override;
  void release(int slot) override;
  bool copy(int from, int to) override;
  int64_t bytes() const override { return pages_ * fake_.page_bytes; }
  int num_slots() const override { return options_.num_slots; }
  bool can_ever_hold(int64_t length) const override { return pages_for(length) <= pages_; }
  void touch() override {}

  struct Slot {
    std::vector<uint64_t> hashes;  // of each prefix processed so far
    int64_t reserved_pages = 0;
    bool poisoned = false;  // after a cancelled step, until released
  };

 private:
  friend class FakeModel;
  int64_t pages_for(int64_t length) const { return (length + fake_.page_size - 1) / fake_.page_size; }

  FakeOptions fake_;
  StateOptions options_;
  int64_t pages_ = 0, free_pages_ = 0;
  std::vector<Slot> slots_;
};

class FakeModel : public Model {
 public:
  explicit FakeModel(FakeOptions options = {}, std::shared_ptr<const io::Tokenizer> tokenizer = nullptr);
  const ModelInfo& info() const override { return info_; }
  Dtype default_kv_dtype() const override { return Dtype::f32; }
  int64_t state_bytes(const StateOptions& options) const override;
  std::unique_ptr<SequenceStates> make_states(const StateOptions& options) const override;
  Tensor forward(const Batch& batch, SequenceStates& states, const CancelToken* cancel) override;

  int64_t forwards = 0;
  int64_t tokens_processed = 0;
  size_t largest_batch = 0;
  std::vector<std::vector<int64_t>> segment_counts;  // of each forward

 private:
  FakeOptions fake_;
  ModelInfo info_;
};

// One token per byte, id = 3 + byte; ids 0 to 2 are specials: <pad>, <|endoftext|>, <|return|>.
std::shared_ptr<const io::Tokenizer> byte_tokenizer();

}  // namespace trivium::testing
