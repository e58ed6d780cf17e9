"""Checkpoints that are either whole or not there.

    <run>/checkpoints/step-00000500/
        model.safetensors    parameters and buffers, readable by any program
        state.pt             step, optimiser, sampler: tensors and numbers only
        config.yaml          the resolved configuration

A checkpoint is written into a directory whose name starts with `.tmp-`, brought to the disk and
then renamed, so a name `step-*` always stands for a complete one, whenever the process dies.
"""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vimpac.errors import UsageError, VimpacError

MODEL, STATE, CONFIG = "model.safetensors", "state.pt", "config.yaml"


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    model: dict[str, Tensor],
    state: dict[str, Any],
    config: str,
    keep: int,
) -> Path:
    """Writes one checkpoint and removes the oldest ones.

    Args:
        folder: The directory of the checkpoints.
        step: Updates done.
        model: State dict of the model.
        state: Anything else to resume from; tensors, numbers, strings, lists and dicts only.
        config: The configuration as YAML.
        keep: Checkpoints that remain.

    Returns:
        The checkpoint's directory.

    Raises:
        OSError: Writing failed; the earlier checkpoints are intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".tmp-{final.name}"
    temporary.mkdir()
    try:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.items()}
        save_file(tensors, temporary / MODEL)
        torch.save(state, temporary / STATE)
        (temporary / CONFIG).write_text(config, encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        _sync(folder)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise
        # safetensors and torch.save report a full disk in their own words.
        raise VimpacError(
            f"cannot write {final}: {error}; earlier checkpoints are intact"
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-" + 8 * "[0-9]") if p.is_dir())


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """Resolves `--resume`.

    Args:
        resume: "none", "auto" (the newest in `folder`, if any) or a checkpoint's directory.
        folder: The directory of the run's checkpoints.

    Returns:
        The checkpoint, or None to start anew.

    Raises:
        UsageError: The directory is no checkpoint, or the run would overwrite another one.
    """
    found = list_checkpoints(folder)
    if resume == "none":
        if found:
            raise UsageError(
                f"{folder} has checkpoints already: give --resume auto to continue, or another out="
            )
        return None
    if resume == "auto":
        return found[-1] if found else None
    path = Path(resume)
    missing = [name for name in (MODEL, STATE) if not (path / name).is_file()]
    if missing:
        raise UsageError(f"--resume {path} is no checkpoint: it has no {' and no '.join(missing)}")
    return path


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint to the CPU, never running code from it.

    Args:
        path: The checkpoint's directory.

    Returns:
        The model's state dict and the rest of the state.

    Raises:
        VimpacError: A file is absent or damaged.
    """
    try:
        model = load_file(path / MODEL)
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise VimpacError(
            f"checkpoint {path} is damaged ({reason}): remove it to resume from the one before"
        ) from error
    return model, state


def _remove_leftovers(folder: Path) -> None:
    """Removes what a killed process had begun to write."""
    for path in folder.glob(".tmp-step-*"):
        shutil.rmtree(path)


def _sync(path: Path) -> None:
    """Brings a file or a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
