"""embed_tokens in Triton: the scheme of csrc/embed_tokens/cuda*.cu, with tiles of places.

Forward: a program owns a few places and goes through clips, so that positions, weight and bias are
read once for several rows. Backward by places: the same, and the sums over its clips stay in
registers; a second kernel adds them up along the grid's axes. The gradient of the embedding goes by
ids instead (embed_ids.py). No dx lies in memory, and every sum has a fixed order. Bound by memory:
one write of y, two reads of dy.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vimpac_kernels.ops.embed_tokens.triton_ids import launch_ids
from vimpac_kernels.ops.embed_tokens.triton_rows import drop_rows, load_place, row_gradient
from vimpac_kernels.runtime import philox
from vimpac_kernels.runtime.triton_common import add_programs, centre_rows

TUNING = {
    "TILE": 2048,  # elements of the places of a program, 16 for each thread
    "FORWARD_CLIPS": 8,  # of a program: it reads positions, weight and bias once
    "PLACES_CLIPS": 16,  # of a program: it writes one row of sums for each place
    "SUM_COLUMNS": 32,  # of a program that adds up sums
    "SUM_CHUNK": 64,  # rows that it adds at a time
}


@triton.jit(
    do_not_specialize=["B", "H", "W", "S", "V", "threshold", "keep_scale", "eps"],
    do_not_specialize_on_alignment=["seed_at"],
)
def embed_tokens_fwd_kernel(
    tokens,  # (B, T, H, W)
    embedding,  # (V, D)
    time,  # (T, D) fp32 or None
    height,  # (H, D) fp32 or None
    width,  # (W, D) fp32
    cls,  # (D,) fp32 or None
    weight,  # (D,) fp32 or None, as bias
    bias,  # (D,) fp32
    seed_at,  # 0-d int64
    y,  # (B, S, D)
    mean,  # (B * S,) fp32 or None, as rstd
    rstd,  # (B * S,) fp32
    B,
    H,
    W,
    S,
    V,
    threshold,
    keep_scale,
    eps,
    DROPOUT: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,  # places of a program
    C: tl.constexpr,  # D, rounded up to a power of two
):
    CLS: tl.constexpr = 0 if cls is None else 1
    s = (tl.program_id(0) * R + tl.arange(0, R))[:, None]
    column = tl.arange(0, C)[None, :]
    real = column < D
    is_token = (s >= CLS) & (s < S)
    cell = tl.maximum(s - CLS, 0)
    base = load_place(time, height, width, cell, column, is_token & real, H, W, D)
    if cls is not None:
        base += tl.load(cls + column, mask=(s == 0) & real, other=0.0)
    if weight is not None:
        w = tl.load(weight + column, mask=real, other=0.0)
        b = tl.load(bias + column, mask=real, other=0.0)
    for clip in range(tl.program_id(1), B, tl.num_programs(1)):
        at = tl.cast(clip, tl.int64) * (S - CLS) + cell
        token = tl.load(tokens + at, mask=is_token, other=0).to(tl.int64)
        inside = (token >= 0) & (token < V)
        row = tl.cast(clip, tl.int64) * S + s
        mask = is_token & inside & real
        x = base + tl.load(embedding + token * D + column, mask=mask, other=0.0).to(tl.float32)
        x = tl.where(inside, x, float("nan"))
        if weight is not None:
            centred, mu = centre_rows(x, real, D)
            variance = tl.sum(centred * centred, 1)[:, None] / D
            # `/` and tl.sqrt are approximations on a GPU, whose error the whole row would share.
            inverse = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
            x = centred * inverse * w + b
            if mean is not None:
                tl.store(mean + row, mu, mask=s < S)
                tl.store(rstd + row, inverse, mask=s < S)
        if DROPOUT:
            x = drop_rows(x, seed_at, threshold, keep_scale, row, C)
        tl.store(y + row * D + column, x.to(y.dtype.element_ty), mask=(s < S) & real)


@triton.jit(
    do_not_specialize=["B", "H", "W", "S", "V", "threshold", "keep_scale"],
    do_not_specialize_on_alignment=["seed_at"],
)
def embed_tokens_places_kernel(
    dy,  # (B, S, D)
    tokens,  # (B, T, H, W)
    embedding,  # (V, D)
    time,  # (T, D) fp32 or None
    height,  # (H, D) fp32 or None
    width,  # (W, D) fp32
    cls,  # (D,) fp32 or None
    weight,  # (D,) fp32 or None, as mean and rstd
    mean,  # (B * S,) fp32
    rstd,  # (B * S,) fp32
    seed_at,  # 0-d int64
    sums,  # (parts, S, D) fp32: dx, over the clips of a program
    partial,  # (parts * groups, 2, D) fp32: of weight and bias
    B,
    H,
    W,
    S,
    V,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,  # places of a program
    C: tl.constexpr,  # D, rounded up to a power of two
):
    CLS: tl.constexpr = 0 if cls is None else 1
    s = (tl.program_id(0) * R + tl.arange(0, R))[:, None]
    column = tl.arange(0, C)[None, :]
    real = column < D
    is_token = (s >= CLS) & (s < S)
    cell = tl.maximum(s - CLS, 0)
    base = load_place(time, height, width, cell, column, is_token & real, H, W, D)
    if cls is not None:
        base += tl.load(cls + column, mask=(s == 0) & real, other=0.0)
    total = tl.zeros((R, C), tl.float32)
    dweight = tl.zeros((R, C), tl.float32)
    dbias = tl.zeros((R, C), tl.float32)
    for clip in range(tl.program_id(1), B, tl.num_programs(1)):
        row = tl.cast(clip, tl.int64) * S + s
        d = tl.load(dy + row * D + column, mask=(s < S) & real, other=0.0).to(tl.float32)
        if DROPOUT:
            d = drop_rows(d, seed_at, threshold, keep_scale, row, C)
        if weight is not None:
            at = tl.cast(clip, tl.int64) * (S - CLS) + cell
            token = tl.load(tokens + at, mask=is_token, other=0).to(tl.int64)
            inside = (token >= 0) & (token < V)  # if not, the mean is NaN
            mask = is_token & inside & real
            x = base + tl.load(embedding + token * D + column, mask=mask, other=0.0).to(tl.float32)
            dbias += d
            d_dropped = d
            d, h = row_gradient(x, d, weight, mean, rstd, row, column, s < S, D)
            dweight += d_dropped * h
        total += d
    to = sums + (tl.program_id(1).to(tl.int64) * S + s) * D + column
    tl.store(to, total, mask=(s < S) & real)
    if weight is not None:
        program = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
        at = partial + program * 2 * D + tl.arange(0, C)
        real = tl.arange(0, C) < D
        tl.store(at, tl.sum(dweight, 0), mask=real)
        tl.store(at + D, tl.sum(dbias, 0), mask=real)


@triton.jit(do_not_specialize=["T", "H", "W", "S", "parts", "programs"])
def embed_tokens_axes_kernel(
    sums,  # (parts, S, D) fp32
    partial,  # (programs, 2, D) fp32
    dvectors,  # (T + H + W + 3, D) fp32: rows of time, height, width, cls, weight, bias
    T,
    H,
    W,
    S,
    parts,
    programs,
    CLS: tl.constexpr,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Adds the sums of COLUMNS columns of one row of dvectors: grid (groups of columns, rows)."""
    column, vector = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.program_id(1)
    live = column < D
    total = tl.zeros((COLUMNS,), tl.float32)
    if vector > T + H + W:
        which = vector - (T + H + W + 1)
        total += add_programs(partial + which * D, programs, column, live, 2 * D, CHUNK)
    else:
        is_time, is_height, is_cls = vector < T, vector < T + H, vector == T + H + W
        at = tl.where(is_time, vector, tl.where(is_height, vector - T, vector - T - H))
        terms = tl.where(is_time, H * W, tl.where(is_height, T * W, tl.where(is_cls, CLS, T * H)))
        start = terms * 0
        while start < parts * terms:
            i = (start + tl.arange(0, CHUNK))[:, None]
            part, j = i // terms, i % terms
            in_height = (j // W * H + at) * W + j % W
            cell = tl.where(is_time, at * H * W + j, tl.where(is_height, in_height, j * W + at))
            s = tl.where(is_cls, 0, CLS + cell)
            place = sums + (part.to(tl.int64) * S + s) * D + column[None, :]
            mask = (i < parts * terms) & live[None, :]
            total += tl.sum(tl.load(place, mask=mask, other=0.0), 0)
            start += CHUNK
    tl.store(dvectors + vector * D + column, total, mask=live)


def tile_of(D: int, dropout: bool) -> dict[str, Any]:
    """Places and columns of a program."""
    C = max(16, triton.next_power_of_2(D))
    R = min(32, max(1, TUNING["TILE"] // C))
    return {"DROPOUT": dropout, "D": D, "R": R, "C": C, "num_warps": max(1, R * C // 512)}


def _parts(B: int, clips: int) -> int:
    """Parts of a batch, so that a program has about so many clips; a grid has at most 65,535."""
    return min(triton.cdiv(B, clips), 65535)


def launch_triton_fwd(
    tokens: Tensor,  # (B, T, H, W) int32 or int64, contiguous as all
    embedding: Tensor,  # (V, D) fp32 or of the dtype of y
    time: Tensor | None,  # (T, D) fp32
    height: Tensor | None,  # (H, D) fp32
    width: Tensor,  # (W, D) fp32
    cls: Tensor | None,  # (D,) fp32
    weight: Tensor | None,  # (D,) fp32
    bias: Tensor | None,  # (D,) fp32
    seed: Tensor,  # 0-d int64
    threshold: int,
    eps: float,
    y: Tensor,  # (B, S, D)
    mean: Tensor,  # (B * S,) fp32, or empty as rstd: not wanted
    rstd: Tensor,  # (B * S,) fp32
) -> None:
    """Fills y and, if wanted, mean and rstd; NaN for an id outside [0, V)."""
    (B, _, H, W), (V, D), S = tokens.shape, embedding.shape, y.shape[1]
    tile = tile_of(D, threshold > 0)
    grid = triton.cdiv(S, tile["R"]), _parts(B, TUNING["FORWARD_CLIPS"])
    tables = (embedding, time, height, width, cls, weight, bias)
    outputs = (y, *(t if t.numel() else None for t in (mean, rstd)))
    embed_tokens_fwd_kernel[grid](
        tokens, *tables, seed, *outputs, B, H, W, S, V, threshold, philox.dropout_scale(threshold),
        eps, **tile,
    )  # fmt: skip


def launch_triton_bwd(
    dy: Tensor,  # (B, S, D)
    tokens: Tensor,  # (B, T, H, W) int32 or int64, contiguous as all
    embedding: Tensor,  # (V, D) fp32 or of the dtype of dy
    time: Tensor | None,  # (T, D) fp32
    height: Tensor | None,  # (H, D) fp32
    width: Tensor,  # (W, D) fp32
    cls: Tensor | None,  # (D,) fp32
    weight: Tensor | None,  # (D,) fp32
    mean: Tensor,  # (B * S,) fp32
    rstd: Tensor,  # (B * S,) fp32
    seed: Tensor,  # 0-d int64
    threshold: int,
    dembedding: Tensor,  # (V, D) fp32, or empty: not wanted
    dvectors: Tensor,  # (T + H + W + 3, D) fp32, or empty: not wanted
) -> None:
    """Fills the gradients; of those in dvectors, the ones whose tensors are there."""
    places, norm = (time, height, width), (weight, mean, rstd)
    if dembedding.numel():
        launch_ids(
            dy, tokens, embedding, places, cls is not None, norm, seed, threshold, dembedding
        )
    if not dvectors.numel():
        return
    (B, T, H, W), (V, D), S = tokens.shape, embedding.shape, dy.shape[1]
    tile = tile_of(D, threshold > 0)
    groups, parts = triton.cdiv(S, tile["R"]), _parts(B, TUNING["PLACES_CLIPS"])
    sums = dvectors.new_empty((parts, S, D))
    partial = dvectors.new_empty((parts * groups, 2, D))
    embed_tokens_places_kernel[(groups, parts)](
        dy, tokens, embedding, *places, cls, *norm, seed, sums, partial, B, H, W, S, V, threshold,
        philox.dropout_scale(threshold), **tile,
    )  # fmt: skip
    columns, rows = TUNING["SUM_COLUMNS"], T + H + W + (1 if weight is None else 3)
    embed_tokens_axes_kernel[(triton.cdiv(D, columns), rows)](
        sums, partial, dvectors, T, H, W, S, parts, parts * groups, CLS=int(cls is not None), D=D,
        COLUMNS=columns, CHUNK=TUNING["SUM_CHUNK"],
    )  # fmt: skip
