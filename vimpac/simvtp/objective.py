"""The four losses of SimVTP, each a function of tensors.

At chance: pixels about 1 (predicting 0 costs (n - 1) / n for n values of a channel), words
ln(vocabulary), contrast 2 ln(pairs), match ln 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_kernels import LinearCrossEntropyOutput, linear_cross_entropy

IGNORE_INDEX = -100


class MaskedWords(NamedTuple):
    """Which words are to be predicted."""

    labels: Tensor  # (B, L) ids, IGNORE_INDEX where nothing is to be predicted
    positions: Tensor  # (B * L,) int32: rows of masked words in increasing order, then others
    count: Tensor  # type: ignore[assignment]  # 0-d int32, hides tuple.count

    @classmethod
    def of(cls, labels: Tensor) -> MaskedWords:
        """From the labels alone; nothing waits for the device."""
        masked = labels.flatten() != IGNORE_INDEX
        positions = (~masked).to(torch.uint8).argsort(stable=True).to(torch.int32)
        return cls(labels, positions, masked.sum(dtype=torch.int32))


def word_loss(
    hidden: Tensor,  # (B, L, D), the joint encoder's rows of the words
    words: MaskedWords,
    head: nn.Linear,
    weight: Tensor,  # (V, D), `head`'s own or the embedding's
) -> LinearCrossEntropyOutput:
    """The mean cross-entropy over masked words, and the share predicted right; 0 without any."""
    result = linear_cross_entropy(
        hidden.flatten(0, 1),
        weight,
        words.labels.flatten(),
        linear_bias=head.bias,
        positions=words.positions,
        count=words.count,
        ignore_index=IGNORE_INDEX,
        return_stats=True,
    )
    assert isinstance(result, LinearCrossEntropyOutput)
    return result


def contrastive_loss(
    text: Tensor,  # (B, D), not normalised
    video: Tensor,  # (B, D)
    temperature: float,
) -> Tensor:
    """Cross-entropy of the cosines over rows plus that over columns, 0-d fp32.

    Both are fused with their products, so that the (B, B) similarities are never kept.
    """
    with torch.autocast(text.device.type, enabled=False):
        dtype = torch.promote_types(text.dtype, torch.float32)
        t = F.normalize(text.to(dtype), dim=-1)
        v = F.normalize(video.to(dtype), dim=-1)
        pairs = torch.arange(len(t), device=t.device)
        loss = torch.zeros((), dtype=dtype, device=t.device)
        for rows, columns in ((t, v), (v, t)):
            one = linear_cross_entropy(rows / temperature, columns, pairs)
            assert isinstance(one, Tensor)
            loss = loss + one
        return loss


def match_loss(
    pooled: Tensor,  # (2B, D): of B matching pairs, then of B others
    head: nn.Linear,
) -> tuple[Tensor, Tensor]:  # 0-d fp32 each
    """The cross-entropy of telling matching pairs from others, and the share told right."""
    logits = head(pooled.to(head.weight.dtype))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    target[: len(logits) // 2] = 1
    return F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean()


def mean_row(
    hidden: Tensor,  # (B, S, D)
    attention: Tensor | None = None,  # (B, L) bool of the last rows: false is left out
) -> Tensor:  # (B, D), at least fp32
    """The mean over rows; without `attention` over all of them, padding too; of no rows: 0."""
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if attention is None:
        return hidden.mean(1)
    others = attention.new_ones(len(attention), hidden.shape[1] - attention.shape[1])
    weight = torch.cat((others, attention), 1).to(hidden.dtype)
    return (hidden * weight[:, :, None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
