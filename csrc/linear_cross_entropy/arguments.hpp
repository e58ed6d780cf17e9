#pragma once
#include "common/arguments.hpp"

namespace vimpac {
// Predicted row i of M takes row positions[i] (or i) of the input; it is live if i < *count, and
// counts unless its target is ignore_index. A call finishes rows first..first+m.
struct LinearCrossEntropy : Call {
  Array z;                            // (m, stride): x W^T in, dz out if `gradient`
  const float* bias = nullptr;        // (V,) or null
  ConstIntegerArray target;           // (R,) int32 or int64
  const int32_t* positions = nullptr; // (M,) or null
  const int32_t* count = nullptr;     // 0-d, or null: all of M
  const float* row_scale = nullptr;   // (M,) factor of each row's dz, or null
  float* losses = nullptr;            // (M,)
  int32_t* counts = nullptr;          // (2,) hits, targets: added to
  float* dbias = nullptr;             // (V,) added to, or null
  int64_t V = 0, first = 0;
  bool gradient = false;
  int64_t ignore_index = 0;
  float label_smoothing = 0, z_loss = 0;
  VIMPAC_FIELDS(z, bias, target, positions, count, row_scale, losses, counts, dbias, V, first,
                gradient, ignore_index, label_smoothing, z_loss)
};

} // namespace vimpac
