"""What a checkpoint and the run that continues it must have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from vimpac.checkpoints.description import DataFacts
from vimpac.errors import UsageError


def check_tokenizer(path: Path, was: DataFacts | None, now: DataFacts | None) -> None:
    """Raises UsageError if a model would read tokens that another tokenizer made."""
    if was and now and (was.tokenizer, was.digest) != (now.tokenizer, now.digest):
        raise UsageError(
            f"{path} was trained on tokens of {was.tokens}, data= holds those of {now.tokens}"
        )


def check_data(path: Path, was: DataFacts | None, now: DataFacts | None) -> Iterator[str]:
    """Compares the data of a run with those that it goes on with.

    Args:
        path: The checkpoint.
        was: The facts of its data, if known.
        now: Those of the run's data.

    Yields:
        What differs and may, for the log.

    Raises:
        UsageError: The tokenizer or the time between two frames differs.
    """
    check_tokenizer(path, was, now)
    if was is None or now is None:
        return
    if was.interval != now.interval:
        raise UsageError(
            f"{path} was trained on frames {was.interval:g} s apart ({was.clock}), here they are "
            f"{now.interval:g} s apart ({now.clock}): give the same data= and clips.frame_stride, "
            "or another out="
        )
    if was.map != now.map:
        yield f"the token map is {now.map}, it was {was.map} in {path}"


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raises ValueError unless every parameter has Adam's moments, of its shape.

    The fused update reads them without looking.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name in ("exp_avg", "exp_avg_sq"):
                shape = getattr(state.get(name), "shape", None)
                if shape != parameter.shape or "step" not in state:
                    raise ValueError(
                        f"the optimiser's {name} of a parameter {tuple(parameter.shape)} is "
                        f"{'absent' if shape is None else tuple(shape)}"
                    )
