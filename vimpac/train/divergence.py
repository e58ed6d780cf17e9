"""Ends a run whose losses or weights are beyond anything that training works with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from vimpac.errors import VimpacError

# No training that works comes near them: a token is guessed at 9, weights are drawn at 0.02.
ABSURD_LOSS, ABSURD_WEIGHT = 1e6, 1e4


def check_losses(values: Mapping[str, float], since: int, done: int, saved: Path | None) -> None:
    """Raises VimpacError if a value is not finite or a loss absurd.

    Args:
        values: Means over the steps after `since`, by name.
        since: As said.
        done: Updates done.
        saved: The last checkpoint, if any.
    """
    finite = all(math.isfinite(value) for value in values.values())
    if not finite or any(x > ABSURD_LOSS for name, x in values.items() if "loss" in name):
        what = f"beyond {ABSURD_LOSS:g}" if finite else "not finite"
        raise VimpacError(
            f"the loss is {what} between steps {since + 1} and {done} "
            f"({', '.join(f'{k} {v:.4g}' for k, v in values.items())}); the last good "
            f"checkpoint is {saved or 'not there yet'}; "
            "lower optim.lr, or use precision=fp32"
        )


def are_absurd(weights: Iterable[Tensor]) -> bool:
    """Whether one of the weights is absurd, or none of them a number."""
    return not nn.utils.get_total_norm([*weights], math.inf) < ABSURD_WEIGHT


def check_start(weights: Iterable[Tensor]) -> None:
    """Raises VimpacError if a run starts from absurd weights."""
    if are_absurd(weights):
        raise VimpacError(
            f"the weights that the run starts from are not finite, or beyond {ABSURD_WEIGHT:g}: "
            "take another checkpoint"
        )


def absurd_weights(step: int, saved: Path | None) -> VimpacError:
    """The error for weights that a step has made.

    Args:
        step: Its number.
        saved: The last checkpoint, if any.
    """
    return VimpacError(
        f"step {step} made weights beyond {ABSURD_WEIGHT:g}, which are not saved; the "
        f"last good checkpoint is {saved or 'not there yet'}; lower optim.lr"
    )
