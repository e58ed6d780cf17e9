// From the type that a call names to the type that a template takes.
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
