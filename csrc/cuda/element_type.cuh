// Calls a template with the C++ type of an element type.
#pragma once
#include "common/arguments.hpp"
#include "cuda/platform.cuh"

namespace vimpac {

// f(T{}) with T = float, __half or __nv_bfloat16.
template <class F>
void with_type(ElementType type, const F& f) {
  switch (type) {
  case ElementType::kFloat32:
    return f(float{});
  case ElementType::kFloat16:
    return f(__half{});
  case ElementType::kBfloat16:
    return f(__nv_bfloat16{});
  }
}

} // namespace vimpac
