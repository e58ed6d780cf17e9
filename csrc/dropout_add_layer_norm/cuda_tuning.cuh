// Tuning constants of dropout_add_layer_norm, chosen by measurement. build_support/tuning.py builds
// with other values.
#pragma once

namespace vimpac {

constexpr int kNormChunks = 2;   // of a lane: a warp holds 512 columns, and registers suffice
constexpr int kNormWarps = 4;    // of a block, where a row takes no more
constexpr int kNormForward = 4;  // blocks of a forward on a multiprocessor: 128 registers a thread
constexpr int kNormBackward = 4; // blocks of a backward: 128 registers
constexpr int kNormStages = 2;   // rows of a warp on their way, the one at work included

} // namespace vimpac
