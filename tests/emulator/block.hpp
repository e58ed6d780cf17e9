// The state of one running block and its threads, and the way to report what a kernel did wrong.
#pragma once
#include "fiber.hpp"

#include <cuda_runtime.h>
#include <functional>
#include <source_location>
#include <string>
#include <vector>

namespace emulator {

using Location = std::source_location;
constexpr unsigned kWarp = 32;

struct Block;

struct AsyncCopy {
  uint32_t* dst;
  const uint32_t* src; // null: zeros
  int words;
};

enum class State { kReady, kWaiting, kDone };

struct Thread {
  Block* block = nullptr;
  uint3 index{};
  unsigned rank = 0, lane = 0, warp = 0;
  State state = State::kDone;
  // What it waits for and where; `mask` holds the lanes of a warp collective, 0 for the whole
  // block.
  const char* operation = "";
  Location location;
  unsigned mask = 0;
  void* operand = nullptr;
  std::vector<std::vector<AsyncCopy>> copies; // by group, the last one open
  Context* context = nullptr;
};

struct Block {
  uint3 index{};
  dim3 shape, grid;
  std::vector<Thread> threads;          // whole warps
  std::vector<unsigned> arrived, alive; // by warp: lanes at a collective, lanes not yet exited
  // Barriers passed so far, by warp and then by the block, and what the race detector synchronizes
  // on: two addresses for each counter, used alternately.
  std::vector<unsigned> phase;
  std::vector<char> tags;
  unsigned waiting = 0, live = 0; // threads at a block barrier, threads not yet exited
  int votes = 0, result = 0;      // of the barrier being gathered, of the last one passed
  unsigned sleeps = 0;            // calls of __nanosleep so far
  char* shared = nullptr;
  size_t shared_bytes = 0, shared_reserved = 0;
  const std::function<void()>* body = nullptr;
  Context scheduler;
  std::string error;
};

inline thread_local Thread* current [[gnu::tls_model("initial-exec")]] = nullptr;

inline std::string describe(const Thread& thread, const char* operation, const Location& location) {
  const uint3 b = thread.block->index;
  return std::string(operation) + " at " + location.file_name() + ":" +
         std::to_string(location.line()) + ", thread " + std::to_string(thread.rank) + ", block (" +
         std::to_string(b.x) + ", " + std::to_string(b.y) + ", " + std::to_string(b.z) + ")";
}

inline void park() {
  switch_context(*current->context, current->block->scheduler);
}

// Ends the launch: the block's fibers are abandoned where they stand.
[[noreturn]] inline void
fail(const std::string& what, const char* operation, const Location& location) {
  Unchecked scope;
  current->block->error = what + ": " + describe(*current, operation, location);
  for (;;) {
    park();
  }
}

} // namespace emulator
