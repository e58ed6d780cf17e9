"""mask_tokens in Triton: two launches, no host synchronisation, fit for CUDA graphs.

The first draws the mask and replaces tokens, one program for CELLS cells of one clip; it leaves
each program's count. The second adds up the counts before its own and compacts the positions. A
single launch would need programs that wait for earlier ones, whose progress Triton does not
promise, and a cleared workspace for them to talk through, which is a second launch all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vimpac_kernels.runtime import philox

TUNING = {
    "CELLS": 1024,  # of a program: a clip of the small model is two, so that 64 fill a GPU
    "WARPS": 4,  # of it: eight cells a thread, two Philox calls of iid
}
STREAM_MASK = tl.constexpr(philox.STREAM_MASK << 24)
STREAM_NOISE = tl.constexpr(philox.STREAM_NOISE << 24)
BLOCK, IID, TUBE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _philox(seed, c0, c1, c2, c3: tl.constexpr):
    """Four words per counter, all counters unsigned 32-bit (64-bit ones select Philox4x64)."""
    zero = c1 * 0
    return tl.philox(
        seed, c0 + zero, c1, zero + tl.cast(c2, tl.uint32), zero + tl.full((), c3, tl.uint32)
    )


@triton.jit
def _words(seed, clip, first, SIZE: tl.constexpr):
    """SIZE words of the mask's stream; word i is number i % 4 of call i // 4; `first` % 4 == 0."""
    group = (first // 4 + tl.arange(0, SIZE // 4)).to(tl.uint32)
    x, y, z, w = _philox(seed, clip, group, 0, STREAM_MASK)
    return tl.interleave(tl.interleave(x, z), tl.interleave(y, w))


@triton.jit
def _axis_covers(size_word, start_word, at, size, longest):
    length = 1 + tl.umulhi(size_word, tl.cast(longest, tl.uint32)).to(tl.int32)
    start = tl.umulhi(start_word, tl.cast(size - length + 1, tl.uint32)).to(tl.int32)
    return (at >= start) & (at < start + length)


@triton.jit
def _boxes(seed, clip, cell, T, H, W, max_t, max_h, max_w, NUM_BLOCKS: tl.constexpr):
    """Whether a box covers each cell, and the decision word of the last one that does."""
    t, h, w = cell // (H * W), cell // W % H, cell % W
    masked = cell < 0
    decision = tl.zeros_like(cell).to(tl.uint32)
    for k in range(NUM_BLOCKS):
        block = tl.cast(k, tl.uint32)
        size_t, size_h, size_w, word = _philox(seed, clip, block, 0, STREAM_MASK)
        start_t, start_h, start_w, _ = _philox(seed, clip, block, 1, STREAM_MASK)
        inside = _axis_covers(size_t, start_t, t, T, max_t)
        inside &= _axis_covers(size_h, start_h, h, H, max_h)
        inside &= _axis_covers(size_w, start_w, w, W, max_w)
        masked |= inside
        decision = tl.where(inside, word, decision)
    return masked, decision


@triton.jit
def _tube(seed, clip, cell, plane, wanted, PLANE: tl.constexpr, INDEX_BITS: tl.constexpr):
    """Whether each cell is among the `wanted` of its frame with the smallest (key, index).

    The largest of those pairs, as one 64-bit number, is found bit by bit from the top.
    """
    index = tl.arange(0, PLANE)
    keys = _words(seed, clip, 0, PLANE).to(tl.uint64) << 32 | index.to(tl.uint64)
    last = tl.cast(0, tl.uint64)
    for i in range(32 + INDEX_BITS):
        bit = tl.where(i < 32, 63 - i, INDEX_BITS + 31 - i)
        candidate = last | (tl.cast(1, tl.uint64) << bit.to(tl.uint64))
        below = tl.sum(((keys < candidate) & (index < plane)).to(tl.int32))
        last = tl.where(below < wanted, candidate, last)
    own = (cell % plane).to(tl.uint32)
    x, y, z, w = _philox(seed, clip, own // 4, 0, STREAM_MASK)
    key = tl.where(own % 4 < 2, tl.where(own % 2 == 0, x, y), tl.where(own % 2 == 0, z, w))
    return ((key.to(tl.uint64) << 32 | own.to(tl.uint64)) <= last) & (wanted > 0)


@triton.jit(
    do_not_specialize=["amount", "mask_token", "pad_token", "low", "high"],
    do_not_specialize_on_alignment=["seed", "clip_offset"],
)
def mask_tokens_fwd_kernel(
    tokens,  # (B, T, H, W)
    seed,  # 0-d int64
    clip_offset,  # 0-d int64
    inputs,  # (B, T, H, W)
    mask,  # (B, T, H, W)
    counts,  # (B, chunks) int32
    T, H, W, max_t, max_h, max_w, amount, mask_token, pad_token, low, high, vocab_size,
    STRATEGY: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    NOISE: tl.constexpr,  # 0 none, 1 per token, 2 per block
    HAS_PAD: tl.constexpr,
    CELLS: tl.constexpr,  # of one program, a power of two >= 4
    PLANE: tl.constexpr,  # H * W, rounded up to a power of two >= 4
    INDEX_BITS: tl.constexpr,  # log2(PLANE)
):  # fmt: skip
    """Draws the masks of CELLS cells of one clip, replaces tokens, counts."""
    cells = T * H * W
    chunks = tl.cdiv(cells, CELLS)
    program = tl.program_id(0)
    b, first = program // chunks, program % chunks * CELLS
    cell = first + tl.arange(0, CELLS)
    at = b.to(tl.int64) * cells + cell
    live = cell < cells
    key = tl.load(seed)
    clip = (b.to(tl.int64) + tl.load(clip_offset)).to(tl.uint32)
    token = tl.load(tokens + at, mask=live, other=0)
    if STRATEGY == BLOCK:
        masked, decision = _boxes(key, clip, cell, T, H, W, max_t, max_h, max_w, NUM_BLOCKS)
    elif STRATEGY == IID:
        masked = _words(key, clip, first, CELLS).to(tl.int64) < amount
        decision = tl.zeros_like(cell).to(tl.uint32)
    else:
        masked = _tube(key, clip, cell, H * W, amount, PLANE, INDEX_BITS)
        decision = tl.zeros_like(cell).to(tl.uint32)
    masked &= live
    if HAS_PAD:
        masked &= token.to(tl.int64) != pad_token
    result = tl.where(masked, tl.cast(mask_token, token.dtype), token)
    if NOISE > 0:
        pair = (first // 2 + tl.arange(0, CELLS // 2)).to(tl.uint32)
        even, even_draw, odd, odd_draw = _philox(key, clip, pair, 0, STREAM_NOISE)
        if NOISE == 1:
            decision = tl.interleave(even, odd)
        draw = tl.umulhi(tl.interleave(even_draw, odd_draw), tl.cast(vocab_size, tl.uint32))
        word = decision.to(tl.int64)
        other = tl.where(word < high, draw.to(token.dtype), token)
        result = tl.where(masked & (word >= low), other, result)
    tl.store(inputs + at, result, mask=live)
    tl.store(mask + at, masked.to(tl.int8), mask=live)
    tl.store(counts + program, tl.sum(masked.to(tl.int32)))


@triton.jit(do_not_specialize=["programs"])
def mask_tokens_compact_kernel(
    mask,  # (B, cells)
    counts,  # (B, chunks) int32
    positions,  # (B * cells,) int32
    count,  # 0-d int32
    cells, programs, row_offset,
    CELLS: tl.constexpr,
):  # fmt: skip
    """Writes the rows of masked cells in increasing order, -1 behind the last, and the count."""
    chunks = tl.cdiv(cells, CELLS)
    program = tl.program_id(0)
    before = tl.zeros((CELLS,), tl.int32)
    total = tl.zeros((CELLS,), tl.int32)
    start = program * 0
    while start < programs:
        i = start + tl.arange(0, CELLS)
        n = tl.load(counts + i, mask=i < programs, other=0)
        before += tl.where(i < program, n, 0)
        total += n
        start += CELLS
    offset, end = tl.sum(before), tl.sum(total)
    b, first = program // chunks, program % chunks * CELLS
    cell = first + tl.arange(0, CELLS)
    at = b.to(tl.int64) * cells + cell
    live = cell < cells
    masked = tl.load(mask + at, mask=live, other=0).to(tl.int32)
    row = b * (cells + row_offset) + row_offset + cell
    rank = offset + tl.cumsum(masked, 0) - 1
    tl.store(positions + rank, row, mask=masked != 0)
    tl.store(positions + at, tl.full((CELLS,), -1, tl.int32), mask=live & (at >= end))
    if program == 0:
        tl.store(count, end)


def launches(
    tokens: Tensor,  # (B, T, H, W)
    seed: Tensor,  # 0-d int64
    clip_offset: Tensor,  # 0-d int64
    inputs: Tensor,  # (B, T, H, W)
    mask: Tensor,  # (B, T, H, W) bool
    positions: Tensor,  # (B*T*H*W,) int32
    count: Tensor,  # 0-d int32
    *,
    B: int,
    T: int,
    H: int,
    W: int,
    strategy: int,
    num_blocks: int,
    max_block: Sequence[int],
    amount: int,
    mask_token: int,
    has_pad: bool,
    pad_token: int,
    noise: int,
    noise_below: tuple[int, int],
    vocab_size: int,
    row_offset: int,
) -> Iterator[tuple[Any, int, tuple[Any, ...], dict[str, Any]]]:
    """Both launches as (kernel, programs, arguments, constants)."""
    cells = T * H * W
    size = max(4, min(TUNING["CELLS"], triton.next_power_of_2(cells)))
    plane = max(4, triton.next_power_of_2(H * W))
    programs = B * triton.cdiv(cells, size)
    counts = torch.empty(programs, dtype=torch.int32, device=tokens.device)
    warps = TUNING["WARPS"] if size >= 512 else 1
    flags = mask.view(torch.int8)
    drawn = (
        tokens, seed, clip_offset, inputs, flags, counts, T, H, W, *max_block, amount, mask_token,
        pad_token, *noise_below, vocab_size,
    )  # fmt: skip
    constants = {
        "STRATEGY": strategy,
        "NUM_BLOCKS": num_blocks,
        "NOISE": noise,
        "HAS_PAD": has_pad,
        "CELLS": size,
        "PLANE": plane,
        "INDEX_BITS": plane.bit_length() - 1,
        "num_warps": warps,
    }
    yield mask_tokens_fwd_kernel, programs, drawn, constants
    compacted = (flags, counts, positions, count, cells, programs, row_offset)
    yield mask_tokens_compact_kernel, programs, compacted, {"CELLS": size, "num_warps": warps}


def launch_triton_fwd(**arguments: Any) -> None:
    """Launches both kernels; see `kernel_options` in operators.py."""
    for kernel, programs, operands, constants in launches(**arguments):
        kernel[(programs,)](*operands, **constants)
