// Tuning constants of the CUDA kernels of axial_attention, chosen by measurement. Chunks are octets
// of rows times blocks of 32 elements: a lane's part of an operand of a tile, 16 bytes each. Blocks
// are blocks on a multiprocessor, which must have registers for all of them.
#pragma once

namespace vimpac {

constexpr int kAxialWarps = 4;            // of a block, at most: warps share nothing but token rows
constexpr int kAxialStore = 1;            // results: 0 write back, 1 past L1, 2 evict first
constexpr int kAxialFewChunks = 6;        // of a tile with which more blocks fit in the forward
constexpr int kAxialForwardBlocksFew = 3; // up to so many chunks
constexpr int kAxialForwardBlocks = 2;    // beyond
constexpr int kAxialForwardHold = 12;     // chunks up to which k and v stay in registers
constexpr int kAxialBackwardBlocks = 2;   // leaves 255 registers
constexpr int kAxialHoldQueries = 6;      // chunks up to which q, dout, k and v stay in registers
constexpr int kAxialHoldKeys = 0;         // as many for k and v alone; 10 asks for kAxialAhead < 10
constexpr int kAxialAhead = 12; // chunks up to which registers have room for the next q, dout
constexpr int kAxialStage = 20; // chunks up to which shared memory has what registers have not
constexpr int kAxialTeam = 36;  // chunks from which a block shares a tile: such a one takes 98 KiB
constexpr int kAxialTeamBlocks = 2; // of them, of five warps: 168 registers, shared memory of sm_90
constexpr int kAxialFp32Blocks = 4; // asked for none, the compiler aims at eight and spills
constexpr int kAxialMostTiles = 8;  // of a warp: its sums then cost under 1 % of the bytes
constexpr int kAxialUnitCost = 2;   // of a warp beside its tiles, in sixteenths of a tile

} // namespace vimpac
