"""What the Triton kernels of embed_tokens share: rows of x from the tables, and their gradient."""

import triton
import triton.language as tl

from vimpac_kernels.runtime import philox
from vimpac_kernels.runtime.triton_common import keep_rows

STREAM_EMBEDDING = tl.constexpr(philox.STREAM_EMBEDDING << 24)


@triton.jit
def drop_rows(x, seed_at, threshold, keep_scale, row, C: tl.constexpr):
    """x (R, C) times its factors, 0 where it is dropped, which leaves NaN; row (R, 1) int64."""
    R: tl.constexpr = row.shape[0]
    low, high = row.to(tl.int32), (row >> 32).to(tl.int32)
    stream = tl.full((R, 1), STREAM_EMBEDDING, tl.int32)
    keep = keep_rows(tl.load(seed_at), threshold, low, high, stream, R, C)
    return x * tl.where(keep, keep_scale, 0.0)


@triton.jit
def load_place(time, height, width, cell, column, mask, H, W, D: tl.constexpr):
    """The positions of cells (R, 1): (R, C)."""
    place = tl.load(width + cell % W * D + column, mask=mask, other=0.0)
    if height is not None:
        place += tl.load(height + cell // W % H * D + column, mask=mask, other=0.0)
    if time is not None:
        place += tl.load(time + cell // W // H * D + column, mask=mask, other=0.0)
    return place


@triton.jit
def row_gradient(x, dy, weight, mean, rstd, row, column, live, D: tl.constexpr):
    """(dx, h) of rows with the dropped gradients dy; h = (x - mean) * rstd."""
    mu = tl.load(mean + row, mask=live, other=0.0)
    inverse = tl.load(rstd + row, mask=live, other=0.0)
    h = tl.where(live & (column < D), (x - mu) * inverse, 0.0)
    g = dy * tl.load(weight + column, mask=column < D, other=0.0)
    g_mean = tl.sum(g, 1)[:, None] / D
    gh_mean = tl.sum(g * h, 1)[:, None] / D
    return inverse * (g - g_mean - h * gh_mean), h
