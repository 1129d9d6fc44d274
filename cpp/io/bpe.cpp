#include "io/bpe.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <random>

#include "core/error.h"

namespace trivium::io {

namespace {

constexpr uint32_t kNone = UINT32_MAX;

// Vocabularies come from untrusted files: a seed of this process keeps them from choosing colliding keys.
uint64_t process_seed() {
  static const uint64_t seed = (uint64_t{std::random_device{}()} << 32 | std::random_device{}()) | 1;
  return seed;
}

__extension__ using uint128 = unsigned __int128;

uint64_t mix(uint64_t a, uint64_t b) {
  const auto product = static_cast<uint128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t hash_bytes(std::string_view bytes, uint64_t seed) {
  uint64_t hash = seed ^ bytes.size();
  for (; bytes.size() >= 8; bytes.remove_prefix(8)) {
    uint64_t word;
    std::memcpy(&word, bytes.data(), 8);
    hash = mix(hash ^ word, seed + 0x9E3779B97F4A7C15ull);
  }
  uint64_t tail = 0;
  std::memcpy(&tail, bytes.data(), bytes.size());
  return mix(hash ^ tail, seed ^ 0xBF58476D1CE4E5B9ull);
}

}  // namespace

Vocabulary::Vocabulary(std::string name) : name_(std::move(name)), table_(1 << 10), seed_(process_seed()) {}

std::string_view Vocabulary::bytes(int32_t id) const {
  if (!has(id)) return {};
  const Span span = spans_[static_cast<size_t>(id)];
  return std::string_view(arena_).substr(span.begin, span.length);
}

size_t Vocabulary::slot_of(std::string_view key) const {  // of the key, or the free slot where it belongs
  size_t slot = hash_bytes(key, seed_) & (table_.size() - 1);
  while (table_[slot] != 0 && bytes(table_[slot] - 1) != key) slot = (slot + 1) & (table_.size() - 1);
  return slot;
}

int32_t Vocabulary::find(std::string_view key) const { return table_[slot_of(key)] - 1; }

void Vocabulary::add(int64_t id, std::string_view key) {
  if (id < 0 || id >= kMaxVocab) {
    throw ModelFormatError(
        concat(name_, ": token \"", printable(key), "\" has id ", id, ", expected 0 to ", kMaxVocab - 1));
  }
  const auto index = static_cast<size_t>(id);
  if (key.empty()) throw ModelFormatError(concat(name_, ": token ", id, " is empty"));
  if (has(static_cast<int32_t>(id))) {
    throw ModelFormatError(concat(name_, ": id ", id, " is given to both \"",
                                  printable(bytes(static_cast<int32_t>(id))), "\" and \"", printable(key),
                                  "\""));
  }
  if (const int32_t other = find(key); other >= 0) {
    throw ModelFormatError(
        concat(name_, ": token \"", printable(key), "\" has two ids, ", other, " and ", id));
  }
  if (arena_.size() + key.size() > UINT32_MAX)
    throw ModelFormatError(name_ + ": the vocabulary exceeds 4 GB");
  if (index >= spans_.size()) spans_.resize(index + 1);
  spans_[index] = {static_cast<uint32_t>(arena_.size()), static_cast<uint32_t>(key.size())};
  arena_ += key;
  longest_ = std::max(longest_, key.size());
  if (static_cast<size_t>(++count_) * 2 > table_.size()) grow_table();
  table_[slot_of(key)] = static_cast<int32_t>(id) + 1;
}

void Vocabulary::grow_table() {
  std::vector<int32_t> old(table_.size() * 2);
  old.swap(table_);
  for (const int32_t entry : old) {
    if (entry != 0) table_[slot_of(bytes(entry - 1))] = entry;
  }
}

Bpe::Bpe(const Vocabulary& vocabulary, std::optional<std::span<const Merge>> merges, bool whole_pieces,
         const std::string& name)
    : vocabulary_(&vocabulary), whole_pieces_(whole_pieces), ids_are_ranks_(!merges), seed_(process_seed()) {
  for (size_t b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(static_cast<unsigned char>(b));
    byte_ids_[b] = vocabulary.find({&byte, 1});
    if (byte_ids_[b] < 0) {
      throw ModelFormatError(concat(name, ": no token for the single byte \"", printable({&byte, 1}),
                                    "\"; a byte-level vocabulary has all 256"));
    }
  }
  if (merges) add_merges(*merges, name);
}

void Bpe::add_merges(std::span<const Merge> merges, const std::string& name) {
  size_t slots = 16;
  while (slots < merges.size() * 2) slots *= 2;
  table_.resize(slots);
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    const uint64_t pair = static_cast<uint64_t>(merge.left) << 32 | static_cast<uint32_t>(merge.right);
    size_t slot = first_slot(pair);
    for (; table_[slot].merged >= 0; slot = (slot + 1) & (table_.size() - 1)) {
      if (table_[slot].pair == pair) {
        throw ModelFormatError(concat(name, ": merge ", rank, " repeats merge ", table_[slot].rank, " (\"",
                                      printable(vocabulary_->bytes(merge.left)), "\" \"",
                                      printable(vocabulary_->bytes(merge.right)), "\")"));
      }
    }
    table_[slot] = {pair, static_cast<uint32_t>(rank), merge.merged};
  }
}

size_t Bpe::first_slot(uint64_t pair) const {
  return mix(pair ^ seed_, seed_ + 0x9E3779B97F4A7C15ull) & (table_.size() - 1);
}

const Bpe::Entry* Bpe::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  for (size_t slot = first_slot(pair); table_[slot].merged >= 0; slot = (slot + 1) & (table_.size() - 1)) {
    if (table_[slot].pair == pair) return &table_[slot];
  }
  return nullptr;
}

