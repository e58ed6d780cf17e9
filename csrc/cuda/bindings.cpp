// The Python module of the CUDA kernels; the tests build the same file against their emulator.
#include "bind.hpp"
#include "ops.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>

namespace py = pybind11;
using vimpac::ElementType;

namespace {

// Tensors travel as data pointers, 0 for one that is not there.
template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

ElementType element_type(const std::string& dtype) {
  if (dtype == "float32")
    return ElementType::kFloat32;
  if (dtype == "float16")
    return ElementType::kFloat16;
  if (dtype == "bfloat16")
    return ElementType::kBfloat16;
  throw py::value_error("the kernels take float32, float16 and bfloat16, not " + dtype);
}

vimpac::AxialArguments axial_arguments(uintptr_t dout,
                                       uintptr_t qkv,
                                       uintptr_t padding,
                                       uintptr_t seed,
                                       uintptr_t result,
                                       uintptr_t dbias,
                                       const std::string& dtype,
                                       std::array<int64_t, 5> shape, // of qkv
                                       std::array<int64_t, 5> strides,
                                       std::array<int, 3> grid,
                                       std::vector<int> axes,
                                       float scale,
                                       unsigned threshold) {
  vimpac::AxialArguments args{};
  args.qkv = at<const void>(qkv), args.dout = at<const void>(dout);
  args.result = at<void>(result), args.dbias = at<float>(dbias);
  args.padding = at<const uint8_t>(padding), args.seed = at<const int64_t>(seed);
  args.dtype = element_type(dtype);
  args.batch = static_cast<int>(shape[0]), args.grid = grid;
  args.heads = static_cast<int>(shape[3]), args.head_dim = static_cast<int>(shape[4]);
  args.strides = {strides[0], strides[1], strides[2], strides[3]};
  args.has_cls = shape[1] != int64_t{grid[0]} * grid[1] * grid[2];
  args.axes = std::move(axes), args.scale = scale, args.threshold = threshold;
  return args;
}

template <void (*kOp)(const vimpac::AxialArguments&, void*)>
void run_axial(vimpac::AxialArguments args, uintptr_t workspace, uintptr_t stream) {
  args.workspace = at<float>(workspace);
  kOp(args, at<void>(stream));
}

} // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of vimpac_kernels: raw pointers, sizes, strides and a stream.";
  vimpac::define_cuda_op(m, "mask_tokens_fwd", vimpac::mask_tokens_fwd,
                         vimpac::mask_tokens_fwd_workspace);
  vimpac::define_cuda_op(m, "dropout_add_layer_norm_fwd", vimpac::dropout_add_layer_norm_fwd);
  vimpac::define_cuda_op(m, "dropout_add_layer_norm_bwd", vimpac::dropout_add_layer_norm_bwd,
                         vimpac::dropout_add_layer_norm_bwd_workspace);
  vimpac::define_cuda_op(m, "bias_gelu_fwd", vimpac::bias_gelu_fwd);
  vimpac::define_cuda_op(m, "bias_gelu_bwd", vimpac::bias_gelu_bwd,
                         vimpac::bias_gelu_bwd_workspace);
  vimpac::define_cuda_op(m, "embed_tokens_fwd", vimpac::embed_tokens_fwd);
  vimpac::define_cuda_op(m, "embed_tokens_bwd", vimpac::embed_tokens_bwd,
                         vimpac::embed_tokens_bwd_workspace);
  vimpac::define_cuda_op(m, "linear_cross_entropy_fwd", vimpac::linear_cross_entropy_fwd,
                         vimpac::linear_cross_entropy_fwd_workspace);
  py::class_<vimpac::AxialArguments>(m, "AxialArguments", py::module_local())
      .def(py::init(&axial_arguments))
      .def("workspace", &vimpac::axial_attention_workspace, "fp32 elements of scratch memory");
  m.def("axial_attention_fwd", &run_axial<vimpac::axial_attention_fwd>);
  m.def("axial_attention_bwd", &run_axial<vimpac::axial_attention_bwd>);
}
