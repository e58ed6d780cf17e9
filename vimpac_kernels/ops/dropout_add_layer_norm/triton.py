"""y = LN(residual + dropout(x + linear_bias)) in Triton, forward and backward in one pass each.

A program holds a few whole rows in registers from the load to the store, so that each is read
once. Statistics are fp32, the variance is taken around the mean, dropout is drawn again in the
backward. Parameter gradients: each program of a grid that fits the device adds up its rows, a
second kernel the programs in order, so that results repeat bit for bit. Bound by memory: forward 2
reads and 2 writes of (M, D), backward the same and a read of each further gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vimpac_kernels.runtime import philox
from vimpac_kernels.runtime.triton_common import add_programs, centre_rows, keep_rows, most_programs

TUNING = {
    "FWD_ELEMENTS": 2048,  # of a program, but whole rows: four warps
    "BWD_ELEMENTS": 2048,  # of a program at a time
    "THREAD_ELEMENTS": 16,  # two accesses of 16 bytes in flight for each 16-bit tensor
    "ROWS": 32,  # of a program at most, where they are short
    "PROGRAMS": 4,  # of a backward on a multiprocessor
    "SUM_COLUMNS": 32,  # of a program that adds column sums: a cache line
    "SUM_CHUNK": 64,  # programs whose sums it adds at a time
}
STREAM_RESIDUAL = tl.constexpr(philox.STREAM_RESIDUAL << 24)


@triton.jit
def _keep_factors(seed_at, threshold, keep_scale, row, C: tl.constexpr):
    """0 where an element is dropped, else the inverse of the kept fraction: (R, C)."""
    R: tl.constexpr = row.shape[0]
    low, high = row.to(tl.int32), (row >> 32).to(tl.int32)
    stream = tl.full((R, 1), STREAM_RESIDUAL, tl.int32)
    keep = keep_rows(tl.load(seed_at), threshold, low, high, stream, R, C)
    return tl.where(keep, keep_scale, 0.0)


@triton.jit(
    do_not_specialize=["M", "threshold", "keep_scale", "eps"],
    do_not_specialize_on_alignment=["seed_at"],
)
def dropout_add_layer_norm_fwd_kernel(
    x,  # (M, D)
    residual,  # (M, D)
    weight,  # (D,) fp32
    bias,  # (D,) fp32
    linear_bias,  # (D,) fp32 or None
    seed_at,  # 0-d int64
    y,  # (M, D)
    total,  # (M, D) or None, as mean and rstd
    mean,  # (M,) fp32
    rstd,  # (M,) fp32
    M,
    threshold,
    keep_scale,
    eps,
    DROPOUT: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,  # rows of a program
    C: tl.constexpr,  # D, rounded up to a power of two
):
    row = (tl.program_id(0).to(tl.int64) * R + tl.arange(0, R))[:, None]
    column = tl.arange(0, C)[None, :]
    real = column < D
    live = (row < M) & real
    at = row * D + column
    branch = tl.load(x + at, mask=live, other=0.0).to(tl.float32)
    sums = tl.load(residual + at, mask=live, other=0.0).to(tl.float32)
    if linear_bias is not None:
        branch += tl.load(linear_bias + column, mask=real, other=0.0)
    if DROPOUT:
        branch *= _keep_factors(seed_at, threshold, keep_scale, row, C)
    sums = (sums + branch).to(residual.dtype.element_ty).to(tl.float32)
    if total is not None:
        tl.store(total + at, sums.to(total.dtype.element_ty), mask=live)
    centred, mu = centre_rows(sums, real, D)
    variance = tl.sum(centred * centred, 1)[:, None] / D
    # `/` and tl.sqrt are approximations on a GPU, whose error the whole row would share.
    inverse = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    w = tl.load(weight + column, mask=real, other=0.0)
    b = tl.load(bias + column, mask=real, other=0.0)
    tl.store(y + at, (centred * inverse * w + b).to(y.dtype.element_ty), mask=live)
    if total is not None:
        tl.store(mean + row, mu, mask=row < M)
        tl.store(rstd + row, inverse, mask=row < M)


# With xhat = (total - mean) * rstd and g = (dy + dy_other) * weight,
#   dresidual = rstd * (g - mean(g) - xhat * mean(g * xhat)) + dtotal
# and dx is the same after dropout.
@triton.jit(
    do_not_specialize=["M", "threshold", "keep_scale"],
    do_not_specialize_on_alignment=["seed_at"],
)
def dropout_add_layer_norm_bwd_kernel(
    dy,  # (M, D)
    dy_other,  # (M, D) or None
    dtotal,  # (M, D) or None
    total,  # (M, D)
    mean,  # (M,) fp32
    rstd,  # (M,) fp32
    weight,  # (D,) fp32
    seed_at,  # 0-d int64
    dx,  # (M, D), or None: it is dresidual
    dresidual,  # (M, D)
    partial,  # (programs, 3, D) fp32: sums of dy * xhat, dy (both) and, if LINEAR_BIAS, dx
    M,
    threshold,
    keep_scale,
    LINEAR_BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,  # rows of a program at a time
    C: tl.constexpr,  # D, rounded up to a power of two
):
    column = tl.arange(0, C)[None, :]
    real = column < D
    w = tl.load(weight + column, mask=real, other=0.0)
    dweight = tl.zeros((R, C), tl.float32)
    dbias = tl.zeros((R, C), tl.float32)
    dlinear = tl.zeros((R, C), tl.float32)
    for first in range(tl.program_id(0) * R, M, tl.num_programs(0) * R):
        row = (tl.cast(first, tl.int64) + tl.arange(0, R))[:, None]
        live = (row < M) & real
        at = row * D + column
        mu = tl.load(mean + row, mask=row < M, other=0.0)
        inverse = tl.load(rstd + row, mask=row < M, other=0.0)
        g = tl.load(dy + at, mask=live, other=0.0).to(tl.float32)
        if dy_other is not None:
            g += tl.load(dy_other + at, mask=live, other=0.0).to(tl.float32)
        xhat = tl.load(total + at, mask=live, other=0.0).to(tl.float32)
        xhat = tl.where(live, (xhat - mu) * inverse, 0.0)
        dweight += g * xhat
        dbias += g
        g *= w
        g_mean = tl.sum(g, 1)[:, None] / D
        gx_mean = tl.sum(g * xhat, 1)[:, None] / D
        d = inverse * (g - g_mean - xhat * gx_mean)
        if dtotal is not None:
            d += tl.load(dtotal + at, mask=live, other=0.0).to(tl.float32)
        tl.store(dresidual + at, d.to(dresidual.dtype.element_ty), mask=live)
        if DROPOUT:
            d *= _keep_factors(seed_at, threshold, keep_scale, row, C)
        if dx is not None:
            tl.store(dx + at, d.to(dx.dtype.element_ty), mask=live)
        if LINEAR_BIAS:
            dlinear += tl.where(live, d, 0.0)
    at = partial + tl.program_id(0) * (3 * D) + tl.arange(0, C)
    real = tl.arange(0, C) < D
    tl.store(at, tl.sum(dweight, 0), mask=real)
    tl.store(at + D, tl.sum(dbias, 0), mask=real)
    if LINEAR_BIAS:
        tl.store(at + 2 * D, tl.sum(dlinear, 0), mask=real)


@triton.jit(do_not_specialize=["programs"])
def dropout_add_layer_norm_sum_kernel(
    partial,  # (programs, 3, D) fp32
    dweight,  # (D,) fp32
    dbias,  # (D,) fp32
    dlinear_bias,  # (D,) fp32 or None
    programs,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Adds the partials of COLUMNS columns of one parameter: grid (groups of columns, 2 or 3)."""
    column, which = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.program_id(1)
    live = column < D
    sums = add_programs(partial + which * D, programs, column, live, 3 * D, CHUNK)
    if which == 0:
        tl.store(dweight + column, sums, mask=live)
    elif which == 1:
        tl.store(dbias + column, sums, mask=live)
    elif dlinear_bias is not None:
        tl.store(dlinear_bias + column, sums, mask=live)


