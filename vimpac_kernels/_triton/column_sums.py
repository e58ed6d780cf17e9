"""Column sums in two stages, so that they repeat bit for bit: the second stage.

Each program of a fixed grid leaves the sums over its rows; here they are added in order.
"""

import triton
import triton.language as tl


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
