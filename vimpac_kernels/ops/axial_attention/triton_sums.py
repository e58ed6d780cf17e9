"""Sums of axial attention over the tiles of a clip, in order, so that they repeat bit for bit.

[CLS] belongs to all lines of an axis, and a bias of the projection to all rows: each tile leaves
its part of such a sum in a slot of its own, and a second kernel adds up the slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from vimpac_kernels.ops.axial_attention.triton_tiles import pick


@triton.jit(
    do_not_specialize=[
        "T", "H", "W", "S", "N", "heads", "tiles0", "tiles1", "tiles2", "slots",
    ]
)  # fmt: skip
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


@dataclass(frozen=True)
class Tiles:
    """How a call's units are cut into tiles."""

    axes: int  # two bits for each group of heads, T 0, H 1, W 2
    heads: int  # of a group
    per_axis: list[int]  # tiles of a head, three numbers
    slots: int  # the largest of them

    def partial_sums(self, qkv: Tensor, parts: int) -> Tensor:
        """Room for what each tile adds to `parts` sums: (B, N, slots, parts, Dh) fp32."""
        B, _, _, N, D = qkv.shape
        return qkv.new_empty((B, N, self.slots, parts, D), dtype=torch.float32)

    def add(
        self,
        partial: Tensor,  # (B, N, slots, parts, Dh)
        out: Tensor,  # (B, S, [parts,] N, Dh)
        grid: Sequence[int],
        *,
        mean: bool,
    ) -> None:
        """Fills row 0 of every clip with the sum over the tiles, or the mean over the lines."""
        B, N, _, parts, D = partial.shape
        axial_attention_cls_kernel[(B * N * parts,)](
            partial, out, *grid, out.shape[1], N, self.heads, *self.per_axis, self.slots,
            AXES=self.axes, MEAN=mean, PARTS=parts, D=D, CHUNK=16, num_warps=1,
        )  # fmt: skip
