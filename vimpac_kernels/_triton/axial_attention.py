"""Axial attention in Triton: one program owns one tile of whole lines of one head of one clip.

A tile has BLOCK rows and holds floor(BLOCK / L) lines of L tokens, block-diagonally; [CLS] stays
outside it, as one more key column and one query per line on CUDA cores. q, k, v are read once,
out is written once; the backward reads q, k, v, dout once, recomputes the probabilities and writes
the packed dqkv. All axes of a call run in one launch: their units write disjoint heads.
[CLS] needs sums over all lines of an axis: each tile writes fp32 partials to a slot of its own, and
a second small kernel adds them in order, so results repeat bit for bit. Bound by memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vimpac_kernels._triton.axial_tiles import (
    dot,
    keep_factors,
    load_rows,
    masks,
    pick,
    probabilities,
    tile_rows,
    unit,
)

# (rows of a tile, bytes of an element) -> warps of (forward, backward) at head dims up to 64: the
# fewest without a spill. With one warp per 16 rows a softmax row never leaves its warp. fp32
# products run on CUDA cores with their operands in registers, which takes more warps. Tiles of 64
# rows in fp32 or at head dim 128 fill the registers of a multiprocessor and spill a little, in
# fp32 at 128 more: benchmarks/NOTES.md.
WARPS = {
    (16, 2): (1, 2),
    (32, 2): (2, 4),
    (64, 2): (4, 8),
    (16, 4): (4, 8),
    (32, 4): (8, 8),
    (64, 4): (8, 8),
}
# Bytes of a tile of q from which on it does not stay in registers beside k, v and dout: each is
# loaded where it is used, from the L1 cache the second time.
REREAD_BYTES = 8192
_AXIS_IDS = {"T": 0, "H": 1, "W": 2}


@triton.jit
def axial_attention_fwd_kernel(
    qkv,  # (B, S, 3, N, D)
    out,  # (B, S, N, D)
    partial,  # (B, N, max tiles, D) fp32: sums over the tile's lines of [CLS]'s outputs
    padding,  # (B, T*H*W) uint8 or unused
    seed_at,  # 0-d int64 or unused
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
    REREAD: tl.constexpr,
):  # fmt: skip
    clip, head, tile, axis, length, lines, tiles = unit(
        T, H, W, heads, tiles0, tiles1, tiles2, AXES, B, BLOCK
    )
    line, index, token, live, slot, held = tile_rows(tile, axis, length, lines, T, H, W, BLOCK)
    first = 1 if HAS_CLS else 0
    q_base = qkv + clip.to(tl.int64) * stride_b + head.to(tl.int64) * stride_n
    k_base = q_base + stride_3
    v_base = k_base + stride_3
    q, q_cls = load_rows(q_base, token, first, stride_s, live, D)
    k, k_cls = load_rows(k_base, token, first, stride_s, live, D)
    if not REREAD:
        v, v_cls = load_rows(v_base, token, first, stride_s, live, D)
    d = tl.arange(0, D)
    allowed, own, exists = masks(line, live, slot, held, tile, lines, token, padding, clip,
                                  T * H * W, PADDED, SLOTS)  # fmt: skip
    p, column, row, self = probabilities(q, k, q_cls, k_cls, allowed, own, scale, HAS_CLS, WIDEN)
    if DROPOUT:
        first_line = clip * lines
        f_p, f_column, f_row, f_self = keep_factors(
            tl.load(seed_at), threshold, line + first_line, index,
            tl.arange(0, SLOTS) + tile * held + first_line, length, head | (axis << 16), keep_scale,
            SLOTS, BLOCK,
        )  # fmt: skip
        p, column, row, self = p * f_p, column * f_column, row * f_row, self * f_self
    if REREAD:
        v, v_cls = load_rows(v_base, token, first, stride_s, live, D)
    if HAS_CLS:
        weight = tl.sum(tl.where(exists, self, 0.0), 0)
        total = tl.sum(row[:, None] * v.to(tl.float32), 0) + weight * v_cls
        tl.store(partial + ((clip * N + head).to(tl.int64) * slots + tile) * D + d, total)
    o = dot(p.to(qkv.dtype.element_ty), v, WIDEN)
    if HAS_CLS:
        o += column[:, None] * v_cls[None, :]
    S = T * H * W + first
    at = out + (clip.to(tl.int64) * S * N + head) * D
    at += (token + first)[:, None] * (N * D) + d[None, :]
    tl.store(at, o.to(out.dtype.element_ty), mask=live[:, None])


@triton.jit
def axial_attention_bwd_kernel(
    qkv,  # (B, S, 3, N, D)
    dout,  # (B, S, N, D) contiguous
    dqkv,  # (B, S, 3, N, D) contiguous
    partial,  # (B, N, max tiles, 3, D) fp32: the tile's part of dq, dk, dv of [CLS]
    padding,  # (B, T*H*W) uint8 or unused
    seed_at,  # 0-d int64 or unused
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
    REREAD: tl.constexpr,
):  # fmt: skip
    clip, head, tile, axis, length, lines, tiles = unit(
        T, H, W, heads, tiles0, tiles1, tiles2, AXES, B, BLOCK
    )
    line, index, token, live, slot, held = tile_rows(tile, axis, length, lines, T, H, W, BLOCK)
    first = 1 if HAS_CLS else 0
    S = T * H * W + first
    q_base = qkv + clip.to(tl.int64) * stride_b + head.to(tl.int64) * stride_n
    k_base = q_base + stride_3
    v_base = k_base + stride_3
    d = tl.arange(0, D)
    q, q_cls = load_rows(q_base, token, first, stride_s, live, D)
    k, k_cls = load_rows(k_base, token, first, stride_s, live, D)
    dout_base = dout + (clip.to(tl.int64) * S * N + head) * D
    if not REREAD:
        v, v_cls = load_rows(v_base, token, first, stride_s, live, D)
        do, do_cls = load_rows(dout_base, token, first, N * D, live, D)
    allowed, own, exists = masks(line, live, slot, held, tile, lines, token, padding, clip,
                                  T * H * W, PADDED, SLOTS)  # fmt: skip
    p, column, row, self = probabilities(q, k, q_cls, k_cls, allowed, own, scale, HAS_CLS, WIDEN)
    dropped, dropped_column, dropped_row, dropped_self = p, column, row, self
    if DROPOUT:
        first_line = clip * lines
        f_p, f_column, f_row, f_self = keep_factors(
            tl.load(seed_at), threshold, line + first_line, index,
            tl.arange(0, SLOTS) + tile * held + first_line, length, head | (axis << 16), keep_scale,
            SLOTS, BLOCK,
        )  # fmt: skip
        dropped, dropped_column, dropped_row, dropped_self = (
            p * f_p, column * f_column, row * f_row, self * f_self
        )  # fmt: skip
    at = dqkv + (clip.to(tl.int64) * S * 3 * N + head) * D
    at += (token + first)[:, None] * (3 * N * D) + d[None, :]
    part = partial + ((clip * N + head).to(tl.int64) * slots + tile) * (3 * D) + d
    # Registers decide the order: a gradient is stored before the next product, which is the last
    # to need its operand, and none of the dropout's factors outlives `dropped`.
    if REREAD:
        do, do_cls = load_rows(dout_base, token, first, N * D, live, D)
    do_cls /= lines
    dv = dot(tl.trans(dropped.to(do.dtype)), do, WIDEN)
    if HAS_CLS:
        dv += dropped_row[:, None] * do_cls[None, :]
        weight = tl.sum(tl.where(exists, dropped_self, 0.0), 0)
        dv_cls = tl.sum(dropped_column[:, None] * do.to(tl.float32), 0) + weight * do_cls
        tl.store(part + 2 * D, dv_cls)
    tl.store(at + 2 * N * D, dv.to(dqkv.dtype.element_ty), mask=live[:, None])
    if REREAD:
        v, v_cls = load_rows(v_base, token, first, stride_s, live, D)
    if HAS_CLS:
        g_column = dropped_column * tl.sum(do.to(tl.float32) * v_cls[None, :], 1)
        g_row = dropped_row * tl.sum(v.to(tl.float32) * do_cls[None, :], 1)
    g = dropped * dot(do, tl.trans(v), WIDEN)
    delta = tl.sum(g, 1)
    if HAS_CLS:
        g_self = dropped_self * tl.sum(v_cls * do_cls, 0)
        delta += g_column
        ds_column = g_column - column * delta
        row_delta = tl.sum(tl.where(own, g_row[None, :], 0.0), 1) + g_self  # (SLOTS,)
        ds_row = g_row - row * tl.sum(tl.where(own, row_delta[:, None], 0.0), 0)
        ds_lines = tl.sum(tl.where(exists, g_self - self * row_delta, 0.0), 0)
    ds = (g - p * delta[:, None]).to(do.dtype)
    if REREAD:
        q, q_cls = load_rows(q_base, token, first, stride_s, live, D)
    if HAS_CLS:
        dk_cls = tl.sum(ds_column[:, None] * q.to(tl.float32), 0) + ds_lines * q_cls
        tl.store(part + D, dk_cls * scale)
    dk = dot(tl.trans(ds), q, WIDEN)
    if HAS_CLS:
        dk += ds_row[:, None] * q_cls[None, :]
    tl.store(at + N * D, (dk * scale).to(dqkv.dtype.element_ty), mask=live[:, None])
    if REREAD:
        k, k_cls = load_rows(k_base, token, first, stride_s, live, D)
    if HAS_CLS:
        dq_cls = tl.sum(ds_row[:, None] * k.to(tl.float32), 0) + ds_lines * k_cls
        tl.store(part, dq_cls * scale)
    dq = dot(ds, k, WIDEN)
    if HAS_CLS:
        dq += ds_column[:, None] * k_cls[None, :]
    tl.store(at, (dq * scale).to(dqkv.dtype.element_ty), mask=live[:, None])


@triton.jit
def axial_attention_cls_kernel(
    partial,  # (B, N, slots, parts, D) fp32
    out,  # (B, S, parts, N, D): row 0 is written
    T, H, W, S, N, heads, tiles0, tiles1, tiles2, slots,
    AXES: tl.constexpr,
    MEAN: tl.constexpr,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Adds the partials of one (clip, head, part) in order of their slots."""
    pid = tl.program_id(0)
    part = pid % PARTS
    head = pid // PARTS % N
    clip = (pid // (PARTS * N)).to(tl.int64)
    group = head // heads
    tiles = pick(group, tiles0, tiles1, tiles2)
    d = tl.arange(0, D)
    at = partial + ((clip * N + head) * slots * PARTS + part) * D + d[None, :]
    total = tl.zeros((D,), tl.float32)
    start = 0
    while start < tiles:
        slot = start + tl.arange(0, CHUNK)[:, None]
        total += tl.sum(tl.load(at + slot * (PARTS * D), mask=slot < tiles, other=0.0), 0)
        start += CHUNK
    if MEAN:
        axis = pick(group, AXES % 4, AXES // 4 % 4, AXES // 16)
        total = total / (T * H * W // pick(axis, T, H, W))
    tl.store(out + ((clip * S * PARTS + part) * N + head) * D + d, total.to(out.dtype.element_ty))


def _launch_arguments(
    qkv: Tensor,
    grid: Sequence[int],
    axes: str,
    key_padding_mask: Tensor | None,
    threshold: int,
    scale: float,
) -> tuple[int, list[Any], dict[str, Any], list[int]]:
    """Programs, scalar arguments, compile-time arguments and tiles per axis of a call."""
    B, S, _, N, D = qkv.shape
    names = axes.split("|")
    lengths = [grid[_AXIS_IDS[name]] for name in names]
    block = max(16, triton.next_power_of_2(max(lengths)))
    tokens = grid[0] * grid[1] * grid[2]
    tiles = [-(-(tokens // length) // (block // length)) for length in lengths]
    padded_tiles = tiles + [1] * (3 - len(tiles))
    heads = N // len(names)
    scalars = [B, *grid, N, heads, *padded_tiles, max(tiles)]
    scalars += [qkv.stride(0), qkv.stride(1), qkv.stride(2), qkv.stride(3)]
    scalars += [scale, threshold, 65536 / (65536 - threshold)]
    constants = {
        "AXES": sum(_AXIS_IDS[name] << 2 * i for i, name in enumerate(names)),
        "HAS_CLS": tokens + 1 == S,
        "PADDED": key_padding_mask is not None,
        "DROPOUT": threshold > 0,
        "BLOCK": block,
        "SLOTS": triton.next_power_of_2(block // min(lengths)),
        "D": D,
        "WIDEN": bool(triton.knobs.runtime.interpret),
        "REREAD": block * D * qkv.element_size() >= REREAD_BYTES,
    }
    return B * heads * sum(tiles), scalars, constants, padded_tiles


def _warps(qkv: Tensor, constants: dict[str, Any], *, backward: bool) -> int:
    warps = WARPS[constants["BLOCK"], qkv.element_size()][backward]
    return min(2 * warps, 8) if constants["D"] > 64 else warps  # 8: each may have 255 registers


def launch_triton_fwd(
    qkv: Tensor,  # (B, S, 3, N, Dh)
    key_padding_mask: Tensor | None,  # (B, T, H, W) bool, contiguous
    seed: Tensor | None,  # 0-d int64
    grid: list[int],
    axes: str,
    scale: float,
    threshold: int,
) -> Tensor:  # (B, S, N, Dh)
    """Launches the forward kernels."""
    B, S, _, N, D = qkv.shape
    out = qkv.new_empty(B, S, N, D)
    programs, scalars, constants, tiles = _launch_arguments(
        qkv, grid, axes, key_padding_mask, threshold, scale
    )
    partial = _partials(qkv, max(tiles), 1, constants["HAS_CLS"])
    padding = qkv if key_padding_mask is None else key_padding_mask.view(torch.uint8)
    seed = qkv if seed is None else seed  # unused, as padding then
    warps = _warps(qkv, constants, backward=False)
    axial_attention_fwd_kernel[(programs,)](
        qkv, out, partial, padding, seed, *scalars, **constants, num_warps=warps
    )
    if constants["HAS_CLS"]:
        _add_cls(partial, out, grid, scalars, constants["AXES"], mean=True)
    return out


def launch_triton_bwd(
    dout: Tensor,  # (B, S, N, Dh)
    qkv: Tensor,  # (B, S, 3, N, Dh)
    key_padding_mask: Tensor | None,
    seed: Tensor | None,
    grid: list[int],
    axes: str,
    scale: float,
    threshold: int,
) -> Tensor:  # dqkv (B, S, 3, N, Dh)
    """Launches the backward kernels."""
    B, S, _, N, D = qkv.shape
    dqkv = qkv.new_empty(B, S, 3, N, D)
    programs, scalars, constants, tiles = _launch_arguments(
        qkv, grid, axes, key_padding_mask, threshold, scale
    )
    partial = _partials(qkv, max(tiles), 3, constants["HAS_CLS"])
    padding = qkv if key_padding_mask is None else key_padding_mask.view(torch.uint8)
    seed = qkv if seed is None else seed  # unused, as padding then
    axial_attention_bwd_kernel[(programs,)](
        qkv, dout, dqkv, partial, padding, seed, *scalars, **constants,
        num_warps=_warps(qkv, constants, backward=True),
    )  # fmt: skip
    if constants["HAS_CLS"]:
        _add_cls(partial, dqkv, grid, scalars, constants["AXES"], mean=False)
    return dqkv


def _partials(qkv: Tensor, slots: int, parts: int, has_cls: bool) -> Tensor:
    """Room for the tiles' sums over [CLS], fp32."""
    B, _, _, N, D = qkv.shape
    return qkv.new_empty((B, N, slots, parts, D) if has_cls else (1,), dtype=torch.float32)


def _add_cls(
    partial: Tensor,  # (B, N, slots, parts, Dh)
    out: Tensor,  # (B, S, [3,] N, Dh)
    grid: Sequence[int],
    scalars: list[Any],
    axes: int,
    *,
    mean: bool,
) -> None:
    B, N, _, parts, D = partial.shape
    heads_and_tiles = scalars[5:10]
    axial_attention_cls_kernel[(B * N * parts,)](
        partial, out, *grid, out.shape[1], N, *heads_and_tiles,
        AXES=axes, MEAN=mean, PARTS=parts, D=D, CHUNK=16, num_warps=1,
    )  # fmt: skip


def report_cases() -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Kernels with the arguments of real calls on meta tensors, for the static report.

    Two shapes of the paper, and the backwards with the most registers that must not spill.
    """
    bf16, fp32 = torch.bfloat16, torch.float32
    small, large = ((5, 16, 16), "T", 8, 64), ((10, 32, 32), "H|W", 16, 64)
    for dtype, shape in ((bf16, small), (bf16, large), (fp32, small)):
        yield _report_case(*shape, dtype, backward=False)
        yield _report_case(*shape, dtype, backward=True)
    yield _report_case((10, 64, 64), "T|H", 8, 64, bf16, backward=True)
    yield _report_case((10, 32, 32), "T|H", 8, 128, bf16, backward=True)
    yield _report_case((10, 32, 32), "T|H", 8, 64, fp32, backward=True)
    sums, out = (torch.empty(2, 1281, 8, 64, dtype=t, device="meta") for t in (fp32, bf16))
    sizes = {"AXES": 0, "MEAN": True, "PARTS": 1, "D": 64, "CHUNK": 16, "num_warps": 1}
    yield axial_attention_cls_kernel, (sums, out, 5, 16, 16, 1281, 8, 8, 86, 1, 1, 86), sizes


def _report_case(
    grid: tuple[int, int, int], axes: str, N: int, D: int, dtype: torch.dtype, *, backward: bool
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A call with [CLS], padding and dropout."""
    S = 1 + grid[0] * grid[1] * grid[2]
    qkv = torch.empty(2, S, 3, N, D, dtype=dtype, device="meta")
    out, partial = qkv[:, :, 0], torch.empty(1, dtype=torch.float32, device="meta")
    seed = torch.empty((), dtype=torch.int64, device="meta")
    mask = torch.empty(2, *grid, dtype=torch.bool, device="meta")
    _, scalars, constants, _ = _launch_arguments(qkv, grid, axes, mask, 6554, D**-0.5)
    kernel = axial_attention_bwd_kernel if backward else axial_attention_fwd_kernel
    tensors = (qkv, out, qkv) if backward else (qkv, out)
    constants["num_warps"] = _warps(qkv, constants, backward=backward)
    return kernel, (*tensors, partial, mask.view(torch.uint8), seed, *scalars), constants
