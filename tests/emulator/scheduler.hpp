// Runs the blocks of a launch. What a GPU leaves open follows a seeded schedule.
#pragma once
#include "shared_arena.hpp"
#include "sync.hpp"

#include <array>
#include <atomic>
#include <exception>
#include <numeric>
#include <optional>
#include <random>
#include <thread>

namespace emulator {

struct Schedule {
  unsigned seed = 0;    // threads and blocks in ascending order, 1 descending, n shuffled
  unsigned workers = 1; // blocks in flight, one OS thread each
};
inline Schedule schedule;
constexpr size_t kMostThreads = 1024; // of a block
inline char start_tag;                // orders what came before a block before its threads
inline char stream_tag;               // orders a launch before what follows it

// One thread of the kernel, from its first line until it has exited. Not inlined: the next one on
// this fiber may run in another OS thread, whose `current` has another address.
[[gnu::noinline]] inline void run_thread() {
  EMULATOR_TSAN(__tsan_acquire(&start_tag);) // even of `current`, which a new OS thread writes
  Thread& t = *current;
  Block& block = *t.block;
  (*block.body)();
  EMULATOR_TSAN(__tsan_release(&stream_tag);) {
    Unchecked scope;
    t.state = State::kDone;
    block.alive[t.warp] &= ~(1u << t.lane);
    if (--block.live != 0 && block.waiting == block.live) { // exited threads count as arrived
      release_barrier(block);
    }
  }
  park();
}

inline void run_threads() {
  EMULATOR_ASAN(Context& scheduler = current->block->scheduler;)
  EMULATOR_ASAN(__sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.bytes);)
  for (;;) {
    run_thread();
  }
}

// What runs a block under the race detector. A fiber orders the blocks that it runs, but creating
// one takes a millisecond: every fifth block gets the same, and is compared with those between.
inline Fibers& fibers_of(size_t block) {
  static std::array<std::optional<Fibers>, 5> sets;
  std::optional<Fibers>& set = sets[block % sets.size()];
  if (!set) {
    set.emplace(kMostThreads, &run_threads);
  }
  return *set;
}

// One OS thread's place for a block: its state and its shared memory.
class Worker {
  Unchecked scope_;
  Block block_;
  unsigned threads_;
  Fibers& fibers_;
  std::mt19937 random_;
  std::vector<Thread*> order_;

  void start(uint3 index, size_t flat_index) {
    block_.index = index;
    block_.live = threads_;
    block_.waiting = 0;
    block_.votes = 0;
    block_.sleeps = 0;
    block_.arrived.assign(block_.phase.size(), 0);
    block_.alive.assign(block_.phase.size(), 0);
    random_.seed(schedule.seed + static_cast<unsigned>(flat_index)); // for any number of workers
    block_.shared = static_cast<char*>(std::aligned_alloc(1024, block_.shared_reserved));
    std::memset(block_.shared, 0xff, block_.shared_reserved);
    EMULATOR_ASAN(__asan_poison_memory_region(block_.shared, block_.shared_reserved);)
    order_.clear();
    for (unsigned i = 0; i < threads_; ++i) {
      Thread& t = block_.threads[i];
      t.state = State::kReady;
      t.copies.assign(1, {});
      block_.alive[t.warp] |= 1u << t.lane;
      t.context = &fibers_[i];
      order_.push_back(&t);
    }
    if (schedule.seed == 1) {
      std::reverse(order_.begin(), order_.end());
    }
    EMULATOR_TSAN(__tsan_release(&start_tag);)
  }

  void finish() {
    for (const Thread* t : order_) {
      if (t->state == State::kWaiting && block_.error.empty()) {
        block_.error = "deadlock: " + describe(*t, t->operation, t->location);
      }
    }
    if (block_.live != 0) {
      fibers_.abandon();
    }
    EMULATOR_ASAN(__asan_unpoison_memory_region(block_.shared, block_.shared_reserved);)
    std::free(block_.shared);
  }

public:
  Worker(
      dim3 grid, dim3 shape, size_t shared_bytes, const std::function<void()>& body, Fibers& fibers)
      : threads_(shape.x * shape.y * shape.z), fibers_(fibers) {
    const unsigned warps = (threads_ + kWarp - 1) / kWarp;
    block_.grid = grid;
    block_.shape = shape;
    block_.body = &body;
    block_.threads.resize(static_cast<size_t>(warps) * kWarp);
    block_.phase.resize(warps + 1);
    block_.tags.resize(2 * warps + 2);
    block_.shared_bytes = shared_bytes;
    block_.shared_reserved = reserved_bytes(shared_bytes);
    for (unsigned i = 0; i < block_.threads.size(); ++i) {
      Thread& t = block_.threads[i];
      t.block = &block_;
      t.rank = i;
      t.lane = i % kWarp;
      t.warp = i / kWarp;
      t.index = {i % shape.x, i / shape.x % shape.y, i / (shape.x * shape.y)};
    }
    EMULATOR_TSAN(block_.scheduler.tsan = __tsan_get_current_fiber();)
  }

