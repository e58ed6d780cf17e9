// Tuning constants of mask_tokens, chosen by measurement. build_support/tuning.py builds with other
// values.
#pragma once

namespace vimpac {

constexpr int kMaskThreads = 256;    // of a block: 1,280 tokens of a clip are five a thread
constexpr int kMaskResident = 4;     // blocks on a multiprocessor: 64 registers for each thread
constexpr int kMaskNanoseconds = 20; // between two looks at a clip that has not been counted yet

} // namespace vimpac
