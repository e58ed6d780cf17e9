"""Factorised positions, and their interpolation when the input shape changes.

The position of token (t, i, j) is time[t] + height[i] + width[j], which `embed_tokens` adds up;
[CLS] has a vector of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Positions(nn.Module):
    """The position tables of a grid (T, H, W): (1, D), (T, D), (H, D) and (W, D)."""

    def __init__(self, grid: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.empty(1, width))
        self.time = nn.Parameter(torch.empty(grid[0], width))
        self.height = nn.Parameter(torch.empty(grid[1], width))
        self.width = nn.Parameter(torch.empty(grid[2], width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws [CLS] with std 0.02 and the tables so that their sum has std 0.02."""
        nn.init.normal_(self.cls, std=0.02)
        for table in (self.time, self.height, self.width):
            nn.init.normal_(table, std=0.02 / 3**0.5)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        return self.time.shape[0], self.height.shape[0], self.width.shape[0]

    @torch.no_grad()
    def resize_(
        self, grid: tuple[int, int, int], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Interpolates the tables, and their moments in `optimizer`, to another grid, in place.

        The parameters stay the same objects, so the optimizer goes on with them; their gradients
        are dropped.

        Args:
            grid: The new (T, H, W).
            optimizer: Adam or AdamW holding these parameters, or None.
        """
        for table, length in zip((self.time, self.height, self.width), grid, strict=True):
            old = table.shape
            if length == old[0]:
                continue
            table.grad = None
            table.data = interpolate(table.data, length)
            state = optimizer.state.get(table, {}) if optimizer is not None else {}
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == old:
                    state[name] = interpolate(value, length)


def interpolate(
    table: Tensor,  # (L, D)
    length: int,
) -> Tensor:  # (length, D)
    """Resamples the rows of a table linearly, cell centre to cell centre (align_corners=False)."""
    if length < 1:
        raise ValueError(f"a grid size must be at least 1, got {length}")
    return F.interpolate(table.mT[None], size=length, mode="linear", align_corners=False)[
        0
    ].mT.contiguous()
