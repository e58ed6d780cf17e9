// Types of the fields of every op's arguments, for the CPU and for CUDA. csrc/bind.hpp fills them
// from the keywords of a call in Python.
#pragma once

#include <cstdint>
#include <tuple>

// In an argument struct: its fields by the names that Python gives them.
#define VIMPAC_FIELDS(...)                                                                         \
  static constexpr const char* kNames = #__VA_ARGS__;                                              \
  auto fields() {                                                                                  \
    return std::tie(__VA_ARGS__);                                                                  \
  }

namespace vimpac {

enum class ElementType { kFloat32, kBfloat16, kFloat16 };
enum class IntegerType { kInt16, kUint16, kInt32, kInt64 };
enum class ByteType { kUint8 };

// A contiguous tensor (..., columns) of any number of dimensions. On CUDA it starts at a multiple
// of 16 bytes.
template <class Void, class Type = ElementType>
struct BasicArray {
  Void* data = nullptr; // null: not given
  Type type{};
  int64_t rows = 0, columns = 0;
  int64_t sizes[5] = {}; // of its first dimensions
};
using Array = BasicArray<void>;
using ConstArray = BasicArray<const void>;
using IntegerArray = BasicArray<void, IntegerType>;
using ConstIntegerArray = BasicArray<const void, IntegerType>;
using ConstByteArray = BasicArray<const void, ByteType>;

// A tensor whose last stride is 1. On CUDA its rows start at multiples of 16 bytes.
struct ConstStridedArray {
  const void* data = nullptr;
  ElementType type{};
  int64_t sizes[5] = {}, strides[5] = {}; // of its first dimensions
};

// The part of a call that is not an argument of the op.
struct Call {
  int num_threads = 1;        // CPU
  int64_t* invalid = nullptr; // CPU: becomes the first index that is out of range, if any
  void* stream = nullptr;     // CUDA
  float* workspace = nullptr; // CUDA: as many elements as <op>_workspace says
};

} // namespace vimpac
