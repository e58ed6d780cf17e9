"""The order in which GPU kernels add up the gradient of an embedding."""

from __future__ import annotations

import torch
from torch import Tensor


def sort_ids(
    tokens: Tensor,  # integer, of any shape
    V: int,
) -> tuple[Tensor, Tensor]:  # int32 ids in increasing order; int64 numbers of their tokens
    """Tokens of one id lie together, in their own order; those outside [0, V) at the ends."""
    ids, order = tokens.flatten().clamp(-1, V).to(torch.int32).sort(stable=True)
    return ids, order
