"""Axial attention in Triton: one program owns one tile of whole lines of one head of one clip.

A tile has BLOCK rows and holds floor(BLOCK / L) lines of L tokens, block-diagonally; [CLS] stays
outside it, as one more key column and one query per line on CUDA cores. q, k, v are read once,
out is written once; the backward recomputes the probabilities, writes the packed dqkv and reads q,
k and dout a second time, from the L1 cache: registers, of which they would take half, hold twice as
many programs instead. A tile takes COLUMNS columns of a head at a time, so that registers do not
grow with the head dim. All axes of a call run in one launch: their units write disjoint heads. Sums
over tiles, for [CLS] and the bias' gradient, are in axial_sums.py. Bound by memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vimpac_kernels.ops.axial_attention.triton_sums import Tiles
from vimpac_kernels.ops.axial_attention.triton_tiles import (
    add_products,
    keep_factors,
    load_rows,
    masks,
    products,
    softmax,
    tile_rows,
    unit,
)
from vimpac_kernels.runtime import philox

# Tuning constants, read at each launch. "16x2": of a tile of 16 rows of elements
# of 2 bytes; a softmax row never leaves its warp if a warp has 16 rows. See benchmarks/NOTES.md.
TUNING = {
    "ROWS": 16,  # of a tile at least, the fewest of a tensor-core product
    "FWD_WARPS_16x2": 1,  # the fewest without a spill, here and below
    "FWD_WARPS_32x2": 2,
    "FWD_WARPS_64x2": 4,
    "FWD_WARPS_16x4": 4,  # fp32 products hold their operands in registers, which takes more warps
    "FWD_WARPS_32x4": 8,
    "FWD_WARPS_64x4": 8,  # each may have 255 registers, more warps fewer
    "BWD_WARPS_16x2": 2,
    "BWD_WARPS_32x2": 4,
    "BWD_WARPS_64x2": 8,
    "BWD_WARPS_16x4": 4,
    "BWD_WARPS_32x4": 8,
    "BWD_WARPS_64x4": 8,
    "FWD_COLUMNS_16x2": 64,  # of a head at once: more take more registers
    "FWD_COLUMNS_32x2": 64,
    "FWD_COLUMNS_64x2": 64,
    "FWD_COLUMNS_16x4": 64,
    "FWD_COLUMNS_32x4": 32,
    "FWD_COLUMNS_64x4": 16,
    "BWD_COLUMNS_16x2": 64,
    "BWD_COLUMNS_32x2": 64,
    "BWD_COLUMNS_64x2": 32,
    "BWD_COLUMNS_16x4": 32,
    "BWD_COLUMNS_32x4": 32,
    "BWD_COLUMNS_64x4": 16,
    "WIDE_COLUMNS": 32,  # of a head with more, which takes several rounds
    "FWD_HELD_BYTES": 4096,  # of a tile of v up to which it is loaded before the softmax
    "BWD_HELD_BYTES": 0,  # of one of q up to which nothing is loaded twice: registers halve warps
    "STAGES": 1,  # of loads in flight where a head takes several rounds of columns
}
# Arguments whose values compile nothing anew; strides do, as 16-byte loads need to know of them.
_INTEGERS = ["B", "T", "H", "W", "N", "heads", "tiles0", "tiles1", "tiles2", "slots", "threshold"]


@triton.jit(do_not_specialize=_INTEGERS, do_not_specialize_on_alignment=["seed_at"])
def axial_attention_fwd_kernel(
    qkv,  # (B, S, 3, N, D)
    out,  # (B, S, N, D)
    partial,  # (B, N, slots, 1, D) fp32: sums over the tile's lines of [CLS]'s outputs; or None
    padding,  # (B, T*H*W) uint8 or None
    seed_at,  # 0-d int64 or None
    B, T, H, W, N, heads, tiles0, tiles1, tiles2, slots,
    stride_b, stride_s, stride_3, stride_n,
    scale, threshold, keep_scale,
    AXES: tl.constexpr,
    HAS_CLS: tl.constexpr,
    PADDED: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
    WIDEN: tl.constexpr,
    COLUMNS: tl.constexpr,  # of a head at a time
    HELD: tl.constexpr,  # v is loaded before the softmax; COLUMNS = D then
):  # fmt: skip
    clip, head, tile, axis, length, lines, tiles = unit(
        T, H, W, heads, tiles0, tiles1, tiles2, AXES, B, BLOCK
    )
    line, index, token, live, slot, held = tile_rows(tile, axis, length, lines, T, H, W, BLOCK)
    allowed, own, exists = masks(line, live, slot, held, tile, lines, token, padding, clip,
                                  T * H * W, PADDED, SLOTS)  # fmt: skip
    first = 1 if HAS_CLS else 0
    S = T * H * W + first
    q_at = qkv + clip.to(tl.int64) * stride_b + head.to(tl.int64) * stride_n
    k_at = q_at + stride_3
    v_at = k_at + stride_3
    if HELD:
        v, v_cls = load_rows(v_at, token, first, stride_s, live, 0, COLUMNS)
    s, s_column = tl.zeros((BLOCK, BLOCK), tl.float32), tl.zeros((BLOCK,), tl.float32)
    s_row, s_self = s_column, 0.0
    for start in range(0, D, COLUMNS):
        q, q_cls = load_rows(q_at, token, first, stride_s, live, start, COLUMNS)
        k, k_cls = load_rows(k_at, token, first, stride_s, live, start, COLUMNS)
        s, s_column, s_row, s_self = add_products(
            s, s_column, s_row, s_self, q, k, q_cls, k_cls, HAS_CLS, WIDEN
        )
    p, column, row, self = softmax(s, s_column, s_row, s_self, allowed, own, scale, HAS_CLS)
    if DROPOUT:
        first_line = clip * lines
        f_p, f_column, f_row, f_self = keep_factors(
            tl.load(seed_at), threshold, line + first_line, index,
            tl.arange(0, SLOTS) + tile * held + first_line, length, head | (axis << 16), keep_scale,
            SLOTS, BLOCK,
        )  # fmt: skip
        p, column, row, self = p * f_p, column * f_column, row * f_row, self * f_self
    p, self_sum = p.to(qkv.dtype.element_ty), tl.sum(tl.where(exists, self, 0.0), 0)
    at = out + (clip.to(tl.int64) * S * N + head) * D + (token + first)[:, None] * (N * D)
    part = ((clip * N + head).to(tl.int64) * slots + tile) * D
    for start in range(0, D, COLUMNS):
        if not HELD:
            v, v_cls = load_rows(v_at, token, first, stride_s, live, start, COLUMNS)
        o, o_cls = products(p, column, row, self_sum, v, v_cls, HAS_CLS, WIDEN)
        d = start + tl.arange(0, COLUMNS)
        tl.store(at + d[None, :], o.to(out.dtype.element_ty), mask=live[:, None])
        if HAS_CLS:
            tl.store(partial + part + d, o_cls)


@triton.jit
def _store_gradient(
    at,  # (BLOCK, 1): the rows of dqkv
    d,  # (COLUMNS,)
    partial,
    part,  # where the tile's sums for [CLS] go there
    columns,  # or None
    sums,  # where the sums over all rows go there
    weights,  # as `products` takes them
    x,  # (BLOCK, COLUMNS)
    x_cls,  # (COLUMNS,) fp32
    live,
    HAS_CLS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    y, y_cls = products(*weights, x, x_cls, HAS_CLS, WIDEN)
    tl.store(at + d[None, :], y.to(at.dtype.element_ty), mask=live[:, None])
    if HAS_CLS:
        tl.store(partial + part + d, y_cls)
    if columns is not None:  # rows that do not exist are zero
        tl.store(columns + sums + d, tl.sum(y, 0) + y_cls)


@triton.jit(do_not_specialize=_INTEGERS, do_not_specialize_on_alignment=["seed_at"])
def axial_attention_bwd_kernel(
    qkv,  # (B, S, 3, N, D)
    dout,  # (B, S, N, D) contiguous
    dqkv,  # (B, S, 3, N, D) contiguous
    partial,  # (B, N, slots, 3, D) fp32: the tile's part of dq, dk, dv of [CLS]; or None
    columns,  # (B, N, slots, 2, D) fp32: its part of the sums of dq and dv over all rows; or None
    padding,  # (B, T*H*W) uint8 or None
    seed_at,  # 0-d int64 or None
    B, T, H, W, N, heads, tiles0, tiles1, tiles2, slots,
    stride_b, stride_s, stride_3, stride_n,
    scale, threshold, keep_scale,
    AXES: tl.constexpr,
    HAS_CLS: tl.constexpr,
    PADDED: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
    WIDEN: tl.constexpr,
    COLUMNS: tl.constexpr,  # of a head at a time
    HELD: tl.constexpr,  # nothing is loaded twice; COLUMNS = D then
):  # fmt: skip
    clip, head, tile, axis, length, lines, tiles = unit(
        T, H, W, heads, tiles0, tiles1, tiles2, AXES, B, BLOCK
    )
    line, index, token, live, slot, held = tile_rows(tile, axis, length, lines, T, H, W, BLOCK)
    allowed, own, exists = masks(line, live, slot, held, tile, lines, token, padding, clip,
                                  T * H * W, PADDED, SLOTS)  # fmt: skip
    if DROPOUT:  # here the fewest registers are live
        first_line = clip * lines
        f_p, f_column, f_row, f_self = keep_factors(
            tl.load(seed_at), threshold, line + first_line, index,
            tl.arange(0, SLOTS) + tile * held + first_line, length, head | (axis << 16), keep_scale,
            SLOTS, BLOCK,
        )  # fmt: skip
    first = 1 if HAS_CLS else 0
    S = T * H * W + first
    q_at = qkv + clip.to(tl.int64) * stride_b + head.to(tl.int64) * stride_n
    k_at = q_at + stride_3
    v_at = k_at + stride_3
    do_at = dout + (clip.to(tl.int64) * S * N + head) * D
    if HELD:
        q, q_cls = load_rows(q_at, token, first, stride_s, live, 0, COLUMNS)
        k, k_cls = load_rows(k_at, token, first, stride_s, live, 0, COLUMNS)
        v, v_cls = load_rows(v_at, token, first, stride_s, live, 0, COLUMNS)
        do, do_cls = load_rows(do_at, token, first, N * D, live, 0, COLUMNS)
    s, s_column = tl.zeros((BLOCK, BLOCK), tl.float32), tl.zeros((BLOCK,), tl.float32)
    s_row, s_self = s_column, 0.0
    g, g_column, g_row, g_self = s, s_column, s_row, s_self  # dout v^T, as s is q k^T
    for start in range(0, D, COLUMNS):
        if not HELD:
            q, q_cls = load_rows(q_at, token, first, stride_s, live, start, COLUMNS)
            k, k_cls = load_rows(k_at, token, first, stride_s, live, start, COLUMNS)
            v, v_cls = load_rows(v_at, token, first, stride_s, live, start, COLUMNS)
            do, do_cls = load_rows(do_at, token, first, N * D, live, start, COLUMNS)
        s, s_column, s_row, s_self = add_products(
            s, s_column, s_row, s_self, q, k, q_cls, k_cls, HAS_CLS, WIDEN
        )
        g, g_column, g_row, g_self = add_products(
            g, g_column, g_row, g_self, do, v, do_cls / lines, v_cls, HAS_CLS, WIDEN
        )
    p, column, row, self = softmax(s, s_column, s_row, s_self, allowed, own, scale, HAS_CLS)
    w, w_column, w_row, w_self = p, column, row, self
    if DROPOUT:
        w, w_column, w_row, w_self = p * f_p, column * f_column, row * f_row, self * f_self
    g *= w
    delta = tl.sum(g, 1)
    ds_column, ds_row, w_sum, ds_sum = column, row, 0.0, 0.0
    if HAS_CLS:
        g_column, g_row, g_self = g_column * w_column, g_row * w_row, g_self * w_self
        delta += g_column
        ds_column = (g_column - column * delta) * scale
        row_delta = tl.sum(tl.where(own, g_row[None, :], 0.0), 1) + g_self  # (SLOTS,)
        ds_row = (g_row - row * tl.sum(tl.where(own, row_delta[:, None], 0.0), 0)) * scale
        ds_sum = tl.sum(tl.where(exists, g_self - self * row_delta, 0.0), 0) * scale
        w_sum = tl.sum(tl.where(exists, w_self, 0.0), 0)
    ds = ((g - p * delta[:, None]) * scale).to(qkv.dtype.element_ty)  # without, fp16 may overflow
    w = w.to(qkv.dtype.element_ty)
    for_v = (tl.trans(w), w_row, w_column, w_sum)
    for_k = (tl.trans(ds), ds_row, ds_column, ds_sum)
    for_q = (ds, ds_column, ds_row, ds_sum)
    at = dqkv + (clip.to(tl.int64) * S * 3 * N + head) * D + (token + first)[:, None] * (3 * N * D)
    slot = (clip * N + head).to(tl.int64) * slots + tile
    part, sums = 3 * D * slot, 2 * D * slot
    for start in range(0, D, COLUMNS):
        d = start + tl.arange(0, COLUMNS)
        if not HELD:
            do, do_cls = load_rows(do_at, token, first, N * D, live, start, COLUMNS)
        _store_gradient(
            at + 2 * N * D, d, partial, part + 2 * D, columns, sums + D, for_v, do, do_cls / lines,
            live, HAS_CLS, WIDEN,
        )  # fmt: skip
        if not HELD:
            q, q_cls = load_rows(q_at, token, first, stride_s, live, start, COLUMNS)
        _store_gradient(
            at + N * D, d, partial, part + D, None, 0, for_k, q, q_cls, live, HAS_CLS, WIDEN
        )
        if not HELD:
            k, k_cls = load_rows(k_at, token, first, stride_s, live, start, COLUMNS)
        _store_gradient(at, d, partial, part, columns, sums, for_q, k, k_cls, live, HAS_CLS, WIDEN)


def launch_arguments(
    qkv: Tensor,
    grid: Sequence[int],
    axes: Sequence[int],
    key_padding_mask: Tensor | None,
    threshold: int,
    scale: float,
    direction: str,
) -> tuple[int, list[Any], dict[str, Any], Tiles]:
    """Programs, scalar arguments and compile-time arguments of a call, and its tiles."""
    B, S, _, N, D = qkv.shape
    lengths = [grid[axis] for axis in axes]
    block = max(TUNING["ROWS"], triton.next_power_of_2(max(lengths)))
    tokens = grid[0] * grid[1] * grid[2]
    tiles = [-(-(tokens // length) // (block // length)) for length in lengths]
    per_axis = tiles + [1] * (3 - len(tiles))
    heads = N // len(axes)
    ids = sum(axis << 2 * i for i, axis in enumerate(axes))
    scalars = [B, *grid, N, heads, *per_axis, max(tiles)]
    scalars += [qkv.stride(0), qkv.stride(1), qkv.stride(2), qkv.stride(3)]
    scalars += [scale, threshold, philox.dropout_scale(threshold)]
    size = qkv.element_size()
    most = TUNING[f"{direction}_COLUMNS_{block}x{size}"]
    columns = D if D <= most else min(most, TUNING["WIDE_COLUMNS"])
    vectors = block * columns * size // 16
    constants = {
        "AXES": ids,
        "HAS_CLS": tokens + 1 == S,
        "PADDED": key_padding_mask is not None,
        "DROPOUT": threshold > 0,
        "BLOCK": block,
        "SLOTS": triton.next_power_of_2(block // min(lengths)),
        "D": D,
        "WIDEN": bool(triton.knobs.runtime.interpret),
        "COLUMNS": columns,
        "HELD": columns == D and block * D * size <= TUNING[f"{direction}_HELD_BYTES"],
        "num_warps": min(TUNING[f"{direction}_WARPS_{block}x{size}"], vectors // 32),
        "num_stages": TUNING["STAGES"],
    }
    return B * heads * sum(tiles), scalars, constants, Tiles(ids, heads, per_axis, max(tiles))


def launch_triton_fwd(
    qkv: Tensor,  # (B, S, 3, N, Dh)
    key_padding_mask: Tensor | None,  # (B, T, H, W) bool, contiguous
    seed: Tensor | None,  # 0-d int64
    grid: Sequence[int],
    axes: Sequence[int],  # of each group of heads: 0 T, 1 H, 2 W
    scale: float,
    threshold: int,
    out: Tensor,  # (B, S, N, Dh)
) -> None:
    """Launches the forward kernels, which fill out."""
    programs, scalars, constants, tiles = launch_arguments(
        qkv, grid, axes, key_padding_mask, threshold, scale, "FWD"
    )
    partial = tiles.partial_sums(qkv, 1) if constants["HAS_CLS"] else None
    padding = None if key_padding_mask is None else key_padding_mask.view(torch.uint8)
    axial_attention_fwd_kernel[(programs,)](qkv, out, partial, padding, seed, *scalars, **constants)
    if partial is not None:
        tiles.add(partial, out, grid, mean=True)


def launch_triton_bwd(
    dout: Tensor,  # (B, S, N, Dh)
    qkv: Tensor,  # (B, S, 3, N, Dh)
    key_padding_mask: Tensor | None,
    seed: Tensor | None,
    grid: Sequence[int],
    axes: Sequence[int],
    scale: float,
    threshold: int,
    dqkv: Tensor,  # (B, S, 3, N, Dh)
    dbias: Tensor,  # (3, N, Dh) fp32, or empty: not wanted
) -> None:
    """Launches the backward kernels: they fill dqkv, and dbias with its sum over clips and rows.

    The part of k is zero: a bias there moves all scores of a query alike.
    """
    B, _, _, N, D = qkv.shape
    programs, scalars, constants, tiles = launch_arguments(
        qkv, grid, axes, key_padding_mask, threshold, scale, "BWD"
    )
    partial = tiles.partial_sums(qkv, 3) if constants["HAS_CLS"] else None
    columns = tiles.partial_sums(qkv, 2) if dbias.numel() else None
    padding = None if key_padding_mask is None else key_padding_mask.view(torch.uint8)
    axial_attention_bwd_kernel[(programs,)](
        qkv, dout, dqkv, partial, columns, padding, seed, *scalars, **constants
    )
    if partial is not None:
        tiles.add(partial, dqkv, grid, mean=False)
    if columns is not None:
        of_clips = columns.new_empty(B, 1, 2, N, D)
        tiles.add(columns, of_clips, grid, mean=False)
        torch.sum(of_clips, (0, 1), out=dbias[::2])
        dbias[1].zero_()
