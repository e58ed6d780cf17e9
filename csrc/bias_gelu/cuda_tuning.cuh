// Tuning constants of bias_gelu, chosen by measurement. build_support/tuning.py builds with other
// values.
#pragma once

namespace vimpac {

constexpr int kGeluRows = 8;          // of a block, with 32 chunks of columns: 256 threads
constexpr int kGeluForward = 4;       // blocks of a forward on a multiprocessor: 64 registers
constexpr int kGeluBackward = 4;      // blocks of a backward
constexpr int kGeluForwardLoads = 2;  // rows of a thread whose loads are in flight at a time
constexpr int kGeluBackwardLoads = 1; // of a backward, with two loads a row

} // namespace vimpac
