// What tests set and ask for; Python calls it through ctypes.
#include "cuda/platform.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

__global__ void mark_kernel(int* out) {
  *out = 1;
}

} // namespace

EXPORT void emulator_set_schedule(unsigned seed, unsigned workers) {
  emulator::schedule = {seed, workers};
}

// Leaves an error behind, as a call that nobody checked does.
EXPORT void emulator_leave_error(int error) {
  emulator::host.pending = static_cast<cudaError_t>(error);
}

// Lets the next launch return an error: its own, or that of a kernel which has failed meanwhile.
EXPORT void emulator_fail_launch(int error) {
  emulator::host.failure = static_cast<cudaError_t>(error);
}

EXPORT void emulator_set_device(int device) {
  emulator::host.device = device;
}

EXPORT int emulator_attribute_calls() {
  return emulator::host.attributes;
}

EXPORT void emulator_forget_kernels() {
  emulator::host.launched.clear();
}

// Kernels launched since, each counted once: a device loads the code of one at its first launch.
EXPORT int emulator_kernels() {
  return static_cast<int>(emulator::host.launched.size());
}

// Launches so far, of kernels and of memory to be cleared.
EXPORT int emulator_launches() {
  return emulator::host.launches;
}

// Launches a kernel that writes 1 to `out`; what went wrong is written to `error`.
EXPORT void emulator_launch(size_t shared_bytes, int* out, char* error, size_t error_bytes) {
  try {
    vimpac::launch(mark_kernel, dim3(1), dim3(1), shared_bytes, nullptr, out);
  } catch (const std::runtime_error& e) {
    std::strncpy(error, e.what(), error_bytes - 1);
  }
}
