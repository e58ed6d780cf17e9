// The emulator's hooks into AddressSanitizer and ThreadSanitizer; nothing in a plain build.
#pragma once

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMULATOR_ASAN(...) __VA_ARGS__
#else
#define EMULATOR_ASAN(...)
#endif

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#define EMULATOR_TSAN(...) __VA_ARGS__
#else
#define EMULATOR_TSAN(...)
#endif

namespace emulator {

// Hides the emulator's own bookkeeping from the race detector, which then sees the kernel's
// accesses and nothing else.
struct Unchecked {
  Unchecked() {
    EMULATOR_TSAN(AnnotateIgnoreReadsBegin(__FILE__, __LINE__);)
    EMULATOR_TSAN(AnnotateIgnoreWritesBegin(__FILE__, __LINE__);)
  }
  ~Unchecked() {
    EMULATOR_TSAN(AnnotateIgnoreReadsEnd(__FILE__, __LINE__);)
    EMULATOR_TSAN(AnnotateIgnoreWritesEnd(__FILE__, __LINE__);)
  }
  Unchecked(const Unchecked&) = delete;
  Unchecked& operator=(const Unchecked&) = delete;
};

} // namespace emulator
