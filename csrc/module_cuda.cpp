// Python module vimpac_kernels._C_cuda: the CUDA kernels. Tests build it against their emulator.
#include "bind.hpp"
#include "ops.hpp"

namespace vimpac {

#define VIMPAC_DECLARE(op, Args)                                                                   \
  void op(const Args& args);                                                                       \
  int64_t op##_workspace(const Args& args);
VIMPAC_EACH_OPERATOR(VIMPAC_DECLARE)
std::tuple<int64_t, int64_t, int64_t> mask_tokens_shared_bytes(); // of a clip, of a box, at most

PYBIND11_MODULE(_C_cuda, module) {
  module.def("mask_tokens_shared_bytes", mask_tokens_shared_bytes);
#define VIMPAC_DEFINE(op, Args) define_cuda_operator<Args>(module, #op, op, op##_workspace);
  VIMPAC_EACH_OPERATOR(VIMPAC_DEFINE)
}

} // namespace vimpac