void Bpe::update_rank(std::string_view piece, Scratch& scratch, uint32_t position) const {
  Scratch::Part& part = scratch.parts[position];
  part.rank = kNone;
  if (part.next == kNone) return;
  if (ids_are_ranks_) {
    const size_t end = std::min<size_t>(scratch.parts[part.next].next, piece.size());
    if (end - position > vocabulary_->longest()) return;
    const int32_t id = vocabulary_->find(piece.substr(position, end - position));
    if (id < 0) return;
    part.rank = static_cast<uint32_t>(id);
    part.merged = id;
  } else if (const Entry* entry = find_merge(part.id, scratch.parts[part.next].id)) {
    part.rank = entry->rank;
    part.merged = entry->merged;
  }
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const {
  if (piece.size() == 1) return out.push_back(byte_ids_[static_cast<unsigned char>(piece[0])]);
  if (whole_pieces_) {
    if (const int32_t id = vocabulary_->find(piece); id >= 0) return out.push_back(id);
  }
  const auto size = static_cast<uint32_t>(piece.size());
  auto& parts = scratch.parts;
  auto& heap = scratch.heap;
  parts.resize(size);
  heap.clear();
  for (uint32_t i = 0; i < size; ++i) {
    parts[i] = {byte_ids_[static_cast<unsigned char>(piece[i])], i - 1, i + 1 < size ? i + 1 : kNone, kNone,
                -1};
  }
  const auto push = [&](uint32_t position) {
    if (parts[position].rank == kNone) return false;
    heap.push_back(uint64_t{parts[position].rank} << 32 | position);
    return true;
  };
  for (uint32_t i = 0; i < size; ++i) {
    update_rank(piece, scratch, i);
    push(i);
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const uint64_t top = heap.back();
    heap.pop_back();
    const auto position = static_cast<uint32_t>(top);
    Scratch::Part& part = parts[position];
    if (part.rank != static_cast<uint32_t>(top >> 32)) continue;  // a neighbour has changed since
    Scratch::Part& eaten = parts[part.next];
    part.id = part.merged;
    eaten.rank = kNone;
    part.next = eaten.next;
    if (part.next != kNone) parts[part.next].previous = position;
    for (const uint32_t changed : {part.previous, position}) {
      if (changed == kNone) continue;
      update_rank(piece, scratch, changed);
      if (push(changed)) std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
  }
  for (uint32_t i = 0; i != kNone; i = parts[i].next) out.push_back(parts[i].id);
}

}  // namespace trivium::io
