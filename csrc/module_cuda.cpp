// The Python module of the CUDA kernels; the tests build the same file against their emulator.
#include "bind.hpp"
#include "cuda/ops.hpp"

#include <pybind11/pybind11.h>

using namespace vimpac;

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of vimpac_kernels";
  define_cuda_op(m, "mask_tokens_fwd", mask_tokens_fwd, mask_tokens_fwd_workspace);
  define_cuda_op(m, "dropout_add_layer_norm_fwd", dropout_add_layer_norm_fwd);
  define_cuda_op(m, "dropout_add_layer_norm_bwd", dropout_add_layer_norm_bwd,
                 dropout_add_layer_norm_bwd_workspace);
  define_cuda_op(m, "bias_gelu_fwd", bias_gelu_fwd);
  define_cuda_op(m, "bias_gelu_bwd", bias_gelu_bwd, bias_gelu_bwd_workspace);
  define_cuda_op(m, "embed_tokens_fwd", embed_tokens_fwd);
  define_cuda_op(m, "embed_tokens_bwd", embed_tokens_bwd, embed_tokens_bwd_workspace);
  define_cuda_op(m, "linear_cross_entropy_fwd", linear_cross_entropy_fwd,
                 linear_cross_entropy_fwd_workspace);
  define_cuda_op(m, "axial_attention_fwd", axial_attention_fwd, axial_attention_fwd_workspace);
  define_cuda_op(m, "axial_attention_bwd", axial_attention_bwd, axial_attention_bwd_workspace);
}
