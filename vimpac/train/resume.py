"""From which checkpoint a run continues, and whether its optimiser is whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from vimpac.checkpoints.training_state import (
    checkpoint_path,
    find_checkpoint,
    find_damage,
    list_checkpoints,
    step_of,
)
from vimpac.errors import UsageError
from vimpac.paths import local_path
from vimpac.train.distributed import World


def choose_checkpoint(resume: str, out: Path, world: World) -> Path | None:
    """Resolves `--resume`, once for all processes: a file system may show them different files.

    Args:
        resume: "none", "auto" or a checkpoint's directory.
        out: The run's directory.
        world: The processes.

    Returns:
        The checkpoint, or None to start anew.

    Raises:
        UsageError: The directory is no checkpoint, or the run would overwrite another one.
        VimpacError: All checkpoints are damaged.
    """
    folder = out / "checkpoints"
    path = world.on_main(lambda: find_checkpoint(resume, folder))
    if resume == "none":
        return None
    if resume != "auto":
        return local_path(resume)
    step = world.largest(-1 if path is None else step_of(path))
    return None if step < 0 else checkpoint_path(folder, step)


def set_damaged_aside(out: Path, done: int, path: Path | None) -> list[str]:
    """Renames checkpoints that are later than where the run goes on, and damaged.

    What is written next would count as older, and be removed before them.

    Args:
        out: The run's directory, into which no other run writes.
        done: Updates done.
        path: The checkpoint that the run continues from, if any.

    Returns:
        A line for each.

    Raises:
        UsageError: A later one is whole.
    """
    problems = {}
    for later in reversed(list_checkpoints(out / "checkpoints")):
        if step_of(later) <= done:
            break
        problem = find_damage(later)
        if problem is None:
            where = path or "the beginning"
            raise UsageError(f"{later} is later than {where}: remove it or give another out=")
        problems[later] = problem
    notes = []
    for later, problem in problems.items():
        aside = later.with_name(f"damaged-{later.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(later, aside)
        reason = str(problem).rpartition(": ")[0]  # without the advice
        notes.append(f"{reason}; it is now {aside.name}, and the run goes on before it")
    return notes


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
