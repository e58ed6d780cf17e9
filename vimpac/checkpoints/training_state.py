"""Checkpoints of a run: model directories with what continues the run.

    <run>/checkpoints/step-00000500/
        model.json, model.safetensors    see `vimpac.checkpoints.model_files`
        training_state.pt                step, optimiser, sampler: tensors and numbers only
        config.yaml                      the resolved configuration
        checksums.json                   of all of them, see `vimpac.checkpoints.checksums`
        averaged/                        a model directory, if the run averages its weights

A checkpoint is written under a name that starts with `.tmp-`, brought to the disk and then renamed,
so a name `step-*` always stands for a complete one, whenever the process dies.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from vimpac.checkpoints import version_01
from vimpac.checkpoints.checksums import check_file, damaged, has_checksums, write_checksums
from vimpac.checkpoints.model_files import (
    WEIGHTS,
    read_description,
    read_model,
    write_model,
)
from vimpac.checkpoints.protocol import Description
from vimpac.checkpoints.state_file import load_state, save_state
from vimpac.errors import UsageError, VimpacError
from vimpac.files import whole_directory
from vimpac.paths import local_path

STATE, CONFIG, AVERAGED = "training_state.pt", "config.yaml", "averaged"


class Checkpoint(NamedTuple):
    """What a checkpoint holds, on the CPU."""

    description: Description
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    averaged: dict[str, Tensor] | None = None  # the mean of `tensors` over the last steps


def save_checkpoint(
    folder: Path, step: int, checkpoint: Checkpoint, *, config: str, keep: int
) -> Path:
    """Writes one checkpoint and removes the oldest ones.

    Args:
        folder: The directory of the checkpoints.
        step: Updates done.
        checkpoint: The model, and anything else to resume from: tensors, numbers, strings, lists
            and dicts.
        config: The configuration as YAML.
        keep: Checkpoints that remain.

    Returns:
        The checkpoint's directory.

    Raises:
        OSError: Writing failed; the earlier checkpoints are intact.
        VimpacError: As OSError, where PyTorch or safetensors reports it in its own words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".tmp-step-*"):  # of a process that was killed
        shutil.rmtree(leftover)
    final = checkpoint_path(folder, step)
    try:
        with whole_directory(final) as temporary:
            write_model(temporary, checkpoint.description, checkpoint.tensors)
            save_state(checkpoint.state, temporary / STATE)
            (temporary / CONFIG).write_text(config, encoding="utf-8")
            write_checksums(temporary)
            if checkpoint.averaged is not None:
                (temporary / AVERAGED).mkdir()
                write_model(temporary / AVERAGED, checkpoint.description, checkpoint.averaged)
                write_checksums(temporary / AVERAGED)
    except (SafetensorError, RuntimeError) as error:
        raise VimpacError(
            f"cannot write {final}: {error}; earlier checkpoints are intact"
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-" + 8 * "[0-9]") if p.is_dir())


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after so many updates is."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Updates that were done before one of `list_checkpoints`."""
    return int(path.name.removeprefix("step-"))


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """Resolves `--resume`.

    Args:
        resume: "none", "auto" (the newest whole one in `folder`, if there is any checkpoint) or a
            checkpoint's directory.
        folder: The directory of the run's checkpoints.

    Returns:
        The checkpoint, or None to start anew.

    Raises:
        UsageError: The directory is no checkpoint, or the run would overwrite another one.
        VimpacError: All checkpoints are damaged.
    """
    found = list_checkpoints(folder)
    if resume == "none":
        if found:
            raise UsageError(
                f"{folder} has checkpoints already: give --resume auto to continue, or another out="
            )
        return None
    if resume == "auto":
        problems = []
        for path in reversed(found):
            problem = find_damage(path)
            if problem is None:
                return path
            problems.append(problem)
        if problems:
            raise VimpacError(f"no checkpoint in {folder} is whole; the newest: {problems[0]}")
        return None
    path = local_path(resume)
    if not any((path / name).is_file() for name in (STATE, version_01.STATE)):
        raise UsageError(f"--resume {path} is no checkpoint of a run: it has no {STATE}")
    if found and path.resolve() not in [one.resolve() for one in found]:
        raise UsageError(
            f"--resume {path} is of another run than the checkpoints in {folder}: give another out="
        )
    return path


def find_damage(path: Path) -> VimpacError | None:
    """What is wrong with a checkpoint; None where it is whole.

    Args:
        path: The checkpoint's directory.

    Returns:
        The error that reading it would be.

    Raises:
        UsageError: It is of a later version.
    """
    models = [path, *_averaged(path)]
    files = [*(model / WEIGHTS for model in models), path / STATE]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None and not version_01.is_checkpoint(path):
        return damaged(path, f"it has no {missing.relative_to(path)}")
    try:
        for model in models:
            read_description(model)
        if all(has_checksums(model) for model in models):  # quicker than to read what they are of
            for file in files:
                check_file(file)
        else:
            load_checkpoint(path)
    except UsageError:
        raise
    except VimpacError as error:
        return error
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint to the CPU, never running code from it.

    Args:
        path: The checkpoint's directory.

    Returns:
        The model and the rest of the state.

    Raises:
        UsageError: The directory is no checkpoint.
        VimpacError: A file is damaged.
    """
    description, tensors = read_model(path)
    file = next((path / name for name in (STATE, version_01.STATE) if (path / name).exists()), None)
    if file is None:
        raise UsageError(f"{path} has no {STATE}, so it cannot be continued: take an earlier one")
    check_file(file)
    averaged = next((read_model(folder)[1] for folder in _averaged(path)), None)
    return Checkpoint(description, tensors, load_state(file), averaged)


def _averaged(path: Path) -> list[Path]:
    """The directory of a checkpoint's averaged weights, if it has one."""
    return [folder for folder in (path / AVERAGED,) if folder.is_dir()]
