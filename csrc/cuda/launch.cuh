// Launches of kernels, their errors, and properties of the device. platform.cuh includes it after
// the CUDA runtime, or after the emulator's part of it.
#pragma once

#include <cstdlib>
#include <cxxabi.h>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

namespace vimpac {

using Stream = cudaStream_t;

inline std::string kernel_name(const void* kernel) {
  const char* mangled = nullptr;
  if (cudaFuncGetName(&mangled, kernel) != cudaSuccess || mangled == nullptr) {
    return "a CUDA kernel";
  }
  const std::unique_ptr<char, void (*)(void*)> readable(
      abi::__cxa_demangle(mangled, nullptr, nullptr, nullptr), std::free);
  return readable ? readable.get() : mangled;
}

// Whether it is an error of a running kernel, which later calls report in place of their own
// result.
inline bool is_asynchronous(cudaError_t error) {
  switch (error) {
  case cudaErrorECCUncorrectable:
  case cudaErrorIllegalAddress:
  case cudaErrorLaunchTimeout:
  case cudaErrorAssert:
  case cudaErrorHardwareStackError:
  case cudaErrorIllegalInstruction:
  case cudaErrorMisalignedAddress:
  case cudaErrorInvalidAddressSpace:
  case cudaErrorInvalidPc:
  case cudaErrorLaunchFailure:
    return true;
  default:
    return false;
  }
}

// Raises, and clears the error if it can be cleared, so that the next call starts without it.
[[noreturn]] inline void fail_earlier(cudaError_t error, const std::string& call) {
  cudaGetLastError();
  throw std::runtime_error("an earlier CUDA error was pending before " + call + ": " +
                           cudaGetErrorString(error) +
                           " (CUDA_LAUNCH_BLOCKING=1 shows which kernel failed)");
}

// Raises an error that is pending before `name()` is called, and says that it is not from that
// call.
template <class Name>
void check_before(Name name) {
  const cudaError_t error = cudaPeekAtLastError();
  if (error != cudaSuccess) {
    fail_earlier(error, name());
  }
}

// Raises if `name()` returned an error.
template <class Name>
void check_after(cudaError_t error, Name name) {
  if (error == cudaSuccess) {
    return;
  }
  const char* blocking = std::getenv("CUDA_LAUNCH_BLOCKING"); // then a launch waits for its kernel
  if (is_asynchronous(error) && (blocking == nullptr || *blocking == '0' || *blocking == '\0')) {
    fail_earlier(error, name());
  }
  cudaGetLastError();
  throw std::runtime_error(name() + ": " + cudaGetErrorString(error));
}

// Zeroes device memory in stream order.
inline void clear(void* p, size_t bytes, Stream stream) {
  const auto name = [] { return std::string("cudaMemsetAsync"); };
  check_before(name);
  check_after(cudaMemsetAsync(p, 0, bytes, stream), name);
}

// Lets blocks of `kernel` have `bytes` of shared memory on the current device. More than 48 KiB
// need an attribute of the kernel, which is set once. That is no operation of a stream, so the
// first launch may be within a capture.
inline void allow_shared_bytes(const void* kernel, size_t bytes) {
  if (bytes <= 48 * 1024) {
    return;
  }
  const auto name = [&] { return kernel_name(kernel); };
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  int device = 0;
  check_after(cudaGetDevice(&device), name);
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = allowed[{kernel, device}];
  if (bytes <= most) {
    return;
  }
  check_after(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(bytes)),
              name);
  most = bytes;
}

inline int device_attribute(cudaDeviceAttr which) {
  const auto name = [] { return std::string("cudaDeviceGetAttribute"); };
  int device = 0, value = 0;
  check_after(cudaGetDevice(&device), name);
  check_after(cudaDeviceGetAttribute(&value, which, device), name);
  return value;
}

// The blocks that the current device holds at a time on all multiprocessors: `most` on each, or as
// many as have room in its shared memory.
inline int wave_blocks(int most, size_t shared_bytes) {
  const size_t block = shared_bytes + device_attribute(cudaDevAttrReservedSharedMemoryPerBlock);
  const size_t held = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / block;
  const int fit = held < static_cast<size_t>(most) ? static_cast<int>(held) : most;
  return device_attribute(cudaDevAttrMultiProcessorCount) * (fit > 1 ? fit : 1);
}

// The same for a kernel, registers included. Queried once for every device, kernel and launch
// shape.
inline unsigned resident_blocks(const void* kernel, int threads, size_t shared_bytes) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, int, size_t>, unsigned> known;
  const auto name = [&] { return kernel_name(kernel); };
  int device = 0, blocks = 0;
  check_after(cudaGetDevice(&device), name);
  const std::lock_guard<std::mutex> lock(mutex);
  unsigned& found = known[{device, kernel, threads, shared_bytes}];
  if (found == 0) {
    allow_shared_bytes(kernel, shared_bytes);
    check_after(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
        name);
    found = static_cast<unsigned>(blocks * device_attribute(cudaDevAttrMultiProcessorCount));
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
  const auto name = [&] { return kernel_name(entry); };
  check_before(name);
  allow_shared_bytes(entry, shared_bytes);
  const cudaLaunchConfig_t config{grid, block, shared_bytes, stream, nullptr, 0};
  check_after(cudaLaunchKernelEx(&config, kernel, Params(std::forward<Args>(args))...), name);
}

} // namespace vimpac
