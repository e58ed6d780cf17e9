// What every kernel includes: the CUDA toolkit under nvcc, the CPU emulator of the tests under g++.
// Kernel sources hold plain CUDA C++; what differs between the two lives here and in mma.cuh.
#pragma once
#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cxxabi.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

namespace vimpac {

using Stream = cudaStream_t;

// Carves typed arrays out of dynamic shared memory, in the order in which they are taken.
class SharedArena {
  size_t used_ = 0;

public:
  template <class T>
  __device__ __forceinline__ T* take(size_t count, size_t align = 16) {
    extern __shared__ __align__(1024) unsigned char raw[];
    used_ = (used_ + align - 1) / align * align;
    T* p = reinterpret_cast<T*>(raw + used_);
    used_ += count * sizeof(T);
    return p;
  }
};

// 1 / x and 2^x in one instruction each, to 1 and 2 ulp. Subnormal numbers count as 0: to scale
// them takes three more.
__device__ __forceinline__ float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float approximate_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// x, of which the compiler knows nothing: what follows from it is computed where it is used, and
// holds no registers throughout a loop.
__device__ __forceinline__ uint32_t opaque(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

inline std::string kernel_name(const void* kernel) {
  const char* mangled = nullptr;
  if (cudaFuncGetName(&mangled, kernel) != cudaSuccess || mangled == nullptr)
    return "a CUDA kernel";
  const std::unique_ptr<char, void (*)(void*)> readable(
      abi::__cxa_demangle(mangled, nullptr, nullptr, nullptr), std::free);
  return readable ? readable.get() : mangled;
}

// Raises with the kernel's name; clears the error, so that the next call starts clean.
inline void check_launch(cudaError_t error, const void* kernel) {
  if (error == cudaSuccess)
    return;
  cudaGetLastError();
  throw std::runtime_error(kernel_name(kernel) + ": " + cudaGetErrorString(error));
}

// Zeroes device memory in stream order.
inline void clear(void* p, size_t bytes, Stream stream) {
  const cudaError_t error = cudaMemsetAsync(p, 0, bytes, stream);
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("cudaMemsetAsync: ") + cudaGetErrorString(error));
}

// How many blocks the current device runs at a time: `most` on a multiprocessor, or as many as its
// shared memory holds.
inline int resident_blocks(int most, size_t shared_bytes) {
  const auto attribute = [](cudaDeviceAttr which) {
    int device = 0, value = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
      error = cudaDeviceGetAttribute(&value, which, device);
    if (error != cudaSuccess)
      throw std::runtime_error(std::string("cudaDeviceGetAttribute: ") + cudaGetErrorString(error));
    return value;
  };
  const size_t reserved = attribute(cudaDevAttrReservedSharedMemoryPerBlock);
  const size_t held =
      attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / (shared_bytes + reserved);
  const int fit = held < static_cast<size_t>(most) ? static_cast<int>(held) : most;
  return attribute(cudaDevAttrMultiProcessorCount) * (fit > 1 ? fit : 1);
}

// Blocks of a kernel that the current device holds at a time, all multiprocessors together. Asked
// once for every device, kernel and launch.
inline unsigned resident_blocks(const void* kernel, int threads, size_t shared_bytes) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, int, size_t>, unsigned> known;
  int device = 0, multiprocessors = 0, blocks = 0;
  check_launch(cudaGetDevice(&device), kernel);
  const std::lock_guard<std::mutex> lock(mutex);
  unsigned& found = known[{device, kernel, threads, shared_bytes}];
  if (found == 0) {
    if (shared_bytes > 48 * 1024)
      check_launch(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared_bytes)),
                   kernel);
    check_launch(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
        kernel);
    check_launch(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
                 kernel);
    found = static_cast<unsigned>(blocks * multiprocessors);
  }
  return found;
}

// Starts `kernel` on the current device; `shared_bytes` covers what its SharedArena hands out.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...),
            dim3 grid,
            dim3 block,
            size_t shared_bytes,
            Stream stream,
            Args&&... args) {
  const void* entry = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024) // an attribute of the kernel on one device
    check_launch(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared_bytes)),
                 entry);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check_launch(cudaLaunchKernelEx(&config, kernel, Params(std::forward<Args>(args))...), entry);
}

} // namespace vimpac

#else

#include "emulator.hpp"

namespace vimpac {

using Stream = void*;
using emulator::SharedArena;

inline float approximate_reciprocal(float x) {
  return emulator::approximate(1.0f / emulator::flush(x), 1);
}
inline float approximate_exp2(float x) {
  return emulator::approximate(std::exp2(x), 2);
}

inline uint32_t opaque(uint32_t x) {
  return x;
}

// Of a device so small that tests of a few lines fill it.
inline unsigned resident_blocks(const void* /*kernel*/, int /*threads*/, size_t /*shared_bytes*/) {
  return 3;
}

inline void clear(void* p, size_t bytes, Stream /*stream*/) {
  std::memset(p, 0, bytes);
}

// One multiprocessor, so that small tensors, too, are more than one wave.
inline int resident_blocks(int most, size_t /*shared_bytes*/) {
  return most;
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...),
            dim3 grid,
            dim3 block,
            size_t shared_bytes,
            Stream /*stream*/,
            Args&&... args) {
  emulator::launch(grid, block, shared_bytes, [&] { kernel(Params(args)...); });
}

} // namespace vimpac

#endif
