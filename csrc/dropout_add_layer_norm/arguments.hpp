#pragma once
#include "common/arguments.hpp"

namespace vimpac {
//   total = residual + dropout(x + linear_bias), rounded to its dtype,
//   y = (total - mean) * rstd * weight + bias
//   h = (total - mean) * rstd,  g = (dy + dy_other) * weight
//   dresidual = dtotal + rstd * (g - mean(g) - h * mean(g * h)),  dx = dropout(dresidual)
// Matrices are (..., D), with the dtype of x or of residual, which may be fp32 if that of x is not.
struct DropoutAddLayerNorm : Call {
  const float* weight = nullptr; // (D,)
  const int64_t* seed = nullptr; // 0-d
  int threshold = 0;             // a 16-bit decision below it drops; 0: no dropout
  Array total;                   // residual's; forward: null, as mean and rstd, if not wanted
  float* mean = nullptr;         // (rows,)
  float* rstd = nullptr;         // (rows,)
  // Forward
  ConstArray x;
  ConstArray residual;
  const float* bias = nullptr;        // (D,)
  const float* linear_bias = nullptr; // (D,) or null
  float eps = 0;
  Array y; // x's
  // Backward
  ConstArray dy;                 // x's
  ConstArray dy_other;           // x's, or null
  ConstArray dtotal;             // residual's, or null
  Array dx;                      // x's, or null: it is dresidual
  Array dresidual;               // residual's
  float* dweight = nullptr;      // (D,)
  float* dbias = nullptr;        // (D,)
  float* dlinear_bias = nullptr; // (D,) or null
  VIMPAC_FIELDS(weight, seed, threshold, total, mean, rstd, x, residual, bias, linear_bias, eps, y,
                dy, dy_other, dtotal, dx, dresidual, dweight, dbias, dlinear_bias)
};

} // namespace vimpac
