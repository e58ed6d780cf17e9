"""The loss of predicted pixels and its gradient in Triton, one pass each, bound by memory.

A program holds one tubelet at a time in registers: its pixels, from which it takes the sums of each
channel in integers, and pred. It walks over tubelets with a grid that fits the device. For the loss
it adds up squares element by element over its tubelets, then their sum in fp64; a second kernel
adds the programs in order, so that the loss repeats bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vimpac_kernels.runtime.triton_common import most_programs

TUNING = {  # not yet chosen by measurement
    "PROGRAMS": 8,  # on a multiprocessor
    "THREAD_ELEMENTS": 16,  # of a tubelet: 16 bytes of pixels
    "SUM_CHUNK": 256,  # programs whose sums are added at a time
}


@triton.jit
def _difference(
    pred,  # (rows, K)
    video,  # (B, T, H, W, 3) uint8
    tubelets,  # (rows,) int32
    row,  # int64
    M,
    eps,  # 255 * eps
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    FRAMES: tl.constexpr,  # t
    SIDE: tl.constexpr,  # P
    BLOCK: tl.constexpr,
):
    """pred - target of a tubelet, (BLOCK,) fp32, 0 from K on; NaN of an index outside the grid."""
    K: tl.constexpr = FRAMES * SIDE * SIDE * 3
    RUN: tl.constexpr = SIDE * 3  # neighbouring bytes
    n: tl.constexpr = K // 3
    GRID_H: tl.constexpr = H // SIDE
    GRID_W: tl.constexpr = W // SIDE
    i = tl.arange(0, BLOCK)
    live = i < K
    index = tl.load(tubelets + row)
    inside = (index >= 0) & (index < T // FRAMES * GRID_H * GRID_W)
    index = tl.where(inside, index, 0)
    h, w = index // GRID_W % GRID_H, index % GRID_W
    frame = row // M * T + index // (GRID_W * GRID_H) * FRAMES
    first = ((frame * H + h * SIDE) * W + w * SIDE) * 3
    line = i // RUN
    at = (line // SIDE * H + line % SIDE) * (W * 3) + i % RUN
    v = tl.load(video + first + at, mask=live, other=0).to(tl.int32)
    channel = i % 3
    total = tl.zeros((BLOCK,), tl.float32)
    scale = tl.zeros((BLOCK,), tl.float32)
    for c in tl.static_range(3):
        own = tl.where(channel == c, v, 0)
        sum_v = tl.sum(own, 0).to(tl.int64)
        spread = n * tl.sum(own * own, 0).to(tl.int64) - sum_v * sum_v
        std = tl.sqrt_rn(spread.to(tl.float32) * (1.0 / (n * (n - 1))))
        factor = tl.div_rn(1.0, tl.where(spread == 0, 1.0, n * (std + eps)))
        factor = tl.where(spread == 0, 0.0, factor)
        total = tl.where(channel == c, sum_v.to(tl.float32), total)
        scale = tl.where(channel == c, factor, scale)
    scale = tl.where(inside, scale, float("nan"))
    x = tl.load(pred + row * K + i, mask=live, other=0.0).to(tl.float32)
    centred = v.to(tl.float32) * n - total  # exact
    return tl.where(live, x - centred * scale, 0.0)


@triton.jit(do_not_specialize=["rows", "M", "eps"], do_not_specialize_on_alignment=["tubelets"])
def tubelet_mse_fwd_kernel(
    pred,  # (rows, K)
    video,  # (B, T, H, W, 3) uint8
    tubelets,  # (rows,) int32
    partial,  # (programs,) fp32: sums of squares
    rows,
    M,
    eps,
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    FRAMES: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sums = tl.zeros((BLOCK,), tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        number = tl.cast(row, tl.int64)
        e = _difference(pred, video, tubelets, number, M, eps, T, H, W, FRAMES, SIDE, BLOCK)
        sums += e * e
    tl.store(partial + tl.program_id(0), tl.sum(sums.to(tl.float64), 0).to(tl.float32))


@triton.jit(do_not_specialize=["programs", "count"], do_not_specialize_on_alignment=["loss"])
def tubelet_mse_sum_kernel(
    partial,  # (programs,) fp32
    loss,  # 0-d fp32
    programs,
    count,
    CHUNK: tl.constexpr,
):
    total = tl.zeros((CHUNK,), tl.float64)
    start = programs * 0
    while start < programs:
        program = start + tl.arange(0, CHUNK)
        total += tl.load(partial + program, mask=program < programs, other=0.0).to(tl.float64)
        start += CHUNK
    tl.store(loss, (tl.sum(total, 0) / tl.cast(count, tl.float64)).to(tl.float32))


@triton.jit(
    do_not_specialize=["rows", "M", "eps", "twice"],
    do_not_specialize_on_alignment=["dloss", "tubelets"],
)
def tubelet_mse_bwd_kernel(
    pred,  # (rows, K)
    video,  # (B, T, H, W, 3) uint8
    tubelets,  # (rows,) int32
    dloss,  # 0-d fp32
    dpred,  # (rows, K)
    rows,
    M,
    eps,
    twice,  # 2 / count
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    FRAMES: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    K: tl.constexpr = FRAMES * SIDE * SIDE * 3
    i = tl.arange(0, BLOCK)
    factor = tl.load(dloss) * twice
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        number = tl.cast(row, tl.int64)
        e = _difference(pred, video, tubelets, number, M, eps, T, H, W, FRAMES, SIDE, BLOCK)
        tl.store(dpred + number * K + i, (e * factor).to(dpred.dtype.element_ty), mask=i < K)


def tile_of(video: Tensor, t: int, P: int) -> dict[str, int]:
    """The sizes that kernels are compiled for, and the warps of a program."""
    _, T, H, W, _ = video.shape
    block = triton.next_power_of_2(t * P * P * 3)
    warps = max(1, min(32, block // (32 * TUNING["THREAD_ELEMENTS"])))
    sizes = {"T": T, "H": H, "W": W, "FRAMES": t, "SIDE": P, "BLOCK": block}
    return sizes | {"num_warps": warps}


def launch_triton_fwd(
    *,
    pred: Tensor,  # (B, M, K)
    video: Tensor,  # (B, T, H, W, 3) uint8
    tubelets: Tensor,  # (B, M) int32
    t: int,
    P: int,
    eps: float,
    loss: Tensor,  # 0-d fp32
) -> None:
    """Fills loss."""
    rows, M = tubelets.numel(), tubelets.shape[1]
    programs = min(rows, most_programs(pred, TUNING["PROGRAMS"]))
    partial = torch.empty(programs, dtype=torch.float32, device=pred.device)
    tubelet_mse_fwd_kernel[(programs,)](
        pred, video, tubelets, partial, rows, M, 255 * eps, **tile_of(video, t, P)
    )
    chunk = TUNING["SUM_CHUNK"]
    tubelet_mse_sum_kernel[(1,)](partial, loss, programs, pred.numel(), CHUNK=chunk)


def launch_triton_bwd(
    *,
    pred: Tensor,  # (B, M, K)
    video: Tensor,  # (B, T, H, W, 3) uint8
    tubelets: Tensor,  # (B, M) int32
    t: int,
    P: int,
    eps: float,
    dloss: Tensor,  # 0-d fp32
    dpred: Tensor,  # (B, M, K)
) -> None:
    """Fills dpred."""
    rows, M = tubelets.numel(), tubelets.shape[1]
    programs = min(rows, most_programs(pred, TUNING["PROGRAMS"]))
    tubelet_mse_bwd_kernel[(programs,)](
        pred, video, tubelets, dloss, dpred, rows, M, 255 * eps, 2 / pred.numel(),
        **tile_of(video, t, P),
    )  # fmt: skip
