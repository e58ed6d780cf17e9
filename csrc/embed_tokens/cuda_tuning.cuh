// Tuning constants of embed_tokens, chosen by measurement. build_support/tuning.py builds with
// other values.
#pragma once

namespace vimpac {

constexpr int kEmbedWarps = 4;           // of a block, where a row takes no more
constexpr int kEmbedNarrow = 1024;       // columns up to which a lane holds two chunks, not four
constexpr int kEmbedForwardResident = 4; // blocks on a multiprocessor, for narrow rows
constexpr int kEmbedPlacesResident = 3;  // the same of the backward by places: sums in registers
constexpr int kEmbedIdsResident = 4;     // the same of the backward by ids
constexpr int kEmbedForwardClips = 8;    // of a warp: it reads positions, weight and bias once
constexpr int kEmbedPlacesClips = 16;    // of a warp: it writes one row of sums
constexpr int kEmbedRuns = 2048;         // of sorted rows: four for each scheduler of a Hopper GPU
constexpr int kEmbedShortestRun = 4;     // rows; at least one of them is of another id, or carried
constexpr int kEmbedLongestRun = 32;     // rows
constexpr bool kEmbedHold = true;        // what all rows of a warp share in registers, if narrow

} // namespace vimpac
