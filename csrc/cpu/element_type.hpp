// Calls a template with the C++ type of an element type.
#pragma once

#include "common/arguments.hpp"
#include "cpu/vec_io.hpp"

namespace vimpac {
namespace {

// f(T{}) with T = float, Bf16 or Half.
template <class F>
bool with_type(ElementType type, const F& f) {
  switch (type) {
  case ElementType::kFloat32:
    return f(float{});
  case ElementType::kBfloat16:
    return f(Bf16{});
  case ElementType::kFloat16:
    break;
  }
  return f(Half{});
}

} // namespace
} // namespace vimpac
