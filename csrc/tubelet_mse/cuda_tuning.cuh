// Tuning constants of tubelet_mse, not yet chosen by measurement. build_support/tuning.py builds
// with other values.
#pragma once

namespace vimpac {

constexpr int kMseWarps = 8;    // of a block, each with tubelets of its own
constexpr int kMseForward = 4;  // blocks of a forward on a multiprocessor: 64 registers
constexpr int kMseBackward = 4; // blocks of a backward
constexpr int kMseHeld = 6;     // chunks of pixels that a lane keeps in registers, 3, 6 or 9: all
                                // of a tubelet of 2 x 16 x 16 pixels

} // namespace vimpac
