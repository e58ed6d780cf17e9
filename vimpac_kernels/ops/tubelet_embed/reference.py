"""tubelet_embed in eager PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac_kernels.runtime.dtypes import accumulation_dtype


def tubelet_embed(
    video: Tensor,
    tubelets: Tensor,
    weight: Tensor,
    bias: Tensor,
    positions: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """`vimpac_kernels.tubelet_embed`: video (B, T, H, W, 3), tubelets (B, V) -> (B, V, D).

    Normalised in fp32 (fp64 for an fp64 weight), convolved in the dtype of `weight` or autocast;
    positions are added in fp32 or fp64. The row of a tubelet outside the grid is NaN.
    """
    high, D = accumulation_dtype(weight.dtype), len(weight)
    size = weight.shape[2:]
    channels = video.movedim(-1, 1).to(high) / 255  # (B, 3, T, H, W)
    centre, scale = (
        torch.tensor(values, dtype=high, device=video.device).view(3, 1, 1, 1)
        for values in (mean, std)
    )
    x = ((channels - centre) / scale).to(weight.dtype)
    every = F.conv3d(x, weight, bias, stride=tuple(size)).flatten(2).mT  # (B, N, D)
    index = tubelets.long()
    outside = (index < 0) | (index >= every.shape[1])
    index = index.masked_fill(outside, 0)
    chosen = every.gather(1, index[..., None].expand(-1, -1, D))  # (B, V, D)
    y = chosen.to(high) + positions.to(high)[index]
    return y.masked_fill(outside[..., None], math.nan).to(every.dtype)
