#pragma once
#include "common/arguments.hpp"

namespace vimpac {
// y = GELU(x + bias); dx = dy * GELU'(x + bias), dbias its sum over the rows.
struct BiasGelu : Call {
  ConstArray dy;               // (..., D) of x's type; backward only
  ConstArray x;                // (..., D)
  const float* bias = nullptr; // (D,)
  Array y;                     // (..., D) of x's type; forward only
  Array dx;                    // (..., D) of x's type; backward only
  float* dbias = nullptr;      // (D,), or null: not wanted
  VIMPAC_FIELDS(dy, x, bias, y, dx, dbias)
};

} // namespace vimpac
