// Barriers of a block and collectives of a warp.
#pragma once
#include "block.hpp"

#include <cstring>
#include <thread>

namespace emulator {

inline void expect_same_place(const Thread& a, const Thread& b) {
  if (a.mask != b.mask || a.location.line() != b.location.line() ||
      std::strcmp(a.operation, b.operation) != 0) {
    fail("divergent " + describe(a, a.operation, a.location) + " and", b.operation, b.location);
  }
}

// Lets the block go on once every live thread waits at the barrier.
inline void release_barrier(Block& block) {
  const Thread* first = nullptr;
  for (Thread& t : block.threads) {
    if (t.state != State::kWaiting || t.mask != 0) {
      continue;
    }
    if (first != nullptr) {
      expect_same_place(*first, t);
    } else {
      first = &t;
    }
    t.state = State::kReady;
  }
  block.waiting = 0;
  ++block.phase.back();
  block.result = block.votes;
  block.votes = 0;
}

// Waits for the whole block and returns the sum of its votes.
inline int barrier(const char* operation, int vote, const Location& location) {
  Thread& t = *current;
  Block& block = *t.block;
  [[maybe_unused]] char* tag = &block.tags[2 * block.phase.size() - 2 + block.phase.back() % 2];
  EMULATOR_TSAN(__tsan_release(tag);) {
    Unchecked scope;
    t.operation = operation;
    t.location = location;
    t.mask = 0;
    t.state = State::kWaiting;
    block.votes += vote;
    if (++block.waiting == block.live) {
      release_barrier(block);
    } else {
      park();
    }
  }
  EMULATOR_TSAN(__tsan_acquire(tag);)
  return block.result;
}

// Rendezvous of the lanes in `mask`; the last to arrive runs combine(operands by lane, null outside
// the mask) for all of them. Orders no memory accesses: on a GPU, too, only __syncwarp does.
template <class Operand, class Combine>
void collective(const char* operation,
                unsigned mask,
                Operand& operand,
                Combine combine,
                const Location& location) {
  Unchecked scope;
  Thread& t = *current;
  unsigned& arrived = t.block->arrived[t.warp];
  if ((mask >> t.lane & 1) == 0) {
    fail("a lane that is not in its own mask", operation, location);
  }
  if ((mask & ~t.block->alive[t.warp]) != 0) {
    fail("the mask names lanes that have exited", operation, location);
  }
  t.operation = operation;
  t.location = location;
  t.mask = mask;
  t.operand = &operand;
  t.state = State::kWaiting;
  arrived |= 1u << t.lane;
  if ((arrived & mask) != mask) {
    return park();
  }
  Operand* operands[kWarp] = {};
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) {
      continue;
    }
    Thread& other = t.block->threads[t.warp * kWarp + lane];
    expect_same_place(other, t);
    operands[lane] = static_cast<Operand*>(other.operand);
    other.state = State::kReady;
  }
  arrived &= ~mask;
  combine(operands);
}

// Lets the block's other threads, and other blocks in flight, run, so that a loop which waits for
// an atomic can end. A block that sleeps for ever waits for what no schedule promises.
inline void sleep(const Location& location) {
  constexpr unsigned kMostSleeps = 1u << 22;
  Unchecked scope;
  Thread& t = *current;
  if (++t.block->sleeps > kMostSleeps) {
    fail("no progress", "__nanosleep", location);
  }
  if (t.block->sleeps % 1024 == 0) {
    std::this_thread::yield();
  }
  park();
}

} // namespace emulator
