// The part of the CUDA runtime's interface that launch.cuh calls, with errors on demand. What a
// test sets or counts is in `host`.
#pragma once
#include "scheduler.hpp"

#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace emulator {

struct Host {
  std::mutex mutex;
  cudaError_t pending = cudaSuccess;                 // as cudaPeekAtLastError sees it
  cudaError_t failure = cudaSuccess;                 // of the next launch
  int device = 0;                                    // the current one
  std::map<std::pair<const void*, int>, int> shared; // bytes allowed by kernel and device
  int attributes = 0;                                // calls that set them
  int launches = 0;
  std::set<const void*> launched; // kernels that have run, whose code is loaded
};
inline Host host;

inline cudaError_t cudaPeekAtLastError() {
  return host.pending;
}
inline cudaError_t cudaGetLastError() {
  return std::exchange(host.pending, cudaSuccess);
}
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
  case cudaErrorIllegalAddress:
    return "an illegal memory access was encountered";
  case cudaErrorInvalidConfiguration:
    return "invalid configuration argument";
  default:
    return "an error that the emulator does not name";
  }
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = host.device;
  return cudaSuccess;
}
// A device so small that tests of a few rows fill it.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int /*device*/) {
  switch (which) {
  case cudaDevAttrMultiProcessorCount:
    *value = 1;
    return cudaSuccess;
  case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
    *value = 228 << 10;
    return cudaSuccess;
  case cudaDevAttrReservedSharedMemoryPerBlock:
    *value = 1 << 10;
    return cudaSuccess;
  default:
    return cudaErrorInvalidValue;
  }
}
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks,
                                                                 const void* /*kernel*/,
                                                                 int /*threads*/,
                                                                 size_t /*shared_bytes*/) {
  *blocks = 3;
  return cudaSuccess;
}
inline cudaError_t cudaFuncGetName(const char** name, const void* /*kernel*/) {
  *name = "emulated_kernel";
  return cudaSuccess;
}
inline cudaError_t
cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute /*which*/, int value) {
  const std::lock_guard<std::mutex> lock(host.mutex);
  ++host.attributes;
  host.shared[{kernel, host.device}] = value;
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t /*stream*/) {
  std::memset(p, value, bytes);
  const std::lock_guard<std::mutex> lock(host.mutex);
  ++host.launches;
  return cudaSuccess;
}

template <class... Params, class... Args>
cudaError_t
cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  const void* entry = reinterpret_cast<const void*>(kernel);
  check_launch(config->gridDim, config->blockDim, config->dynamicSmemBytes);
  {
    const std::lock_guard<std::mutex> lock(host.mutex);
    if (host.failure != cudaSuccess) {
      return host.pending = std::exchange(host.failure, cudaSuccess);
    }
    const auto allowed = host.shared.find({entry, host.device});
    const int most = allowed == host.shared.end() ? 48 << 10 : allowed->second;
    if (config->dynamicSmemBytes > static_cast<size_t>(most)) {
      return host.pending = cudaErrorInvalidValue;
    }
    host.launched.insert(entry);
    ++host.launches;
  }
  launch(config->gridDim, config->blockDim, config->dynamicSmemBytes, [&] { kernel(args...); });
  return cudaSuccess;
}

} // namespace emulator

// A GPU machine's process holds functions of these names, too.
#define cudaPeekAtLastError ::emulator::cudaPeekAtLastError
#define cudaGetLastError ::emulator::cudaGetLastError
#define cudaGetErrorString ::emulator::cudaGetErrorString
#define cudaGetDevice ::emulator::cudaGetDevice
#define cudaDeviceGetAttribute ::emulator::cudaDeviceGetAttribute
#define cudaOccupancyMaxActiveBlocksPerMultiprocessor                                              \
  ::emulator::cudaOccupancyMaxActiveBlocksPerMultiprocessor
#define cudaFuncGetName ::emulator::cudaFuncGetName
#define cudaFuncSetAttribute ::emulator::cudaFuncSetAttribute
#define cudaMemsetAsync ::emulator::cudaMemsetAsync
#define cudaLaunchKernelEx ::emulator::cudaLaunchKernelEx
