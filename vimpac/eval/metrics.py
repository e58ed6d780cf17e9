"""Shares of right answers, and how far they can be trusted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vimpac.errors import VimpacError

Z_95 = 1.959963984540054  # 97.5 % of a normal distribution lie below


def wilson(right: int, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: where the true one lies, seen `right` of `number`.

    Args:
        right: Hits, in [0, number].
        number: Trials, positive.

    Returns:
        Its two ends, within [0, 1].
    """
    share, z2 = right / number, Z_95**2
    centre = (share + z2 / (2 * number)) / (1 + z2 / number)
    spread = share * (1 - share) / number + z2 / (4 * number**2)
    half = Z_95 / (1 + z2 / number) * math.sqrt(spread)
    # The share itself is within, which rounding could hide where it is 0 or 1.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def top_k(
    scores: Tensor,  # (M, classes)
    labels: Tensor,  # (M,)
    k: int,
) -> Tensor:
    """Which labels are among the k highest scores; all are where there are no more classes.

    Of equal scores the one of the lowest class comes first.

    Returns:
        (M,) bool.
    """
    own, label = scores.gather(-1, labels[:, None]), labels[:, None]
    number = torch.arange(scores.shape[-1], device=scores.device)
    after = (scores < own) | ((scores == own) & (number > label))
    return (~after).sum(-1) <= min(k, scores.shape[-1])


def check_finite(values: Tensor, what: str) -> None:
    """Raises VimpacError if a value is not finite, which no score would show.

    Args:
        values: What a model has computed.
        what: What it is, for the message.
    """
    if not values.isfinite().all():
        raise VimpacError(f"{what} are not finite: use precision=fp32, or another checkpoint")


def in_percent(share: float, interval: tuple[float, float]) -> str:
    """A share and its interval, for a table."""
    low, high = (f"{100 * end:.1f}" for end in interval)
    return f"{share:6.1%} ({low}-{high})"


def mean_class_accuracy(
    scores: Tensor,  # (M, classes)
    labels: Tensor,  # (M,)
) -> float:
    """The mean of the classes' shares that are right; a class without a label is left out."""
    classes = scores.shape[-1]
    right = (scores.argmax(-1) == labels).double()
    number = torch.bincount(labels, minlength=classes)
    hits = torch.bincount(labels, right, minlength=classes)
    present = number > 0
    return float((hits[present] / number[present]).mean())