def tile_of(D: int, elements: int, size: int = 2) -> dict[str, int]:
    """Rows and columns of a program of about so many elements of 2 bytes, or half as many of 4."""
    C = max(16, triton.next_power_of_2(D))
    R = min(TUNING["ROWS"], max(1, 2 * elements // size // C))
    warps = max(1, R * C * size // (2 * 32 * TUNING["THREAD_ELEMENTS"]))
    return {"D": D, "R": R, "C": C, "num_warps": min(32, warps)}


def sums_of(D: int) -> dict[str, int]:
    return {"D": D, "COLUMNS": TUNING["SUM_COLUMNS"], "CHUNK": TUNING["SUM_CHUNK"]}


def dropout_of(threshold: int) -> tuple[tuple[int, float], dict[str, bool]]:
    return (threshold, philox.dropout_scale(threshold)), {"DROPOUT": threshold > 0}


def launch_triton_fwd(
    x: Tensor,  # (..., D) contiguous
    residual: Tensor,  # (..., D) contiguous
    weight: Tensor,  # (D,) fp32
    bias: Tensor,  # (D,) fp32
    linear_bias: Tensor | None,  # (D,) fp32
    seed: Tensor,  # 0-d int64
    threshold: int,
    eps: float,
    y: Tensor,  # (..., D)
    total: Tensor,  # (..., D), or empty as mean and rstd: not wanted
    mean: Tensor,  # (M,) fp32
    rstd: Tensor,  # (M,) fp32
) -> None:
    """Fills y and, if wanted, total, mean and rstd."""
    D = x.shape[-1]
    M, tile = x.numel() // D, tile_of(D, TUNING["FWD_ELEMENTS"])
    scalars, constants = dropout_of(threshold)
    outputs = (y, *(t if t.numel() else None for t in (total, mean, rstd)))
    dropout_add_layer_norm_fwd_kernel[(triton.cdiv(M, tile["R"]),)](
        x, residual, weight, bias, linear_bias, seed, *outputs, M, *scalars, eps,
        **constants, **tile,
    )  # fmt: skip


def launch_triton_bwd(
    dy: Tensor,  # (..., D) contiguous
    dy_other: Tensor | None,  # (..., D) contiguous, added to dy
    dtotal: Tensor | None,  # (..., D) contiguous
    total: Tensor,  # (..., D)
    mean: Tensor,  # (M,) fp32
    rstd: Tensor,  # (M,) fp32
    weight: Tensor,  # (D,) fp32
    seed: Tensor,  # 0-d int64
    threshold: int,
    dx: Tensor,  # (..., D), or empty: it is dresidual
    dresidual: Tensor,  # (..., D)
    dweight: Tensor,  # (D,) fp32
    dbias: Tensor,  # (D,) fp32
    dlinear_bias: Tensor,  # (D,) fp32, or empty: not wanted
) -> None:
    """Fills dx, dresidual and the gradients of the parameters."""
    D = total.shape[-1]
    M, tile = total.numel() // D, tile_of(D, TUNING["BWD_ELEMENTS"], dy.element_size())
    programs = min(triton.cdiv(M, tile["R"]), most_programs(dy, TUNING["PROGRAMS"]))
    partial = torch.empty((programs, 3, D), dtype=torch.float32, device=dy.device)
    own_dx, linear = (t if t.numel() else None for t in (dx, dlinear_bias))
    scalars, constants = dropout_of(threshold)
    constants["LINEAR_BIAS"] = linear is not None
    dropout_add_layer_norm_bwd_kernel[(programs,)](
        dy, dy_other, dtotal, total, mean, rstd, weight, seed, own_dx, dresidual, partial, M,
        *scalars, **constants, **tile,
    )  # fmt: skip
    groups = triton.cdiv(D, TUNING["SUM_COLUMNS"]), 2 + constants["LINEAR_BIAS"]
    dropout_add_layer_norm_sum_kernel[groups](
        partial, dweight, dbias, linear, programs, **sums_of(D)
    )
