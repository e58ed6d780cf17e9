"""Shared by the Triton kernels of several ops: means of rows, sums over programs, dropout.

Column sums have two stages, so that they repeat bit for bit on one device: each program of a grid
that follows from the shape and the device writes the sums over its rows; here they are added in
order. Dropout decisions are, bit for bit, those of `vimpac_kernels.runtime.philox.keep_mask`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def most_programs(tensor: Tensor, per_multiprocessor: int) -> int:
    """Programs for the tensor's device; the interpreter counts as one multiprocessor."""
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


@triton.jit
def centre_rows(x, real, D: tl.constexpr):
    """(x minus the mean of its row, that mean (R, 1)); x (R, C) fp32; real: of columns < D.

    Of nearly equal elements the rounding of their mean would be all that is left, so the mean of
    the differences, which are exact then, is subtracted as well. `/` is an approximation on a GPU,
    which would leave a part of what is corrected.
    """
    mean = tl.div_rn(tl.sum(tl.where(real, x, 0.0), 1)[:, None], D * 1.0)
    centred = tl.where(real, x - mean, 0.0)
    correction = tl.div_rn(tl.sum(centred, 1)[:, None], D * 1.0)
    return tl.where(real, centred - correction, 0.0), mean + correction


@triton.jit
def decision(w0, w1, w2, w3, index):
    """The 16-bit decision number `index` (0..7) of a Philox call; all arguments of one shape."""
    word = tl.where(index < 4, tl.where(index < 2, w0, w1), tl.where(index < 6, w2, w3))
    return (word >> ((index & 1) * 16).to(tl.uint32)) & 0xFFFF


@triton.jit
def keep_each(seed, threshold, element, c1, c2, c3):
    """Whether to keep each `element`, one Philox call per element; int32 tensors of one shape."""
    w0, w1, w2, w3 = tl.philox(seed, element // 8, c1, c2, c3)
    return decision(w0, w1, w2, w3, element % 8) >= threshold


@triton.jit
def keep_rows(seed, threshold, c1, c2, c3, R: tl.constexpr, C: tl.constexpr):
    """Keep decisions (R, C) of elements 0..C-1 for each of R counters, one call per 8 elements.

    c1, c2, c3 are int32 (R, 1); C is a multiple of 8.
    """
    group = tl.arange(0, C // 8)[None, :] + tl.zeros_like(c1)  # (R, C // 8)
    zero = tl.zeros_like(group)
    w0, w1, w2, w3 = tl.philox(seed, group, c1 + zero, c2 + zero, c3 + zero)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # (R, C // 8, 2, 2), row-major in the word
    halves = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(halves, (R, C)) >= threshold
