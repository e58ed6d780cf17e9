"""Column sums in two stages, so that they repeat bit for bit on one device.

Each program of a grid that follows from the shape and the device leaves the sums over its rows;
here they are added in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def most_programs(tensor: Tensor, per_multiprocessor: int) -> int:
    """So many on each multiprocessor of the tensor's device; the interpreter has one."""
    if not tensor.is_cuda:
        return per_multiprocessor
    return (
        per_multiprocessor * torch.cuda.get_device_properties(tensor.device).multi_processor_count
    )


@triton.jit
def add_programs(
    partial,  # (programs, STRIDE) fp32
    programs,
    column,  # (C,) int32
    live,  # (C,) bool
    STRIDE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The sums of the columns over all programs, (C,) fp32, CHUNK programs at a time."""
    total = tl.zeros_like(column).to(tl.float32)
    start = programs * 0
    while start < programs:
        program = start + tl.arange(0, CHUNK)[:, None]
        at = partial + program.to(tl.int64) * STRIDE + column[None, :]
        total += tl.sum(tl.load(at, mask=(program < programs) & live[None, :], other=0.0), 0)
        start += CHUNK
    return total
