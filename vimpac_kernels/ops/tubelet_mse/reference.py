"""tubelet_mse in eager PyTorch, and the targets that it compares with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vimpac_kernels.runtime.dtypes import accumulation_dtype


def tubelet_targets(
    video: Tensor,
    tubelets: Tensor,
    *,
    tubelet: tuple[int, int] = (2, 16),
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Pixels of chosen tubelets, normalised per tubelet and channel, (B, M, t*P*P*3) of `dtype`.

    A tubelet has n = t*P*P values v in 0..255 of a channel, whose sums are taken in integers:

        spread = n * sum(v^2) - sum(v)^2       n (n - 1) times the unbiased variance, exact
        target = (n * v - sum(v)) / (n * (sqrt(spread / (n (n - 1))) + 255 * eps))

    which is (x - mean) / (std + eps) of x = v / 255. It is 0 where the spread is, and NaN of a
    tubelet outside the grid.

    Args:
        video: (B, T, H, W, 3) uint8.
        tubelets: (B, M) int32, indices into the grid (T/t, H/P, W/P), width running fastest.
        tubelet: (t, P), its frames and its pixels on a side.
        eps: Added to the standard deviation of x.
        dtype: Of the result, fp32 or fp64.
    """
    (t, P), (B, T, H, W, _) = tubelet, video.shape
    n, places = t * P * P, (T // t, H // P, W // P)
    blocks = video.reshape(B, places[0], t, places[1], P, places[2], P, 3)
    blocks = blocks.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, math.prod(places), n, 3)
    outside = (tubelets < 0) | (tubelets >= math.prod(places))
    clip = torch.arange(B, device=video.device)[:, None]
    v = blocks[clip, tubelets.masked_fill(outside, 0).long()].long()  # (B, M, n, 3)
    total = v.sum(2, keepdim=True)
    spread = n * v.square().sum(2, keepdim=True) - total.square()
    divisor = n * ((spread.to(dtype) / (n * (n - 1))).sqrt() + 255 * eps)
    divisor = divisor.masked_fill(spread == 0, 1.0)
    divisor = divisor.masked_fill(outside[..., None, None], math.nan)
    return ((n * v - total).to(dtype) / divisor).flatten(2)


def tubelet_mse(
    pred: Tensor,
    video: Tensor,
    tubelets: Tensor,
    *,
    tubelet: tuple[int, int] = (2, 16),
    eps: float = 1e-6,
) -> Tensor:
    """`vimpac_kernels.tubelet_mse`: the mean of (pred - target)^2, 0-d; 0 of no element.

    It is computed in fp32, in fp64 for an fp64 `pred`.
    """
    high = accumulation_dtype(pred.dtype)
    target = tubelet_targets(video, tubelets, tubelet=tubelet, eps=eps, dtype=high)
    return (pred.to(high) - target).square().sum() / max(pred.numel(), 1)
