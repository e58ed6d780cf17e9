"""The pass over the pixels of tubelet_embed in Triton: normalises bytes, starts rows.

A program owns a piece of one tubelet, in the order of its bytes, and so of the pixels; the last
program of a tubelet starts its row with positions and bias. Bound by memory: a byte is read and
a pixel is written, once each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

TUNING = {
    "ELEMENTS": 512,  # of a program: a third of a tubelet of 2 x 16 x 16 pixels
    "THREAD_ELEMENTS": 8,  # a store of 16 bytes of a 16-bit type
}


@triton.jit(
    do_not_specialize=["V", "grid_t", "grid_h", "grid_w"]
    + ["scale_0", "scale_1", "scale_2", "shift_0", "shift_1", "shift_2"]
)
def tubelet_embed_fwd_kernel(
    video,  # (B, T, H, W, 3) uint8
    tubelets,  # (B, V)
    positions,  # (N, D) fp32 or None, as bias and rows
    bias,  # (D,) fp32
    pixels,  # (B * V, K)
    rows,  # (B * V, D)
    patches,  # (B * V, K) uint8 or None
    clip_stride,
    frame_stride,
    line_stride,
    V,
    grid_t,
    grid_h,
    grid_w,
    scale_0,
    scale_1,
    scale_2,
    shift_0,
    shift_1,
    shift_2,
    T: tl.constexpr,  # frames of a tubelet
    P: tl.constexpr,  # pixels of its sides
    D: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    K: tl.constexpr = T * P * P * 3
    tubelet = tl.load(tubelets + row)
    inside = (tubelet >= 0) & (tubelet < grid_t * grid_h * grid_w)
    part, parts = tl.program_id(1), tl.num_programs(1)
    element = part * ELEMENTS + tl.arange(0, ELEMENTS)
    live = element < K
    line = element // (3 * P)
    first = row // V * clip_stride + (tubelet // grid_w // grid_h * T).to(tl.int64) * frame_stride
    first += (tubelet // grid_w % grid_h * P).to(tl.int64) * line_stride + tubelet % grid_w * 3 * P
    at = first + (line // P).to(tl.int64) * frame_stride + (line % P).to(tl.int64) * line_stride
    byte = tl.load(video + at + element % (3 * P), mask=element < tl.where(inside, K, 0), other=0)
    channel = element % 3
    scale = tl.where(channel == 0, scale_0, tl.where(channel == 1, scale_1, scale_2))
    shift = tl.where(channel == 0, shift_0, tl.where(channel == 1, shift_1, shift_2))
    pixel = byte.to(tl.float32) * scale + shift
    to = row * K + element
    tl.store(pixels + to, pixel.to(pixels.dtype.element_ty), mask=live)
    if patches is not None:
        tl.store(patches + to, byte, mask=live)
    if rows is not None:
        if part == parts - 1:
            for start in range(0, D, ELEMENTS):
                column = start + tl.arange(0, ELEMENTS)
                real = column < D
                position = positions + tubelet.to(tl.int64) * D + column
                x = tl.load(position, mask=column < tl.where(inside, D, 0), other=float("nan"))
                x += tl.load(bias + column, mask=real, other=0.0)
                tl.store(rows + row * D + column, x.to(rows.dtype.element_ty), mask=real)


def tile_of(t: int, P: int, D: int) -> dict[str, int]:
    """The constants of a launch."""
    elements = TUNING["ELEMENTS"]
    warps = elements // (32 * TUNING["THREAD_ELEMENTS"])
    return {"T": t, "P": P, "D": D, "ELEMENTS": elements, "num_warps": warps}


def launch_triton_fwd(
    video: Tensor,  # (B, T, H, W, 3) uint8
    strides: Sequence[int],  # from clip to clip, frame to frame, row to row
    grid: Sequence[int],  # tubelets along T, H, W
    t: int,
    P: int,
    tubelets: Tensor,  # (B, V)
    V: int,
    scales: Sequence[float],
    shifts: Sequence[float],
    pixels: Tensor,  # (B * V, K)
    positions: Tensor | None = None,  # (N, D) fp32
    bias: Tensor | None = None,  # (D,) fp32
    rows: Tensor | None = None,  # (B, V, D), or None: not wanted
    patches: Tensor | None = None,  # (B * V, K) uint8; None or empty: not wanted
) -> None:
    """Fills pixels, rows and patches."""
    if patches is not None and patches.numel() == 0:
        patches = None
    M, K = pixels.shape
    tile: dict[str, Any] = tile_of(t, P, 0 if rows is None else rows.shape[-1])
    tubelet_embed_fwd_kernel[(M, triton.cdiv(K, tile["ELEMENTS"]))](
        video, tubelets, positions, bias, pixels, rows, patches, *strides, V, *grid, *scales,
        *shifts, **tile,
    )  # fmt: skip
