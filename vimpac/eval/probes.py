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
    mean, std = features.double().mean(0), features.double().std(0).clamp_min(1e-6)
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
