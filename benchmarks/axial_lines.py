"""Attention along axes as other libraries do it: copy lines together, attend, copy back."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Attention = Callable[[Tensor, tuple[int, int, int], str], Tensor]
# Axes of (B, T, H, W) with those of a line last, and how many those are.
ORDER = {
    "T": ((0, 2, 3, 1), 1),
    "H": ((0, 1, 3, 2), 1),
    "W": ((0, 1, 2, 3), 1),
    "HW": ((0, 1, 2, 3), 2),
    "THW": ((0, 1, 2, 3), 3),
}


def with_cls_lines(qkv: Tensor, grid: tuple[int, int, int], axis: str) -> Tensor:
    """(B, S, 3, n, Dh) -> (B, lines, L + 1, 3, n, Dh): [CLS] if any, then the tokens, of each."""
    order, joint = ORDER[axis]
    has_cls = qkv.shape[1] == math.prod(grid) + 1
    x = qkv[:, int(has_cls) :].unflatten(1, grid).permute(*order, 4, 5, 6)
    length = math.prod(x.shape[4 - joint : 4])
    x = x.reshape(len(x), -1, length, *x.shape[4:])
    if not has_cls:
        return x
    cls = qkv[:, None, :1].expand(-1, x.shape[1], -1, -1, -1, -1)
    return torch.cat((cls, x), dim=2)


def from_cls_lines(y: Tensor, grid: tuple[int, int, int], axis: str) -> Tensor:
    """The inverse, [CLS] averaged if there is one: (B, lines, L + 1, n, Dh) -> (B, S, n, Dh)."""
    order, _ = ORDER[axis]
    has_cls = y.shape[1] * y.shape[2] > math.prod(grid)
    sizes = [grid[i - 1] for i in order[1:]]
    tokens = y[:, :, int(has_cls) :].reshape(len(y), *sizes, *y.shape[3:])
    tokens = tokens.permute(*(order.index(i) for i in range(4)), 4, 5)
    tokens = tokens.flatten(1, 3)
    return torch.cat((y[:, :, :1].mean(1), tokens), dim=1) if has_cls else tokens


def each_axis(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Attention:
    """Copies lines together, attends with q, k, v (M, n, L + 1, Dh), copies back."""

    def run(qkv: Tensor, grid: tuple[int, int, int], axes: str) -> Tensor:
        outputs = []
        for part, axis in zip(qkv.chunk(axes.count("|") + 1, dim=3), axes.split("|"), strict=True):
            x = with_cls_lines(part, grid, axis)
            q, k, v = x.flatten(0, 1).permute(2, 0, 3, 1, 4)
            y = attend(q, k, v).transpose(1, 2).unflatten(0, x.shape[:2])
            outputs.append(from_cls_lines(y, grid, axis))
        return torch.cat(outputs, dim=2)

    return run


def eager_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula as the released code writes it."""
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1) @ v


def near(actual: Tensor, truth: Tensor) -> None:
    """Raises AssertionError if a candidate is not within its dtype's error of the reference."""
    tolerance = {torch.float32: 1e-4}.get(actual.dtype, 4e-2)
    torch.testing.assert_close(actual.float(), truth.float(), atol=tolerance, rtol=tolerance)
