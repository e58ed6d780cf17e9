"""Classifiers that are fitted to frozen features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fit_linear(
    features: Tensor,  # (M, D)
    labels: Tensor,  # (M,)
    classes: int,
    weight_decay: float,
) -> tuple[Tensor, Tensor]:
    """Logistic regression on standardised features, in fp64.

    Args:
        features: (M, D).
        labels: (M,) integers.
        classes: Their number.
        weight_decay: Half of it times the squared norm of the weight is added to the loss.

    Returns:
        The weight (classes, D) and the bias (classes,) for the features as they are.
    """
    mean = features.double().mean(0)
    single = len(features) == 1  # without a spread
    std = features.double().std(0, correction=0 if single else 1).clamp_min(1e-6)
    x = (features - mean) / std
    with torch.enable_grad():
        weight = x.new_zeros(classes, x.shape[1], requires_grad=True)
        bias = x.new_zeros(classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

        def loss() -> float:
            optimizer.zero_grad()
            value = F.cross_entropy(F.linear(x, weight, bias), labels)
            value = value + weight_decay / 2 * weight.square().sum()
            value.backward()
            return value.item()

        optimizer.step(loss)
    weight = weight.detach() / std
    return weight, bias.detach() - weight @ mean


DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def choose_decay(
    features: Tensor,  # (videos, views, D)
    labels: Tensor,  # (videos,)
    classes: int,
) -> float:
    """The weight decay of `DECAYS` that serves a held-out tenth of the videos best.

    Args:
        features: (videos, views, D).
        labels: (videos,) integers.
        classes: Their number.

    Returns:
        The decay; the largest of those that are as good.

    Raises:
        ValueError: There are fewer than two videos.
    """
    if len(labels) < 2:
        raise ValueError("two videos are needed, so that one can be held out")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held, kept = order.split((max(1, len(order) // 10), len(order) - max(1, len(order) // 10)))
    views = features.shape[1]
    x, y = features[kept].flatten(0, 1), labels[kept].repeat_interleave(views)
    best, chosen = -1, DECAYS[0]
    for decay in DECAYS:
        weight, bias = fit_linear(x, y, classes, decay)
        logits = F.linear(features[held].double(), weight, bias)  # (held, views, classes)
        right = int((logits.argmax(-1) == labels[held, None]).sum())
        if right >= best:
            best, chosen = right, decay
    return chosen
