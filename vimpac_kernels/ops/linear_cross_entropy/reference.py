"""linear_cross_entropy in eager PyTorch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac_kernels.runtime.dtypes import accumulation_dtype


class LinearCrossEntropyOutput(NamedTuple):
    """What `linear_cross_entropy(..., return_stats=True)` returns."""

    loss: Tensor  # fp32, 0-d or (rows,)
    accuracy: Tensor  # 0-d fp32: fraction of the counted targets whose arg-max is right
    num_targets: Tensor  # 0-d int32: targets that count


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    positions: Tensor | None = None,
    count: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> LinearCrossEntropyOutput:
    """`vimpac_kernels.linear_cross_entropy`: input (..., D), target (...) -> loss and statistics.

    Per row: nll = lse - z[target]; loss = (1 - s) * nll + s * (lse - mean(z)) + z_loss * lse^2.
    Rows that are ignored, or at positions[count:] (without positions, rows from count on), give 0
    and no gradient; a target outside [0, V) or a negative position that counts gives NaN.
    """
    rows, labels = torch.atleast_2d(input).flatten(0, -2), target.flatten().long()
    slots = len(labels) if positions is None else len(positions)
    live = torch.arange(slots, device=labels.device) < (slots if count is None else count)
    outside = torch.zeros_like(live)
    if positions is not None:
        outside, index = positions < 0, positions.long()
        index = torch.where(live & ~outside, index, len(labels))  # one row more
        rows, labels = F.pad(rows, (0, 0, 0, 1))[index], F.pad(labels, (0, 1))[index]
    counted = live & (outside | (labels != ignore_index))
    rows = rows.masked_fill(~counted[:, None], 0.0)
    vocabulary = linear_weight.shape[0]
    outside = counted & (outside | (labels < 0) | (labels >= vocabulary))
    z = F.linear(rows, linear_weight, linear_bias).to(accumulation_dtype(rows.dtype))  # (M, V)
    lse = z.logsumexp(-1)
    safe = labels.masked_fill(~counted | outside, 0)
    loss = lse - z.gather(-1, safe[:, None])[:, 0]
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * (lse - z.mean(-1))
    if z_loss:
        loss = loss + z_loss * lse.square()
    loss = loss.masked_fill(outside, math.nan).masked_fill(~counted, 0.0)
    num_targets = counted.sum(dtype=torch.int32)
    hits = (z.argmax(-1) == labels) & counted if vocabulary else counted
    accuracy = hits.sum().float() / num_targets.clamp(min=1)
    if reduction != "none":
        loss = loss.sum()
        loss = loss / num_targets.clamp(min=1) if reduction == "mean" else loss
    return LinearCrossEntropyOutput(loss, accuracy, num_targets)
