// Fibers: stacks that one OS thread changes between in a few nanoseconds (ucontext takes a system
// call for the signal mask and is 50 times slower).
#pragma once
#include "sanitizers.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <vector>

namespace emulator {

struct Context {
  void* stack_pointer = nullptr;
  const void* stack = nullptr; // lowest address and size, for AddressSanitizer
  size_t bytes = 0;
  void* asan = nullptr;
  void* tsan = nullptr;
};

// Pushes the callee-saved registers, parks the stack pointer in *from and resumes `to` (System V).
[[gnu::naked, gnu::noinline, gnu::noipa]] inline void swap_stacks(void** /*from*/, void* /*to*/) {
  asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n\t"
      "mov %rsp, (%rdi); mov %rsi, %rsp\n\t"
      "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}

// No order between the fibers follows from a switch: only barriers create one.
inline void switch_context(Context& from, Context& to) {
  EMULATOR_ASAN(__sanitizer_start_switch_fiber(&from.asan, to.stack, to.bytes);)
  EMULATOR_TSAN(__tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);)
  swap_stacks(&from.stack_pointer, to.stack_pointer);
  EMULATOR_ASAN(__sanitizer_finish_switch_fiber(from.asan, &to.stack, &to.bytes);)
}

// Fibers that run one block after another, each on a stack above a guard page. Physical memory
// follows use.
class Fibers {
  static constexpr size_t kPage = 4096;
  static constexpr size_t kUsable = size_t{64 EMULATOR_ASAN(*4)} << 10;
  static constexpr size_t kStride = kPage + kUsable;
  static constexpr size_t kColour = 320; // tops at equal page offsets would share their cache sets
  void (*entry_)();
  char* base_;
  std::vector<Context> contexts_;

public:
  // `entry`, which never returns, runs the thread `current` and parks, again and again.
  Fibers(size_t count, void (*entry)()) : entry_(entry), contexts_(count) {
    void* p = mmap(nullptr, count * kStride, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      throw std::runtime_error("emulator: cannot map the stacks of " + std::to_string(count) +
                               " threads");
    }
    base_ = static_cast<char*>(p);
    for (size_t i = 0; i < count; ++i) {
      mprotect(base_ + i * kStride, kPage, PROT_NONE);
    }
  }
  ~Fibers() { munmap(base_, contexts_.size() * kStride); }
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;

  size_t size() const { return contexts_.size(); }

  // Fiber i, which waits to be switched to.
  Context& operator[](size_t i) {
    Context& context = contexts_[i];
    if (context.stack_pointer == nullptr) {
      char* bottom = base_ + i * kStride + kPage;
      context.stack = bottom;
      context.bytes = kUsable;
      auto** top = reinterpret_cast<void**>(bottom + kUsable - (i % 13) * kColour) - 8;
      std::fill(top, top + 8, nullptr);
      top[6] = reinterpret_cast<void*>(entry_); // six registers, then the return address
      context.stack_pointer = top;
      EMULATOR_TSAN(context.tsan = __tsan_create_fiber(0);)
    }
    return context;
  }

  // Forgets fibers that stand in the middle of a kernel, and what their frames left poisoned.
  void abandon() {
    contexts_.assign(contexts_.size(), {});
    EMULATOR_ASAN(__asan_unpoison_memory_region(base_, contexts_.size() * kStride);)
  }
};

} // namespace emulator