  void run(uint3 index, size_t flat_index) {
    start(index, flat_index);
    for (bool progress = true; progress && block_.live != 0 && block_.error.empty();) {
      if (schedule.seed > 1) {
        std::shuffle(order_.begin(), order_.end(), random_);
      }
      progress = false;
      for (Thread* t : order_) {
        if (t->state != State::kReady || !block_.error.empty()) {
          continue;
        }
        progress = true;
        current = t;
        switch_context(block_.scheduler, *t->context);
      }
    }
    finish();
    if (!block_.error.empty()) {
      throw std::runtime_error(block_.error);
    }
  }
};

// The order in which blocks start. A GPU promises none.
inline std::vector<size_t> block_order(size_t blocks) {
  std::vector<size_t> order(blocks);
  std::iota(order.begin(), order.end(), size_t{0});
  if (schedule.seed == 1) {
    std::reverse(order.begin(), order.end());
  } else if (schedule.seed > 1) {
    std::shuffle(order.begin(), order.end(), std::mt19937(schedule.seed));
  }
  return order;
}

inline void check_launch(dim3 grid, dim3 shape, size_t shared_bytes) {
  const size_t threads = size_t{shape.x} * shape.y * shape.z;
  if (threads == 0 || threads > kMostThreads) {
    throw std::runtime_error("invalid launch: " + std::to_string(threads) + " threads in a block");
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535) {
    throw std::runtime_error("invalid launch: a grid of (" + std::to_string(grid.x) + ", " +
                             std::to_string(grid.y) + ", " + std::to_string(grid.z) + ") blocks");
  }
  if (shared_bytes > kMaxShared) {
    throw std::runtime_error("invalid launch: " + std::to_string(shared_bytes) +
                             " bytes of shared memory, at most " + std::to_string(kMaxShared));
  }
}

// Runs body() in every thread of the grid; the first block that fails ends the launch.
inline void launch(dim3 grid, dim3 shape, size_t shared_bytes, const std::function<void()>& body) {
  check_launch(grid, shape, shared_bytes);
  const std::vector<size_t> order = block_order(size_t{grid.x} * grid.y * grid.z);
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  auto work = [&](size_t most) {
    try {
      EMULATOR_TSAN(Fibers& fibers = fibers_of(next);)
#ifndef __SANITIZE_THREAD__
      Fibers fibers(size_t{shape.x} * shape.y * shape.z, &run_threads);
#endif
      Worker worker(grid, shape, shared_bytes, body, fibers);
      for (size_t i = 0; most-- != 0 && !failed && (i = next++) < order.size();) {
        const size_t flat = order[i];
        worker.run({static_cast<unsigned>(flat % grid.x),
                    static_cast<unsigned>(flat / grid.x % grid.y),
                    static_cast<unsigned>(flat / grid.x / grid.y)},
                   flat);
      }
    } catch (...) {
      if (!failed.exchange(true)) {
        error = std::current_exception();
      }
    }
  };
  // The race detector gets an OS thread per block: nothing then orders one block after another.
  EMULATOR_TSAN(for (size_t i = 0; i < order.size() && !failed; ++i) std::thread(work, 1).join();)
  std::vector<std::thread> helpers;
  for (size_t i = 1; i < std::min<size_t>(schedule.workers, order.size()); ++i) {
    helpers.emplace_back(work, order.size());
  }
  work(order.size());
  for (std::thread& helper : helpers) {
    helper.join();
  }
  EMULATOR_TSAN(__tsan_acquire(&stream_tag);)
  if (error) {
    std::rethrow_exception(error);
  }
}

} // namespace emulator
