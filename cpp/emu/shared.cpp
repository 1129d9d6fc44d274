#include "emu/shared.h"

#include <algorithm>

#include "core/error.h"

namespace trivium::emu {
namespace {

constexpr size_t kGuard = 64;
constexpr unsigned char kGuardByte = 0xa7;
constexpr size_t kCapacity = 256 << 10;  // arrays and guards

// Flags of a stamp; kPending is in shared.h.
constexpr uint64_t kMany = 1 << 10;    // several threads read; the one named is the last
constexpr uint64_t kMixed = 1 << 11;   // they belong to several warps
constexpr uint64_t kAtomic = 1 << 12;  // written by an atomic operation

}  // namespace

void SharedMemory::reset(const Model& model, int64_t dynamic_bytes, uint64_t first_epoch) {
  model_ = &model;
  warp_shift_ = __builtin_ctz(static_cast<unsigned>(model.warp_size));
  for (const Array& a : arrays_)
    std::fill_n(words_.begin() + static_cast<std::ptrdiff_t>(a.offset / 4), (a.bytes + 3) / 4, Word::outside);
  arrays_.clear();
  static_bytes_ = used_ = 0;
  dynamic_bytes_ = static_cast<size_t>(dynamic_bytes);
  first_epoch_ = first_epoch;
  if (memory_.empty()) {  // never moves: threads hold pointers
    memory_.resize(kCapacity / sizeof(uint64_t));
    cells_.resize(kCapacity);
    words_.resize(kCapacity / 4);
  }
}

void* SharedMemory::array(const SharedSlot& slot, size_t bytes, bool dynamic) {
  static const SharedSlot kDynamic{"dynamic", "", 0};
  const SharedSlot* key = dynamic ? &kDynamic : &slot;
  auto* memory = reinterpret_cast<unsigned char*>(memory_.data());
  for (const Array& a : arrays_)
    if (a.slot == key) return memory + a.offset;
  if (dynamic)
    bytes = dynamic_bytes_;
  else
    static_bytes_ += bytes;
  if (static_bytes_ > static_cast<size_t>(model_->static_shared))
    reject(concat("shared array ", slot.name, " at ", describe(slot), " brings static shared memory to ",
                  static_bytes_, " bytes, a block may declare ", model_->static_shared));
  if (static_bytes_ + dynamic_bytes_ > static_cast<size_t>(model_->total_shared))
    reject(concat("shared array ", slot.name, " at ", describe(slot), " brings shared memory to ",
                  static_bytes_ + dynamic_bytes_, " bytes, the device has ", model_->total_shared));
  const size_t offset = used_ + kGuard, end = offset + (bytes + 15) / 16 * 16;
  if (end + kGuard > kCapacity) reject("too many shared arrays");
  used_ = end;
  std::fill(memory + offset - kGuard, memory + offset, kGuardByte);
  fill_pattern(memory + offset, bytes, kUnwrittenShared);
  std::fill(memory + offset + bytes, memory + end + kGuard, kGuardByte);
  std::fill_n(words_.begin() + static_cast<std::ptrdiff_t>(offset / 4), bytes / 4, Word::whole);
  if (bytes % 4) words_[(offset + bytes) / 4] = Word::split;
  arrays_.push_back({key, offset, bytes});
  return memory + offset;
}

Range SharedMemory::array_at(const void* p) const {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(p) - base();
  for (const Array& a : arrays_)
    if (offset - a.offset < a.bytes) return {base() + a.offset, base() + a.offset + a.bytes};
  return {};
}

void SharedMemory::check_guards() const {
  const auto* memory = reinterpret_cast<const unsigned char*>(memory_.data());
  const auto written = [](unsigned char c) { return c != kGuardByte; };
  for (const Array& a : arrays_) {
    const auto* begin = memory + a.offset;
    const auto* end = begin + a.bytes;
    if (std::any_of(begin - kGuard, begin, written))
      reject(concat("wrote before the start of shared array ", a.slot->name));
    if (const auto* at = std::find_if(end, end + kGuard, written); at != end + kGuard)
      reject(concat("wrote past the end of shared array ", a.slot->name, " of ", a.bytes, " bytes, at byte ",
                    at - begin));
  }
}

// --- accesses ---

// "byte 12 of shared array parts"
std::string SharedMemory::name_of(size_t offset) const {
  const Array* best = nullptr;
  for (const Array& a : arrays_)
    if (a.offset <= offset) best = &a;
  if (!best) return "shared memory before its first array";
  return concat("byte ", offset - best->offset, " of shared array ", best->slot->name, " of ", best->bytes,
                " bytes");
}

// Whether a sync lies between the access in `cell` and this one.
bool SharedMemory::ordered(uint64_t cell, Stamp now) const {
  if (cell < now.block_start()) return true;
  const Stamp other{cell};
  if (other.thread() == now.thread() && !(cell & kMany)) return true;
  return same_warp(cell, now.bits) && !(cell & kMixed) && other.warp_epoch() < now.warp_epoch();
}

void SharedMemory::reject_race(size_t offset, Access access, uint64_t other, bool other_wrote, Stamp now,
                               const Where& where) const {
  const char* verb = access == Access::read ? "reads " : access == Access::write ? "writes " : "changes ";
  reject(concat("thread ", now.thread(), ' ', verb, name_of(offset), ", which thread ", Stamp{other}.thread(),
                other_wrote ? " wrote" : " read", " before, with no sync between them", describe(where)));
}

// One access to bytes that share a history. Returns whether they had been written.
bool SharedMemory::visit(Cell& cell, size_t offset, Access access, Stamp now, const Where& where) {
  const bool written = cell.write >> Stamp::kEpochShift >= first_epoch_;
  const bool concurrent_atomics = access == Access::atomic && (cell.write & kAtomic);
  if (!concurrent_atomics && !ordered(cell.write, now))
    reject_race(offset, access, cell.write, true, now, where);
  if (written && (cell.write & kPending))
    reject(concat("thread ", now.thread(), " uses ", name_of(offset), " before async_wait for the copy to it",
                  describe(where)));
  if (access != Access::read) {
    if (!ordered(cell.read, now)) reject_race(offset, access, cell.read, false, now, where);
    cell = {access == Access::atomic ? now.bits | kAtomic : now.bits, 0};
  } else if (ordered(cell.read, now)) {
    cell.read = now.bits;
  } else {
    cell.read = now.bits | kMany | (cell.read & kMixed) | (same_warp(cell.read, now.bits) ? 0 : kMixed);
  }
  return written;
}

void SharedMemory::checked_access(const void* p, size_t bytes, Access access, Stamp now, const Where& where) {
  const size_t offset = reinterpret_cast<uintptr_t>(p) - base();
  if (!array_at(p).holds(p, bytes))
    reject(concat("thread ", now.thread(), access == Access::read ? " reads " : " writes ", bytes,
                  " bytes past an end: ", name_of(offset), describe(where)));
  if (!kWatch) return;
  bool written = false;
  for (size_t i = offset; i < offset + bytes;) {
    const bool whole = i % 4 == 0 && offset + bytes - i >= 4 && words_[i / 4] == Word::whole;
    if (!whole) split(i / 4);
    written |= visit(cells_[i], i, access, now, where);
    i += whole ? 4 : 1;
  }
  if (!written && access != Access::write)
    reject(concat("thread ", now.thread(), " reads ", name_of(offset), ", uninitialised: nobody wrote it",
                  describe(where)));
}

// From here on the bytes of the word have histories of their own.
void SharedMemory::split(size_t word) {
  if (words_[word] == Word::split) return;
  words_[word] = Word::split;
  for (size_t i = 1; i < 4; ++i) cells_[4 * word + i] = cells_[4 * word];
}

void SharedMemory::set_written(const void* p, size_t bytes, uint64_t stamp) {
  const size_t offset = reinterpret_cast<uintptr_t>(p) - base();
  for (size_t i = offset; i < offset + bytes; ++i) cells_[i] = {stamp, 0};
}

void SharedMemory::begin_copy(const void* p, size_t bytes, Stamp now, const Where& where) {
  access(p, bytes, Access::write, now, where);
  set_written(p, bytes, now.bits | kPending);
}

void SharedMemory::end_copy(const void* p, size_t bytes, Stamp now) { set_written(p, bytes, now.bits); }

}  // namespace trivium::emu
