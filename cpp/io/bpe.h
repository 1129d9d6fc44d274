// Byte-pair encoding of one piece of text over a vocabulary of byte strings (Sennrich et al. 2016), in
// O(n log n) for a piece of n bytes.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace trivium::io {

inline constexpr int32_t kMaxVocab = 1 << 20;  // ids are below this

// Byte strings by id and ids by byte string. Ids may have holes.
class Vocabulary {
 public:
  // `name` is the file, for messages.
  explicit Vocabulary(std::string name);

  // ModelFormatError: id out of range or taken, empty or repeated bytes.
  void add(int64_t id, std::string_view bytes);
  int32_t find(std::string_view bytes) const;  // -1: none
  bool has(int32_t id) const {
    return id >= 0 && id < static_cast<int32_t>(spans_.size()) && spans_[static_cast<size_t>(id)].length != 0;
  }
  std::string_view bytes(int32_t id) const;                             // empty: no such id
  int32_t size() const { return static_cast<int32_t>(spans_.size()); }  // largest id + 1
  int32_t count() const { return count_; }                              // ids that have a token
  size_t longest() const { return longest_; }                           // bytes

 private:
  struct Span {
    uint32_t begin = 0, length = 0;
  };
  void grow_table();
  size_t slot_of(std::string_view bytes) const;

  std::string name_, arena_;
  std::vector<Span> spans_;     // by id; length 0: hole
  std::vector<int32_t> table_;  // open addressing, id + 1, 0: free
  int32_t count_ = 0;
  size_t longest_ = 0;
  uint64_t seed_;
};

// `left` followed by `right` becomes `merged`; earlier merges go first.
struct Merge {
  int32_t left, right, merged;
};

class Bpe {
 public:
  // Without `merges`, ids are ranks (tiktoken): any two parts whose joined bytes are a token merge, lowest id
  // first. Every single byte must be a token. With `whole_pieces` a piece that is a token is taken as it is.
  // ModelFormatError: a byte without token, a repeated merge.
  Bpe(const Vocabulary& vocabulary, std::optional<std::span<const Merge>> merges, bool whole_pieces,
      const std::string& name);

  // Working memory of encode, to be reused from piece to piece.
  struct Scratch {
    struct Part {
      int32_t id;
      uint32_t previous, next;  // positions; kNone at the ends
      uint32_t rank;            // of merging with `next`, kNone: cannot
      int32_t merged;           // the token that merge makes
    };
    std::vector<Part> parts;
    std::vector<uint64_t> heap;  // rank << 32 | position, smallest first
  };
  // Appends the ids of `piece` (not empty, below 4 GB).
  void encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  struct Entry {
    uint64_t pair = 0;  // left << 32 | right
    uint32_t rank = 0;
    int32_t merged = -1;  // -1: free
  };
  const Entry* find_merge(int32_t left, int32_t right) const;
  size_t first_slot(uint64_t pair) const;
  void add_merges(std::span<const Merge> merges, const std::string& name);
  void update_rank(std::string_view piece, Scratch& scratch, uint32_t position) const;

  const Vocabulary* vocabulary_;
  bool whole_pieces_, ids_are_ranks_;
  std::array<int32_t, 256> byte_ids_{};
  std::vector<Entry> table_;  // open addressing
  uint64_t seed_;
};

}  // namespace trivium::io
