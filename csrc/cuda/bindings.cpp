// The Python module of the CUDA kernels; the tests build the same file against their emulator.
#include <pybind11/pybind11.h>

#include "ops.hpp"

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of vimpac_kernels: raw pointers, sizes, strides and a stream.";
}
