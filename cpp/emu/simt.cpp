#include "emu/simt.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <numeric>

#include "core/error.h"
#include "core/parallel.h"
#include "emu/block.h"

namespace trivium::emu {

constinit thread_local Dim3 threadIdx, blockIdx, blockDim, gridDim;
constinit thread_local Block* t_block = nullptr;

namespace {

int lowest(uint64_t lanes) { return __builtin_ctzll(lanes); }

}  // namespace

uint64_t seed() {
  static const uint64_t value = [] {
    const char* text = std::getenv("TRIVIUM_EMU_SEED");
    return text ? std::strtoull(text, nullptr, 10) : 1;
  }();
  return value;
}

std::string describe(std::string_view path, unsigned line) {
  return concat(path.substr(path.rfind('/') + 1), ':', line);
}

std::string describe(const Place& place) { return describe(place.file_name(), place.line()); }
std::string describe(const SharedSlot& slot) { return describe(slot.file, slot.line); }

void reject(std::string reason) { throw Rejection{std::move(reason)}; }

Block& running_block() {
  if (!t_block) throw Error("emulator: a device function was called outside a kernel");
  return *t_block;
}

bool same_place(const Place& a, const Place& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

// --- scheduling ---

Thread& Block::thread_of(int warp, uint64_t lanes) {
  return threads_[static_cast<size_t>(warp * model_->warp_size + lowest(lanes))];
}

void Block::draw_order(Warp& warp) {
  const uint64_t random = order_.next();
  warp.first_lane = static_cast<int>(random % static_cast<uint64_t>(model_->warp_size));
  warp.downwards = random >> 63;
}

// The next lane of the running warp, or of another one when none is ready; null when nobody can go on.
Thread* Block::pick() {
  const size_t num_warps = warps_.size();
  if (!warps_[warp_].ready) {
    const size_t start = order_.next() % num_warps;
    size_t i = 0;
    while (i < num_warps && !warps_[(start + i) % num_warps].ready) ++i;
    if (i == num_warps) return nullptr;
    warp_ = (start + i) % num_warps;
    draw_order(warps_[warp_]);
  }
  const Warp& warp = warps_[warp_];
  const uint64_t from_first = warp.ready & (~uint64_t{0} << warp.first_lane);
  const uint64_t up_to_first = warp.ready & ~(~uint64_t{0} << warp.first_lane);
  int lane;
  if (warp.downwards)
    lane = 63 - __builtin_clzll(up_to_first ? up_to_first : from_first);
  else
    lane = lowest(from_first ? from_first : up_to_first);
  return &threads_[warp_ * static_cast<size_t>(model_->warp_size) + static_cast<size_t>(lane)];
}

void Block::switch_to(Thread* next) {
  Context& from = current_ ? current_->context : host_;
  if (next == current_) return;
  current_ = next;
  switched_from_ = &from;
  if (next) {
    threadIdx.x = next->index;
    stack_ = reinterpret_cast<uintptr_t>(next->context.stack_bottom);
    stack_bytes_ = next->context.stack_bytes;
    renew_stamp();
  }
  switch_context(from, next ? next->context : host_);
}

void Block::park(const char* what, const Place& place) {
  Thread& me = current();
  me.what = what;
  me.place = place;
  warps_[static_cast<size_t>(me.warp)].ready &= ~(uint64_t{1} << me.lane);
  switch_to(pick());
}

void Block::leave() {
  switch_to(failed_ ? nullptr : pick());
  std::abort();  // nobody switches to a thread that has left
}

void Block::give_up(std::string reason) {
  failed_ = true;
  reason_ = std::move(reason);
  leave();
}

void Block::thread_main() {
  Block& b = *t_block;
  arrived_on_new_stack(*b.switched_from_);
  try {
    b.body_(reinterpret_cast<void*>(b.arguments_.begin));
    b.thread_exits();
  } catch (const Rejection& rejection) {
    b.failed_ = true;
    b.reason_ = rejection.reason;
  } catch (const std::exception& error) {
    b.failed_ = true;
    b.reason_ = error.what();
  }
  b.leave();
}

void Block::thread_exits() {
  Thread& me = current();
  Warp& warp = warps_[static_cast<size_t>(me.warp)];
  const uint64_t bit = uint64_t{1} << me.lane;
  if (!me.copies.empty())
    reject(
        concat("the thread exits without async_wait for the async_copy16 at ", describe(me.copies[0].place)));
  if (num_at_barrier_)
    reject(
        concat("thread ", me.index, " exits while others wait in sync_block at ", describe(barrier_place_)));
  for (const Rendezvous& open : warp.open)
    if (open.mask & bit)
      reject(concat("lane ", me.lane, " exits while lane ", lowest(open.arrived), " waits for it in ",
                    open.what, " at ", describe(open.place)));
  me.exited = true;
  warp.exited |= bit;
  warp.ready &= ~bit;
  ++num_exited_;
}

// --- synchronisation ---

// Two calls that wait for each other can never both go on.
void Block::check_no_conflict(const Warp& warp, uint64_t mask, const char* what, const Place& place) const {
  const uint64_t bit = uint64_t{1} << current_->lane;
  const auto arrives = [&] {
    return concat(" while lane ", current_->lane, " of its warp arrives in ", what, " at ", describe(place));
  };
  for (const Rendezvous& open : warp.open)
    if ((open.mask & bit) && (open.arrived & mask))
      reject(concat("lane ", lowest(open.arrived & mask), " waits in ", open.what, " at ",
                    describe(open.place), arrives(), open.mask == mask ? "" : " with another mask"));
  if (warp.at_barrier & mask)
    reject(concat("lane ", lowest(warp.at_barrier & mask), " waits in sync_block at ",
                  describe(barrier_place_), arrives()));
}

void Block::rendezvous(uint64_t mask, const char* what, void* payload, Complete complete,
                       const Place& place) {
  Thread& me = current();
  Warp& warp = warps_[static_cast<size_t>(me.warp)];
  const uint64_t bit = uint64_t{1} << me.lane;
  if (!(mask & bit))
    reject(concat("lane ", me.lane, " calls ", what, " at ", describe(place),
                  " with a mask that leaves it out"));
  if (mask & ~warp.lanes)
    reject(concat(what, " at ", describe(place), ": the mask names lane ", lowest(mask & ~warp.lanes),
                  " of a warp of ", model_->warp_size));
  if (mask & warp.exited)
    reject(concat("lane ", me.lane, " waits in ", what, " at ", describe(place), " for lane ",
                  lowest(mask & warp.exited), ", which has exited"));
  warp.payloads[static_cast<size_t>(me.lane)] = payload;
  const auto open = std::find_if(warp.open.begin(), warp.open.end(), [&](const Rendezvous& r) {
    return r.mask == mask && same_place(r.place, place);
  });
  const uint64_t arrived = open == warp.open.end() ? bit : open->arrived | bit;
  if (arrived == mask) {
    watching_ = false;  // it works on the stacks of all lanes
    complete(warp.payloads.data(), mask);
    watching_ = true;
    if (open != warp.open.end()) warp.open.erase(open);
    warp.ready |= mask;
    draw_order(warp);
    return;
  }
  if (open == warp.open.end()) {
    check_no_conflict(warp, mask, what, place);
    warp.open.push_back({mask, bit, what, place});
  } else {
    open->arrived = arrived;
  }
  park(what, place);
}

void Block::barrier(const Place& place) {
  Thread& me = current();
  Warp& warp = warps_[static_cast<size_t>(me.warp)];
  const uint64_t bit = uint64_t{1} << me.lane;
  if (num_exited_) {
    const auto gone =
        std::find_if(threads_.begin(), threads_.end(), [](const Thread& t) { return t.exited; });
    reject(concat("thread ", me.index, " waits in sync_block at ", describe(place), " for thread ",
                  gone->index, ", which has exited"));
  }
  if (num_at_barrier_ && !same_place(barrier_place_, place))
    reject(concat("thread ", me.index, " arrives in sync_block at ", describe(place),
                  " while others wait in another one at ", describe(barrier_place_)));
  for (const Rendezvous& open : warp.open)
    if (open.mask & bit)
      reject(concat("lane ", lowest(open.arrived), " waits in ", open.what, " at ", describe(open.place),
                    " while lane ", me.lane, " of its warp arrives in sync_block at ", describe(place)));
  if (++num_at_barrier_ < num_threads_) {
    barrier_place_ = place;
    warp.at_barrier |= bit;
    park("sync_block", place);
    return;
  }
  num_at_barrier_ = 0;
  ++epoch_;
  for (Warp& w : warps_) {
    w.ready = w.lanes;
    w.at_barrier = w.epoch = 0;
  }
  renew_stamp();
}

void Block::warp_synced() {
  ++warps_[static_cast<size_t>(current_->warp)].epoch;
  renew_stamp();
}

void Block::renew_stamp() {
  stamp_ = Stamp::of(current_->index, epoch_, warps_[static_cast<size_t>(current_->warp)].epoch);
}

std::string Block::deadlock() const {
  const auto waits = [](const Thread& t) { return !t.exited; };
  const auto first = std::find_if(threads_.begin(), threads_.end(), waits);
  const auto other = std::find_if(
      first, threads_.end(), [&](const Thread& t) { return waits(t) && !same_place(t.place, first->place); });
  const auto where = [](const Thread& t) {
    return concat("thread ", t.index, " waits in ", t.what, " at ", describe(t.place));
  };
  return concat("no thread can go on: ", where(*first),
                other == threads_.end() ? "" : concat(" and ", where(*other)));
}

// --- a block from start to end ---

void Block::prepare(Dim3 index, uint64_t block_seed) {
  num_threads_ = static_cast<size_t>(config_->block);
  const auto warp_size = static_cast<size_t>(model_->warp_size);
  threads_.resize(num_threads_);
  warps_.resize(num_threads_ / warp_size);
  for (size_t i = 0; i < num_threads_; ++i) {
    Thread& t = threads_[i];
    stacks_.prepare(i, t.context, thread_main);
    t.index = static_cast<uint32_t>(i);
    t.lane = static_cast<int>(i % warp_size);
    t.warp = static_cast<int>(i / warp_size);
    t.exited = false;
    t.copies.clear();
    t.groups.clear();
  }
  for (Warp& w : warps_) {
    w.lanes = w.ready = ~uint64_t{0} >> (64 - warp_size);
    w.exited = w.at_barrier = w.epoch = 0;
    w.open.clear();
  }
  num_exited_ = num_at_barrier_ = 0;
  failed_ = false;
  watching_ = true;
  order_.seed(block_seed);
  warp_ = order_.next() % warps_.size();
  draw_order(warps_[warp_]);
  shared_.reset(*model_, config_->shared_bytes, ++epoch_);
  recent_.fill({});
  const auto& grid = config_->grid;
  gridDim = {static_cast<uint32_t>(grid.x), static_cast<uint32_t>(grid.y), static_cast<uint32_t>(grid.z)};
  blockDim = {static_cast<uint32_t>(num_threads_), 1, 1};
  blockIdx = index;
  threadIdx = {0, 0, 0};
}

void Block::run(const Model& model, const LaunchConfig& config, int device, Dim3 index, uint64_t block_seed,
                void (*body)(void*), Range arguments) {
  model_ = &model;
  config_ = &config;
  device_ = device;
  body_ = body;
  arguments_ = arguments;
  prepare(index, block_seed);
  t_block = this;
  switch_to(pick());
  t_block = nullptr;
  try {
    if (!failed_ && num_exited_ < num_threads_) reject(deadlock());
    if (!failed_) shared_.check_guards();
  } catch (const Rejection& rejection) {
    failed_ = true;
    reason_ = rejection.reason;
  }
  if (!failed_) return;
  for (size_t i = 0; i < num_threads_; ++i) stacks_.forget_frames(i);
  throw DeviceError(concat(model.name, ": ", reason_, "; kernel launched at ", describe(config.place),
                           ", block (", index.x, ", ", index.y, ", ", index.z,
                           "), TRIVIUM_EMU_SEED=", seed()));
}

void check_launch(const Model& model, const LaunchConfig& config) {
  const Grid& g = config.grid;
  const std::string where = concat(model.name, ": launch at ", describe(config.place), ": ");
  TRIVIUM_CHECK(0 <= g.x && g.x < int64_t{1} << 31 && 0 <= g.y && g.y < 65536 && 0 <= g.z && g.z < 65536,
                where, "grid (", g.x, ", ", g.y, ", ", g.z, "), expected x < 2^31, y and z < 65536");
  TRIVIUM_CHECK(64 <= config.block && config.block <= 1024 && config.block % 64 == 0, where, "block of ",
                config.block, " threads, expected a multiple of 64, at most 1024");
  TRIVIUM_CHECK(0 <= config.shared_bytes && config.shared_bytes <= model.total_shared, where,
                config.shared_bytes, " bytes of dynamic shared memory, the device has ", model.total_shared);
}

void run_grid(const Model& model, const LaunchConfig& config, int device, void (*body)(void*),
              void* arguments, size_t argument_bytes) {
  static std::atomic<uint64_t> launches{0};
  const Grid& g = config.grid;
  const int64_t blocks = g.x * g.y * g.z;
  if (blocks == 0) return;
  Order order;
  order.seed(seed() * 0x100000001b3ull + launches.fetch_add(1));
  // Blocks start in an order of their own: i -> first + i * stride, with a stride that reaches all of them.
  const auto first = static_cast<int64_t>(order.next() % static_cast<uint64_t>(blocks));
  int64_t stride = 1 + static_cast<int64_t>(order.next() % static_cast<uint64_t>(blocks));
  while (std::gcd(stride, blocks) != 1) ++stride;
  if (blocks >= int64_t{1} << 31) stride = 1;  // the product below must fit
  const uint64_t launch_seed = order.next();
  const auto begin = reinterpret_cast<uintptr_t>(arguments);
  const Range range{begin, begin + argument_bytes};
  parallel_for(blocks, [&](int64_t task, int) {
    static thread_local Block runner;
    const auto b = (first + task * stride) % blocks;
    const Dim3 index{static_cast<uint32_t>(b % g.x), static_cast<uint32_t>(b / g.x % g.y),
                     static_cast<uint32_t>(b / g.x / g.y)};
    runner.run(model, config, device, index, launch_seed + static_cast<uint64_t>(b) * 0x9E3779B97F4A7C15ull,
               body, range);
  });
}

}  // namespace trivium::emu
