"""The gradient of the embedding in embed_tokens: rows in the order of their ids.

A program owns a run of the tokens sorted by id, and adds rows of dx up until the id changes; where
an id goes on from the run before, its sum becomes a carry, and a second kernel adds the carries of
an id in order. Every sum has a fixed order, without atomics, however often an id occurs.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vimpac_kernels.ops.embed_tokens.sorted_ids import sort_ids
from vimpac_kernels.ops.embed_tokens.triton_rows import drop_rows, load_place, row_gradient
from vimpac_kernels.runtime import philox

TUNING = {
    "RUNS": 2048,  # of sorted rows: four for each scheduler of a Hopper GPU
    "SHORTEST_RUN": 4,  # rows: shorter ones would carry about as often as add
    "LONGEST_RUN": 32,  # rows
    "THREAD_COLUMNS": 8,  # of a row: with 16, half as many programs fit on a multiprocessor
    "CARRY_COLUMNS": 128,  # of a program that adds carries
    "CARRY_CHUNK": 32,  # carries that it adds at a time
}


@triton.jit
def _write(carry, dembedding, total, number, id, carried, column, V, D: tl.constexpr):
    """The sum of an id's rows: to the carry of the run, or to the gradient itself."""
    mask = (id >= 0) & (id < V) & (column < D)
    tl.store(carry + number * D + column, total, mask=mask & (carried == 1))
    tl.store(dembedding + id * D + column, total, mask=mask & (carried == 0))


@triton.jit(
    do_not_specialize=["N", "H", "W", "S", "V", "run", "threshold", "keep_scale"],
    do_not_specialize_on_alignment=["seed_at"],
)
def embed_tokens_ids_kernel(
    dy,  # (B, S, D)
    sorted_ids,  # (N,) int32
    order,  # (N,) int64
    embedding,  # (V, D)
    time,  # (T, D) fp32 or None
    height,  # (H, D) fp32 or None
    width,  # (W, D) fp32
    weight,  # (D,) fp32 or None, as mean and rstd
    mean,  # (B * S,) fp32
    rstd,  # (B * S,) fp32
    seed_at,  # 0-d int64
    dembedding,  # (V, D) fp32 zeros
    carry,  # (runs, D) fp32
    N,  # tokens of all clips
    H,
    W,
    S,
    V,
    run,  # rows
    threshold,
    keep_scale,
    CLS: tl.constexpr,
    DROPOUT: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,  # D, rounded up to a power of two
):
    number = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, C)[None, :]
    real = column < D
    zero = tl.zeros((1, 1), tl.int64)  # the interpreter cannot broadcast what compares scalars
    first = number * run
    id = tl.load(sorted_ids + first)
    before = zero + tl.load(sorted_ids + tl.maximum(first - 1, 0))
    carried = tl.where((zero + number > 0) & (before == id), 1, 0)  # whether id goes on from there
    total = tl.zeros((1, C), tl.float32)
    for i in range(run):
        here = first + i < N
        now = tl.where(here, tl.load(sorted_ids + first + i, mask=here, other=0), id)
        if now != id:
            _write(carry, dembedding, total, number, zero + id, carried, column, V, D)
        carried = tl.where(zero + now == id, carried, 0)
        total = tl.where(zero + now == id, total, 0.0)
        id = now
        token = zero + tl.load(order + first + i, mask=here, other=0)
        cell = token % (S - CLS)
        row = token // (S - CLS) * S + CLS + cell
        live = (first + i + zero < N) & (zero + now >= 0) & (zero + now < V)
        mask = live & real
        d = tl.load(dy + row * D + column, mask=mask, other=0.0).to(tl.float32)
        if DROPOUT:
            d = drop_rows(d, seed_at, threshold, keep_scale, row, C)
        if weight is not None:
            x = load_place(time, height, width, cell, column, mask, H, W, D)
            embedded = embedding + (zero + now) * D + column
            x += tl.load(embedded, mask=mask, other=0.0).to(tl.float32)
            d, _ = row_gradient(x, d, weight, mean, rstd, row, column, live, D)
        total += d
    _write(carry, dembedding, total, number, zero + id, carried, column, V, D)


@triton.jit(do_not_specialize=["V", "run", "runs"])
def embed_tokens_carry_kernel(
    sorted_ids,  # (N,) int32
    carry,  # (runs, D) fp32
    dembedding,  # (V, D) fp32
    V,
    run,  # rows
    runs,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Adds the carries of an id: a program for the first run that carries one, if a run does."""
    first = tl.program_id(0).to(tl.int64) + 1
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    live = column < D
    id = tl.load(sorted_ids + first * run)
    carries = (id >= 0) & (id < V) & (tl.load(sorted_ids + first * run - 1) == id)
    before = tl.load(sorted_ids + tl.maximum(first * run - run - 1, 0))
    if carries & ((first == 1) | (before != id)):
        to = dembedding + id.to(tl.int64) * D + column
        total = tl.load(to, mask=live, other=0.0)
        start = first
        while tl.load(sorted_ids + start * run, mask=start < runs, other=-1) == id:
            r = start + tl.arange(0, CHUNK)
            same = tl.load(sorted_ids + r * run, mask=r < runs, other=-1) == id
            at = carry + r[:, None] * D + column[None, :]
            total += tl.sum(tl.load(at, mask=same[:, None] & live[None, :], other=0.0), 0)
            start += CHUNK
        tl.store(to, total, mask=live)


def launch_ids(
    dy: Tensor,  # (B, S, D) contiguous, as all
    tokens: Tensor,  # (B, T, H, W)
    embedding: Tensor,  # (V, D)
    places: tuple[Tensor | None, ...],  # time, height, width
    has_cls: bool,
    norm: tuple[Tensor | None, ...],  # weight, mean, rstd
    seed: Tensor,  # 0-d int64
    threshold: int,
    dembedding: Tensor,  # (V, D) fp32
) -> None:
    """Fills dembedding."""
    (V, D), N = embedding.shape, tokens.numel()
    S, (H, W) = dy.shape[1], tokens.shape[2:]
    fair = triton.cdiv(N, TUNING["RUNS"])
    run = min(max(fair, TUNING["SHORTEST_RUN"]), TUNING["LONGEST_RUN"])
    runs = triton.cdiv(N, run)
    ids, order = sort_ids(tokens, V)
    carry = dembedding.new_empty((runs, D))
    dembedding.zero_()
    embed_tokens_ids_kernel[(runs,)](
        dy, ids, order, embedding, *places, *norm, seed, dembedding, carry, N, H, W, S, V, run,
        threshold, philox.dropout_scale(threshold), CLS=int(has_cls),
        **ids_tile_of(D, threshold > 0),
    )  # fmt: skip
    if runs > 1:
        columns, chunk = TUNING["CARRY_COLUMNS"], TUNING["CARRY_CHUNK"]
        embed_tokens_carry_kernel[(runs - 1, triton.cdiv(D, columns))](
            ids, carry, dembedding, V, run, runs, D=D, COLUMNS=columns, CHUNK=chunk
        )


def ids_tile_of(D: int, dropout: bool) -> dict[str, int | bool]:
    """The columns of a program."""
    C = max(16, triton.next_power_of_2(D))
    warps = max(1, min(C // (32 * TUNING["THREAD_COLUMNS"]), 32))
    return {"DROPOUT": dropout, "D": D, "C": C, "num_warps": warps}
