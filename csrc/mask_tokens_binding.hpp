// The Python signature of mask_tokens_fwd, which the CPU and the CUDA module share.
#pragma once

#include "mask_tokens.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>

namespace vimpac {

// Defines mask_tokens_fwd, which runs `run(args, tail...)`; Tail is what only one module takes.
template <class... Tail, class Run>
void def_mask_tokens_fwd(pybind11::module_& module, Run run) {
  auto bound = [run](uintptr_t tokens,      // (B, T, H, W), bits per token: token_type
                     uintptr_t seed,        // 0-d int64
                     uintptr_t clip_offset, // 0-d int64
                     uintptr_t inputs,      // (B, T, H, W)
                     uintptr_t mask,        // (B, T, H, W) bool
                     uintptr_t positions,   // (B*T*H*W,) int32
                     uintptr_t count,       // 0-d int32
                     int token_type, std::array<int64_t, 4> shape, int strategy, int num_blocks,
                     std::array<int, 3> max_block, uint64_t amount, int64_t mask_token,
                     std::optional<int64_t> pad_token, int noise,
                     std::array<uint64_t, 2> noise_below, uint32_t vocab_size, int row_offset,
                     Tail... tail) {
    using Args = MaskTokensFwd;
    Args args{};
    args.tokens = reinterpret_cast<const void*>(tokens);
    args.seed = reinterpret_cast<const int64_t*>(seed);
    args.clip_offset = reinterpret_cast<const int64_t*>(clip_offset);
    args.inputs = reinterpret_cast<void*>(inputs);
    args.mask = reinterpret_cast<uint8_t*>(mask);
    args.positions = reinterpret_cast<int32_t*>(positions);
    args.count = reinterpret_cast<int32_t*>(count);
    args.token_type = static_cast<Args::TokenType>(token_type);
    args.B = shape[0];
    args.T = static_cast<int>(shape[1]);
    args.H = static_cast<int>(shape[2]);
    args.W = static_cast<int>(shape[3]);
    args.strategy = static_cast<Args::Strategy>(strategy);
    args.num_blocks = num_blocks;
    std::copy(max_block.begin(), max_block.end(), args.max_block);
    args.amount = amount;
    args.mask_token = mask_token;
    args.has_pad = pad_token.has_value();
    args.pad_token = pad_token.value_or(0);
    args.noise = static_cast<Args::Noise>(noise);
    args.noise_low = noise_below[0];
    args.noise_high = noise_below[1];
    args.vocab_size = vocab_size;
    args.row_offset = row_offset;
    run(args, tail...);
  };
  module.def("mask_tokens_fwd", bound);
}

} // namespace vimpac
