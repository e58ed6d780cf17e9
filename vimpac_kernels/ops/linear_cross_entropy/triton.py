"""The pass of linear_cross_entropy between its matrix products, in Triton: z becomes dz in place.

A program owns one row at a time and holds it in registers, in pieces of PIECE columns: bias,
maximum, sum, loss, then dz written where z was read, so that z is read once and written once. The
grid is persistent: a program adds up the dz of its rows by column in registers, and a second kernel
adds the programs in order, so that results repeat bit for bit; hits and targets are integers,
counted by atomics. Any V works, but rows of more than 12,288 columns may spill. Bound by memory:
one read and one write of z.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vimpac_kernels.runtime.triton_common import add_programs, most_programs

TUNING = {
    "PROGRAMS": 1,  # on a multiprocessor, whose registers one fills
    "PIECE": 4096,  # columns at most: with 16 warps three of them do not spill
    "THREAD_COLUMNS": 8,  # of a piece: 16 bytes of a 16-bit type
    "SUM_COLUMNS": 32,  # of a program that adds column sums: a cache line
    "SUM_CHUNK": 64,  # programs whose sums it adds at a time
}


@triton.jit
def _load_piece(
    at,  # the row
    bias,  # (V,) fp32 or None
    column,  # (PIECE,)
    START: tl.constexpr,  # column[0]
    V: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """A piece of z + bias in fp32, -inf beyond V. Masks only where needed: they split loads."""
    END: tl.constexpr = START + column.shape[0]
    x = tl.load(at + column, mask=None if END <= STRIDE else column < STRIDE)
    x = x.to(tl.float32)
    if bias is not None:
        x += tl.load(bias + column, mask=None if END <= V else column < V)
    if END > V:
        x = tl.where(column < V, x, float("-inf"))
    return x


@triton.jit
def _store_piece(at, value, column, START: tl.constexpr, STRIDE: tl.constexpr):
    END: tl.constexpr = START + column.shape[0]
    value = value.to(at.dtype.element_ty)
    tl.store(at + column, value, mask=None if END <= STRIDE else column < STRIDE)


@triton.jit(do_not_specialize=["rows", "first", "ignore_index", "smoothing", "z_loss"])
def linear_cross_entropy_fwd_kernel(
    z,  # (rows, STRIDE)
    bias,  # (V,) fp32 or None
    target,  # (R,) int32 or int64
    positions,  # (M,) int32 or None
    count,  # 0-d int32 or None
    row_scale,  # (M,) fp32 or None
    losses,  # (M,) fp32
    counts,  # (2,) int32: hits, targets
    partial,  # (programs, STRIDE) fp32 or None
    rows,
    first,
    ignore_index,
    smoothing,
    z_loss,
    GRADIENT: tl.constexpr,
    SMOOTH: tl.constexpr,
    V: tl.constexpr,
    STRIDE: tl.constexpr,
    PIECE: tl.constexpr,
):
    PIECES: tl.constexpr = (STRIDE + PIECE - 1) // PIECE
    column = tl.arange(0, PIECE)
    sums = ()
    for _ in tl.static_range(PIECES):
        sums = sums + (tl.zeros((PIECE,), tl.float32),)  # type: ignore[assignment]
    hits, targets = 0, 0
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        number = first + row
        at = z + tl.cast(row, tl.int64) * STRIDE
        counted = True
        if count is not None:
            counted = number < tl.load(count)
        source = tl.cast(number, tl.int64)
        if positions is not None:
            source = tl.load(positions + number, mask=counted, other=0).to(tl.int64)
        known = counted & (source >= 0)
        label = tl.load(target + source, mask=known, other=0).to(tl.int64)
        counted = counted & ((source < 0) | (label != ignore_index))
        targets += counted.to(tl.int32)
        if counted & (source >= 0) & (label >= 0) & (label < V):
            hot = label.to(tl.int32)
            label_logit = tl.load(at + hot).to(tl.float32)
            if bias is not None:
                label_logit += tl.load(bias + hot)
            x = ()
            tops = tl.full((PIECE,), float("-inf"), tl.float32)
            for i in tl.static_range(PIECES):
                x = x + (_load_piece(at, bias, column + i * PIECE, i * PIECE, V, STRIDE),)  # type: ignore[assignment]
                tops = tl.maximum(tops, x[i])
            top = tl.max(tops, 0)
            if label_logit == top:  # a hit, unless a column before it is as large
                before = tl.full((PIECE,), float("-inf"), tl.float32)
                for i in tl.static_range(PIECES):
                    earlier = tl.where(column + i * PIECE < hot, x[i], float("-inf"))
                    before = tl.maximum(before, earlier)
                hits += (tl.max(before, 0) < top).to(tl.int32)
            mean = 0.0
            if SMOOTH:
                plain = tl.zeros((PIECE,), tl.float32)
                for i in tl.static_range(PIECES):
                    plain += tl.where(column + i * PIECE < V, x[i], 0.0)
                mean = tl.sum(plain, 0) / V
            e = ()
            totals = tl.zeros((PIECE,), tl.float32)
            for i in tl.static_range(PIECES):
                e = e + (tl.exp(x[i] - top),)  # type: ignore[assignment]
                totals += e[i]
            total = tl.sum(totals, 0)
            lse = top + tl.log(total)
            loss = (1.0 - smoothing) * (lse - label_logit) + smoothing * (lse - mean)
            loss += z_loss * lse * lse
            tl.store(losses + number, loss)
            if GRADIENT:
                factor = 1.0
                if row_scale is not None:
                    factor = tl.load(row_scale + number)
                p_factor = (1.0 + 2.0 * z_loss * lse) / total * factor
                one, even = (1.0 - smoothing) * factor, smoothing / V * factor
                new_sums = ()
                for i in tl.static_range(PIECES):
                    here = column + i * PIECE
                    dz = e[i] * p_factor - even - tl.where(here == hot, one, 0.0)
                    if i * PIECE + PIECE > V:
                        dz = tl.where(here < V, dz, 0.0)
                    _store_piece(at, dz, here, i * PIECE, STRIDE)
                    new_sums = new_sums + (sums[i] + dz,)  # type: ignore[assignment]
                sums = new_sums
        else:
            tl.store(losses + number, tl.where(counted, float("nan"), 0.0))
            if GRADIENT:
                for i in tl.static_range(PIECES):
                    zero = tl.zeros((PIECE,), tl.float32)
                    _store_piece(at, zero, column + i * PIECE, i * PIECE, STRIDE)
    tl.atomic_add(counts, hits)
    tl.atomic_add(counts + 1, targets)
    if partial is not None:
        at = partial + tl.program_id(0) * STRIDE
        for i in tl.static_range(PIECES):
            _store_piece(at, sums[i], column + i * PIECE, i * PIECE, STRIDE)


@triton.jit(do_not_specialize=["programs"])
def linear_cross_entropy_dbias_kernel(
    partial,  # (programs, STRIDE) fp32
    dbias,  # (V,) fp32, added to
    programs,
    V: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    live = column < V
    total = add_programs(partial, programs, column, live, STRIDE, CHUNK)
    total += tl.load(dbias + column, mask=live)
    tl.store(dbias + column, total, mask=live)


def tile_of(stride: int) -> dict[str, int]:
    """The columns of a piece and its warps."""
    piece = min(TUNING["PIECE"], triton.next_power_of_2(stride))
    warps = max(1, piece // (32 * TUNING["THREAD_COLUMNS"]))
    return {"STRIDE": stride, "PIECE": piece, "num_warps": min(32, warps)}


def sums_of(V: int, stride: int) -> dict[str, int]:
    chunk, columns = TUNING["SUM_CHUNK"], TUNING["SUM_COLUMNS"]
    return {"V": V, "STRIDE": stride, "COLUMNS": columns, "CHUNK": chunk}


def launch_triton_fwd(
    *,
    z: Tensor,  # (m, stride) contiguous
    V: int,
    first: int,
    bias: Tensor | None,  # (V,) fp32
    target: Tensor,  # (R,) int32 or int64
    positions: Tensor | None,  # (M,) int32
    count: Tensor | None,  # 0-d int32
    row_scale: Tensor | None,  # (M,) fp32
    gradient: bool,
    losses: Tensor,  # (M,) fp32
    counts: Tensor,  # (2,) int32
    dbias: Tensor,  # (V,) fp32, or empty: not wanted
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> None:
    """Finishes a chunk of logits; see vimpac_kernels/_linear_cross_entropy.py."""
    rows, stride = z.shape
    programs = min(rows, most_programs(z, TUNING["PROGRAMS"]))
    partial = None
    if gradient and dbias.numel():
        partial = torch.empty((programs, stride), dtype=torch.float32, device=z.device)
    linear_cross_entropy_fwd_kernel[(programs,)](
        z, bias, target, positions, count, row_scale, losses, counts, partial, rows, first,
        ignore_index, label_smoothing, z_loss,
        GRADIENT=gradient, SMOOTH=label_smoothing > 0, V=V, **tile_of(stride),
    )  # fmt: skip
    if partial is not None:
        sums = sums_of(V, stride)
        linear_cross_entropy_dbias_kernel[(triton.cdiv(V, sums["COLUMNS"]),)](
            partial, dbias, programs, **sums
        )
