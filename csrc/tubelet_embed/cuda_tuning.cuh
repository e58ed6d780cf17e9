// Tuning constants of tubelet_embed, to be measured. build_support/tuning.py builds with other
// values.
#pragma once

namespace vimpac {

constexpr int kTubeletThreads = 192; // of a block: a chunk each of 2 x 16 x 16 pixels of 3 bytes

} // namespace vimpac
