"""AdamW as the paper sets it: which parameters decay, and the learning rate over the updates.

In fine-tuning the rate may also fall from the head to the embedding, layer by layer: what stands
first in a pre-trained model is what other videos need alike.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import groupby
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vimpac.errors import UsageError
from vimpac.train_config import FinetuneOptimConfig, OptimConfig, TrainConfig

LARGE = 1024  # width of the paper's large model, whose learning rates are lower
# The first names of an encoder's parameters below its layers and above them.
_BELOW = ("cls_token", "token_embedding", "positions", "embedding_norm")
_ABOVE = ("final_norm",)

Config = TypeVar("Config", bound=TrainConfig)


def with_lr(config: Config, width: int) -> Config:
    """A run's settings with a learning rate: the given one, or Table 4's for a model's width."""
    if config.optim.lr is not None:
        return config
    optim = dataclasses.replace(config.optim, lr=config.lrs[width >= LARGE])
    return dataclasses.replace(config, optim=optim)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits the parameters by weight decay.

    Weights of linear layers and token embeddings decay. Biases, norms, position tables and the
    [CLS] vector do not: they set an origin or a scale, and pulling those to zero regularises
    nothing.

    Args:
        model: The model.
        weight_decay: Of the first group.

    Returns:
        Two groups for an optimiser, in the order of `named_parameters()`.
    """
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        (keep if parameter.ndim < 2 or "position" in name else decay).append(parameter)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": keep, "weight_decay": 0.0},
    ]


def scale_by_layer(
    model: nn.Module, groups: list[dict[str, Any]], layer_decay: float
) -> list[dict[str, Any]]:
    """Splits groups once more, by the rates of the layers.

    Layer i of L learns at lr * d^(L - i), what is below layer 0 at lr * d^(L + 1), what is above
    the last one at lr.

    Args:
        model: A `VideoClassifier`.
        groups: From `parameter_groups`.
        layer_decay: d, in (0, 1].

    Returns:
        Groups with an `lr_scale`. One after the other they hold the parameters in the same order
        as before, so an optimiser's state fits with and without.

    Raises:
        UsageError: The place of a parameter is unknown.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    layers = len(cast(nn.ModuleList, model.get_submodule("encoder.layers")))
    scaled = []
    for group in groups:
        parts = groupby(group["params"], lambda parameter: _place(names[parameter], layers))
        for place, parameters in parts:
            scale = layer_decay ** (layers + 1 - place)
            scaled.append({**group, "params": [*parameters], "lr_scale": scale})
    return scaled


def _place(name: str, layers: int) -> int:
    """Of a classifier's parameter: 0 below the layers, i + 1 in layer i, `layers + 1` above."""
    if not name.startswith("encoder."):
        return layers + 1
    first, *rest = name.removeprefix("encoder.").split(".")
    if first == "layers":
        return int(rest[0]) + 1
    if first not in _BELOW + _ABOVE:
        raise UsageError(
            f"optim.layer_decay knows no layer of the parameter {name}: give optim.layer_decay=1"
        )
    return 0 if first in _BELOW else layers + 1


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, in one fused launch per group.

    Args:
        model: On the device where it will train.
        config: The settings.

    Returns:
        The optimiser.

    Raises:
        UsageError: As `scale_by_layer`.
    """
    assert config.lr is not None  # see `with_lr`
    groups = parameter_groups(model, config.weight_decay)
    if isinstance(config, FinetuneOptimConfig) and config.layer_decay < 1:
        groups = scale_by_layer(model, groups, config.layer_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def lr_at(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of an update: up to `lr` in a line, then down to `min_lr`.

    The way down is a line, or half a wave of a cosine.

    Args:
        step: Updates done before this one.
        steps: Updates in all.
        config: The settings.

    Returns:
        The learning rate; never 0 for a step within the run.
    """
    assert config.lr is not None
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    left = max(steps - step, 0) / max(steps - warmup, 1)  # 1 at the end of the warm-up
    if config.schedule == "cosine":
        left = 0.5 * (1 - math.cos(math.pi * left))
    return config.min_lr + (config.lr - config.min_lr) * left


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: OptimConfig,
    lr: Tensor,  # 0-d fp32 on the device
) -> Tensor:
    """Clips the gradients, makes one update with them and drops them.

    Nothing waits for the device, and what outlives the call stays in place, so a CUDA graph can
    hold it. A backward pass that finds no gradient leaves its own instead of adding it to zeros,
    which is a launch less for every parameter.

    Args:
        model: After backward.
        optimizer: From `make_optimizer`.
        config: The settings.
        lr: The learning rate; a graph reads it at replay.

    Returns:
        The norm before clipping, 0-d on the device.
    """
    norm = clip_gradients(model, config.max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] if "lr_scale" in group else lr
        group["capturable"] = lr.is_cuda and torch.cuda.is_current_stream_capturing()
    optimizer.step()
    optimizer.zero_grad()
    return norm


def clip_gradients(model: nn.Module, largest: float) -> Tensor:
    """Scales all gradients so that their common norm is at most `largest`.

    Args:
        model: After backward.
        largest: The bound; 0 only measures.

    Returns:
        The norm before scaling, 0-d, on the device: reading it would wait for the GPU.
    """
    norm = nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if largest > 0:
        nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
    return norm
