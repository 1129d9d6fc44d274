// Shared memory of a block: bounded arrays, and for each byte who accessed it last. Two accesses of different
// threads, one of them a write, need a sync_block or, within a warp, a sync_warp between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "emu/memory.h"
#include "emu/simt.h"

namespace trivium::emu {

enum class Access { read, write, atomic };

// Of an access: a call and its place, or the code address of a plain load or store.
struct Where {
  const char* what = nullptr;
  const Place* place = nullptr;
  const void* code = nullptr;
};
std::string describe(const Where& where);  // " in load_vec at gemm.cuh:61"

// Who accesses, and when, in one word: sync_block calls (of all blocks that an OS thread runs) in the upper
// 32 bits, the warp's sync_warp calls since then in 18, flags of shared.cpp in 4, the thread in 10.
struct Stamp {
  static constexpr int kEpochShift = 32, kWarpEpochShift = 14;
  static constexpr uint64_t kThreadMask = 1023;
  uint64_t bits = 0;

  static Stamp of(uint64_t thread, uint64_t block_epoch, uint64_t warp_epoch) {
    return {block_epoch << kEpochShift | (warp_epoch & 0x3ffff) << kWarpEpochShift | thread};
  }
  uint64_t thread() const { return bits & kThreadMask; }
  uint64_t warp_epoch() const { return bits >> kWarpEpochShift & 0x3ffff; }
  uint64_t block_start() const {
    return bits >> kEpochShift << kEpochShift;
  }  // below it: before the last sync_block
};

// Whether the compiler reports plain loads and stores; only then is it known who wrote what.
#ifdef TRIVIUM_EMU_WATCH
inline constexpr bool kWatch = true;
#else
inline constexpr bool kWatch = false;
#endif

class SharedMemory {
 public:
  void reset(const Model& model, int64_t dynamic_bytes, uint64_t first_epoch);
  void* array(const SharedSlot& slot, size_t bytes, bool dynamic);
  bool covers(const void* p) const {  // arrays, guards and what is not handed out
    return reinterpret_cast<uintptr_t>(p) - base() < memory_.size() * sizeof(uint64_t);
  }
  Range array_at(const void* p) const;  // empty in a guard
  void check_guards() const;            // rejects

  // Rejects an access out of bounds, of bytes that nobody wrote, or without a sync after that of another
  // thread.
  void access(const void* p, size_t bytes, Access access, Stamp now, const Where& where) {
    if (!kWatch || !plain_case(reinterpret_cast<uintptr_t>(p) - base(), bytes, access, now))
      checked_access(p, bytes, access, now, where);
  }
  // An async copy of the thread will write them; and does so.
  void begin_copy(const void* p, size_t bytes, Stamp now, const Where& where);
  void end_copy(const void* p, size_t bytes, Stamp now);

 private:
  struct Array {
    const SharedSlot* slot;
    size_t offset, bytes;
  };
  struct Cell {  // stamps of the last accesses
    uint64_t write = 0, read = 0;
  };
  // Of each 4 bytes: outside of arrays, with one history, or with one for each byte.
  enum class Word : unsigned char { outside, whole, split };
  static constexpr uint64_t kPending = 1 << 13;  // flag: an async copy is under way

  uintptr_t base() const { return reinterpret_cast<uintptr_t>(memory_.data()); }

  // Whole words, last touched before the last sync_block or by the same thread: what nearly all accesses are.
  bool plain_case(size_t offset, size_t bytes, Access access, Stamp now) {
    if ((offset | bytes) % 4 || access == Access::atomic) return false;
    const uint64_t start = now.block_start(), first = first_epoch_ << Stamp::kEpochShift;
    for (size_t i = offset; i < offset + bytes; i += 4) {
      Cell& cell = cells_[i];
      if (words_[i / 4] != Word::whole || (cell.write & kPending) ||
          (cell.write >= start && cell.write != now.bits) || (cell.read >= start && cell.read != now.bits))
        return false;
      if (access == Access::read) {
        if (cell.write < first) return false;
        cell.read = now.bits;
      } else {
        cell = {now.bits, 0};
      }
    }
    return true;
  }
  void checked_access(const void* p, size_t bytes, Access access, Stamp now, const Where& where);
  bool visit(Cell& cell, size_t offset, Access access, Stamp now, const Where& where);
  bool ordered(uint64_t cell, Stamp now) const;
  bool same_warp(uint64_t a, uint64_t b) const { return ((a ^ b) & Stamp::kThreadMask) >> warp_shift_ == 0; }
  void split(size_t word);
  void set_written(const void* p, size_t bytes, uint64_t stamp);
  std::string name_of(size_t offset) const;
  [[noreturn]] void reject_race(size_t offset, Access access, uint64_t other, bool other_wrote, Stamp now,
                                const Where& where) const;

  const Model* model_ = nullptr;
  int warp_shift_ = 5;  // log2 of the warp size
  size_t static_bytes_ = 0, dynamic_bytes_ = 0, used_ = 0;
  uint64_t first_epoch_ = 0;  // of this block
  std::vector<Array> arrays_;
  std::vector<uint64_t> memory_;
  std::vector<Word> words_;
  std::vector<Cell> cells_;  // of each byte; the first of a whole word counts for all four
};

}  // namespace trivium::emu
