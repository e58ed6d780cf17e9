"""The lines of a T x H x W grid along an axis, or along joint axes."""

from __future__ import annotations

import math

from torch import Tensor

# Axis -> (id in the dropout counter, order of (B, T, H, W) with the line's axes last, how many).
AXES = {
    "T": (0, (0, 2, 3, 1), 1),
    "H": (1, (0, 1, 3, 2), 1),
    "W": (2, (0, 1, 2, 3), 1),
    "HW": (3, (0, 1, 2, 3), 2),
    "THW": (4, (0, 1, 2, 3), 3),
}


def to_lines(x: Tensor, axis: str) -> Tensor:
    """(B, T, H, W, ...) -> (B, lines, L, ...): the lines of `axis`, in the order of their ids."""
    _, order, joint = AXES[axis]
    x = x.permute(*order, *range(4, x.dim()))
    lines, length = math.prod(x.shape[1 : 4 - joint]), math.prod(x.shape[4 - joint : 4])
    return x.reshape(x.shape[0], lines, length, *x.shape[4:])


def from_lines(x: Tensor, axis: str, grid: tuple[int, int, int]) -> Tensor:
    """The inverse of `to_lines`: (B, lines, L, ...) -> (B, T, H, W, ...)."""
    order = AXES[axis][1]
    sizes = (x.shape[0], *grid)
    x = x.reshape(*(sizes[i] for i in order), *x.shape[3:])
    return x.permute(*(order.index(i) for i in range(4)), *range(4, x.dim()))
