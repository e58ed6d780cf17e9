// Host entry points of the CUDA kernels: device pointers, sizes, strides in elements, and the
// stream as void*. Each op's are defined in <op>.cu and bound in bindings.cpp; none of them
// synchronizes.
#pragma once

#include "mask_tokens.hpp"

namespace vimpac {

// state: (1 + B,) 64-bit words of scratch memory.
void mask_tokens_fwd(const MaskTokensFwd& args, void* state, void* stream);

} // namespace vimpac
