// What only a measurement settles in the CUDA kernels of axial_attention. Chunks are octets of rows
// times blocks of 32 elements: what a lane has of an operand of a tile, 16 bytes each.
#pragma once

namespace vimpac {

constexpr int kAxialWarps = 4;        // of a block, where shared memory allows them
constexpr int kAxialStore = 1;        // of results: 0 write back, 1 past L1, 2 evict first
constexpr int kAxialFewChunks = 6;    // with so many registers leave room for more blocks
constexpr int kAxialForwardFew = 3;   // blocks of a multiprocessor up to so many chunks
constexpr int kAxialForwardMany = 2;  // and beyond
constexpr int kAxialForwardHold = 12; // chunks up to which k and v stay in registers
constexpr int kAxialBackward = 2;     // blocks of a multiprocessor in the backward
constexpr int kAxialHoldQueries = 6; // chunks up to which q and dout stay in registers: 255 of them
constexpr int kAxialHoldKeys = 0;    // as many of k and v, beside q and dout in shared memory
constexpr int kAxialAhead = 12;    // chunks up to which registers have room for the next q and dout
constexpr int kAxialStage = 20;    // chunks up to which shared memory has what registers have not
constexpr int kAxialMostTiles = 8; // of a warp: its sums then cost under 1 % of the bytes

} // namespace vimpac
