// Dynamic shared memory with red zones, filled with 0xff (a NaN in every format) when a block
// starts.
#pragma once
#include "block.hpp"

namespace emulator {

constexpr size_t kMaxShared = 227 << 10; // bytes a block may ask for (sm_90, sm_100)
constexpr size_t kRedZone = 64;

// Hands out arrays at the offsets of the device's SharedArena plus red zones, and checks the
// launch's byte count against the former.
class SharedArena {
  size_t used_ = 0, placed_ = 0;

public:
  template <class T>
  T* take(size_t count, size_t align = 16, Location location = Location::current()) {
    const Block& block = *current->block;
    const size_t bytes = count * sizeof(T);
    used_ = (used_ + align - 1) / align * align + bytes;
    placed_ = (placed_ + kRedZone + align - 1) / align * align;
    char* p = block.shared + placed_;
    placed_ += bytes;
    if (used_ > block.shared_bytes || placed_ + kRedZone > block.shared_reserved) {
      fail(std::to_string(used_) + " bytes of dynamic shared memory taken, launched with " +
               std::to_string(block.shared_bytes),
           "SharedArena::take", location);
    }
    EMULATOR_ASAN(__asan_unpoison_memory_region(p, bytes);)
    return reinterpret_cast<T*>(p);
  }
};

inline bool in_shared(const void* p, size_t bytes) {
  const Block& block = *current->block;
  const auto offset = static_cast<size_t>(static_cast<const char*>(p) - block.shared);
  return offset < block.shared_reserved && offset + bytes <= block.shared_reserved;
}

// Bytes to reserve for `shared_bytes` handed out in at most 64 pieces.
inline size_t reserved_bytes(size_t shared_bytes) {
  return (2 * shared_bytes + 64 * kRedZone + 2047) / 1024 * 1024;
}

} // namespace emulator
