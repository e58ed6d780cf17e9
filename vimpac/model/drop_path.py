"""Stochastic depth: in training a clip goes past some residual branches (Huang et al., 2016).

    x + keep / (1 - p) * (f(x) + bias),  keep ~ Bernoulli(1 - p) per clip and branch

with p rising in a line from 0 in the first layer to the encoder's `drop_path` in the last one. What
a clip leaves out is a function of the seed and of its place in the batch, and is drawn on the
device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vimpac_kernels import mask_tokens


def drop_rates(rate: float, layers: int) -> list[float]:
    """p of each layer."""
    return [rate * i / max(layers - 1, 1) for i in range(layers)]


def draw_scales(
    seeds: Tensor,  # (layers,) int64
    rates: list[float],
    branches: int,
    clips: int,
) -> list[Tensor | None]:  # (branches, B) fp32 per layer, 0 or 1 / (1 - p); None: all 1
    """What the branches of each layer are multiplied by, for every clip."""
    table = torch.zeros(clips, 1, 1, branches, dtype=torch.int16, device=seeds.device)
    scales: list[Tensor | None] = []
    for seed, p in zip(seeds.unbind(), rates, strict=True):
        scale = None
        if p > 0:  # an entry of the table is masked where a clip goes past a branch
            past = mask_tokens(table, mask_token=1, strategy="iid", ratio=p, seed=seed).mask
            scale = past.view(clips, branches).mT.logical_not() / (1 - p)
        scales.append(scale)
    return scales


def scale_branch(
    update: Tensor,  # (B, S, D) or (R, D)
    bias: Tensor,  # (D,)
    scale: Tensor,  # (B,)
    clip: Tensor | None,  # (R,), the clip of each row
) -> Tensor:  # as `update`
    """(update + bias) * scale, clip by clip."""
    scale = scale[:, None, None] if clip is None else scale[clip, None]
    return ((update + bias) * scale).to(update.dtype)
