// Host entry points of the CUDA kernels: device pointers, sizes, strides in elements, and the
// stream as void*. Each op's are defined in <op>.cu and bound in bindings.cpp; none of them
// synchronizes.
#pragma once
#include <cstdint>

namespace vimpac {} // namespace vimpac
