// The Python module of the CUDA kernels; the tests build the same file against their emulator.
#include "mask_tokens_binding.hpp"
#include "ops.hpp"

#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of vimpac_kernels: raw pointers, sizes, strides and a stream.";
  vimpac::def_mask_tokens_fwd<uintptr_t, uintptr_t>(m, [](const vimpac::MaskTokensFwd& args,
                                                          uintptr_t state, uintptr_t stream) {
    vimpac::mask_tokens_fwd(args, reinterpret_cast<void*>(state), reinterpret_cast<void*>(stream));
  });
}
