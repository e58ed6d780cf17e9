"""y = GELU(x + bias) in Triton, forward and backward in one pass each, bound by memory.

A program holds a tile of rows and columns in registers from the load to the store. dbias: each
program of a grid that fits the device adds up its rows, a second kernel the programs in order, so
that it repeats bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vimpac_kernels.runtime.triton_common import add_programs, most_programs

TUNING = {
    "COLUMNS": 256,  # of a tile at most: rows of 512 bytes of a 16-bit type
    "FWD_ELEMENTS": 2048,  # of a program: four warps
    "BWD_ELEMENTS": 2048,  # of a program at a time
    "THREAD_ELEMENTS": 16,  # two accesses of 16 bytes in flight for each 16-bit tensor
    "ROWS": 32,  # of a tile at most, where they are short
    "PROGRAMS": 8,  # of a backward on a multiprocessor
    "SUM_COLUMNS": 32,  # of a program that adds column sums: a cache line
    "SUM_CHUNK": 64,  # programs whose sums it adds at a time
}


@triton.jit
def _normal(u):
    """P(N <= u) and the density at u of the standard normal distribution.

    P(N > a) = exp(-a^2 / 2) t p(t) with t = 1 / (1 + 0.21 a) for a >= 0, the form of Abramowitz and
    Stegun 26.2.17, p fitted to 1.4e-8 of the value; see csrc/bias_gelu/cpu.cpp.
    """
    a = tl.abs(u)
    t = 1.0 / (0.21 * a + 1.0)
    p = -0.0720339396 * t + 0.28545321
    p = p * t - 0.334189269
    p = p * t + 0.354033203
    p = p * t - 0.0972453925
    p = p * t + 0.126355006
    p = p * t + 0.0687900788
    p = p * t + 0.0851294022
    p = p * t + 0.0837077033
    e = tl.exp(-0.5 * a * a)
    above = p * t * e
    return tl.where(u < 0.0, above, 1.0 - above), 0.398942280 * e


@triton.jit(do_not_specialize=["M"])
def bias_gelu_fwd_kernel(
    x,  # (M, D)
    bias,  # (D,) fp32
    y,  # (M, D)
    M,
    D: tl.constexpr,
    R: tl.constexpr,  # rows of a program
    C: tl.constexpr,  # its columns
):
    row = (tl.program_id(0).to(tl.int64) * R + tl.arange(0, R))[:, None]
    column = (tl.program_id(1) * C + tl.arange(0, C))[None, :]
    live = (row < M) & (column < D)
    at = row * D + column
    u = tl.load(x + at, mask=live, other=0.0).to(tl.float32)
    u += tl.load(bias + column, mask=column < D, other=0.0)
    below, _ = _normal(u)
    tl.store(y + at, (u * below).to(y.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["M"])
def bias_gelu_bwd_kernel(
    dy,  # (M, D)
    x,  # (M, D)
    bias,  # (D,) fp32
    dx,  # (M, D)
    partial,  # (programs, D) fp32: sums of dx over the rows of a program; None: not wanted
    M,
    D: tl.constexpr,
    R: tl.constexpr,  # rows of a program at a time
    C: tl.constexpr,  # its columns
):
    column = (tl.program_id(1) * C + tl.arange(0, C))[None, :]
    real = column < D
    b = tl.load(bias + column, mask=real, other=0.0)
    sums = tl.zeros((R, C), tl.float32)
    for first in range(tl.program_id(0) * R, M, tl.num_programs(0) * R):
        row = (tl.cast(first, tl.int64) + tl.arange(0, R))[:, None]
        live = (row < M) & real
        at = row * D + column
        u = tl.load(x + at, mask=live, other=0.0).to(tl.float32) + b
        below, density = _normal(u)
        d = tl.load(dy + at, mask=live, other=0.0).to(tl.float32) * (u * density + below)
        tl.store(dx + at, d.to(dx.dtype.element_ty), mask=live)
        sums += d
    if partial is not None:
        column = tl.program_id(1) * C + tl.arange(0, C)
        tl.store(partial + tl.program_id(0) * D + column, tl.sum(sums, 0), mask=column < D)


@triton.jit(do_not_specialize=["programs"])
def bias_gelu_sum_kernel(
    partial,  # (programs, D) fp32
    dbias,  # (D,) fp32
    programs,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Adds the partials of COLUMNS columns."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    live = column < D
    tl.store(dbias + column, add_programs(partial, programs, column, live, D, CHUNK), mask=live)


def tile_of(D: int, elements: int) -> dict[str, int]:
    """Rows and columns of a program of about so many elements."""
    C = min(TUNING["COLUMNS"], max(16, triton.next_power_of_2(D)))
    R = min(TUNING["ROWS"], max(1, elements // C))
    warps = max(1, R * C // (32 * TUNING["THREAD_ELEMENTS"]))
    return {"D": D, "R": R, "C": C, "num_warps": min(32, warps)}


def sums_of(D: int) -> dict[str, int]:
    return {"D": D, "COLUMNS": TUNING["SUM_COLUMNS"], "CHUNK": TUNING["SUM_CHUNK"]}


def launch_triton_fwd(
    x: Tensor,  # (..., D) contiguous
    bias: Tensor,  # (D,) fp32
    y: Tensor,  # (..., D)
) -> None:
    """Fills y."""
    D = x.shape[-1]
    M, tile = x.numel() // D, tile_of(D, TUNING["FWD_ELEMENTS"])
    grid = triton.cdiv(M, tile["R"]), triton.cdiv(D, tile["C"])
    bias_gelu_fwd_kernel[grid](x, bias, y, M, **tile)


def launch_triton_bwd(
    dy: Tensor,  # (..., D) contiguous
    x: Tensor,  # (..., D) contiguous
    bias: Tensor,  # (D,) fp32
    dx: Tensor,  # (..., D)
    dbias: Tensor,  # (D,) fp32, or empty: not wanted
) -> None:
    """Fills dx and dbias."""
    D = x.shape[-1]
    M, tile = x.numel() // D, tile_of(D, TUNING["BWD_ELEMENTS"])
    groups = triton.cdiv(D, tile["C"])
    most = most_programs(x, TUNING["PROGRAMS"])
    programs = min(triton.cdiv(M, tile["R"]), max(1, most // groups))
    partial = None
    if dbias.numel():
        partial = torch.empty((programs, D), dtype=torch.float32, device=x.device)
    bias_gelu_bwd_kernel[(programs, groups)](dy, x, bias, dx, partial, M, **tile)
    if partial is not None:
        bias_gelu_sum_kernel[(triton.cdiv(D, TUNING["SUM_COLUMNS"]),)](
            partial, dbias, programs, **sums_of(D)
        )
