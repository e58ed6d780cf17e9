"""The fixed sine and cosine table of positions."""

from __future__ import annotations

import torch
from torch import Tensor


def sine_table(rows: int, width: int) -> Tensor:
    """Positions of tubelets in their flattened order.

    table[p, 2i] = sin(p / 10000^(2i / width)), table[p, 2i + 1] = cos of the same.

    Args:
        rows: Tubelets of a clip.
        width: Of a token.

    Returns:
        (rows, width) fp32, computed in fp64.
    """
    with torch.device("cpu"):
        column = torch.arange(width, dtype=torch.float64) // 2 * 2 / width
        angle = torch.arange(rows, dtype=torch.float64)[:, None] / 10_000**column
        table = torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos())
        return table.float()
