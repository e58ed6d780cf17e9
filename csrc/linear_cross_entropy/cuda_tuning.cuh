// Tuning constants of linear_cross_entropy, chosen by measurement. build_support/tuning.py builds
// with other values.
#pragma once

namespace vimpac {

constexpr int kLossBlocks = 2; // on a multiprocessor: one works while another waits for its barrier
constexpr int kLossBatch = 128; // rows whose labels are read at once
constexpr int kLossChunks = 3;  // of 8 columns, a thread's in registers: two take more instructions
constexpr int kLossThreads = 384;     // of a block that holds its rows: up to 9,216 columns
constexpr int kLossWideChunks = 8;    // of a thread that reads its columns twice
constexpr int kLossWideThreads = 512; // of such a block: up to 32,768 columns
constexpr int kLossWideSums = 6;  // of its chunks with column sums in shared memory: 99 KiB hold 6
constexpr int kLossWidePiece = 2; // of its chunks in registers at a time

} // namespace vimpac
