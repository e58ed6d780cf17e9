"""AdamW as the paper sets it: which parameters decay, and the learning rate over the updates."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vimpac.train_config import OptimConfig, TrainConfig

LARGE = 1024  # width of the paper's large model, whose learning rates are lower

Config = TypeVar("Config", bound=TrainConfig)


def with_lr(config: Config, width: int) -> Config:
    """A run's settings with a learning rate: the given one, or Table 4's for a model's width."""
    if config.optim.lr is not None:
        return config
    optim = dataclasses.replace(config.optim, lr=config.lrs[width >= LARGE])
    return dataclasses.replace(config, optim=optim)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
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


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, in one fused launch per group.

    Args:
        model: On the device where it will train.
        config: The settings.

    Returns:
        The optimiser.
    """
    assert config.lr is not None  # see `with_lr`
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def lr_at(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of an update: up to `lr` in a line, then down to 0 in a line.

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
    return config.lr * max(steps - step, 0) / max(steps - warmup, 1)


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
        group["lr"] = lr
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
