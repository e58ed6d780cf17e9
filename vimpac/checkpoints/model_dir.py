"""A model on disk: a directory with `model.safetensors` and `model.json`, its settings."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import torch

from vimpac.errors import UsageError, VimpacError
from vimpac.model.pretraining import Vimpac
from vimpac.presets import ModelConfig

WEIGHTS, SETTINGS = "model.safetensors", "model.json"


def save_model(model: Vimpac, folder: str | Path) -> None:
    """Writes a model; the directory appears complete or not at all.

    Args:
        model: The model.
        folder: A directory that does not exist yet.

    Raises:
        UsageError: If `folder` exists.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists():
        raise UsageError(f"{folder} exists already: remove it or name another directory")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    temporary.mkdir()
    try:
        tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        save_file(tensors, temporary / WEIGHTS)
        settings = json.dumps(dataclasses.asdict(model.config), indent=2)
        (temporary / SETTINGS).write_text(settings + "\n", encoding="utf-8")
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_model(folder: str | Path) -> Vimpac:
    """Reads what `save_model` wrote.

    Args:
        folder: The directory.

    Returns:
        The model, on the CPU, in training mode.

    Raises:
        VimpacError: If a file is absent, damaged, or does not fit the other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    missing = [name for name in (WEIGHTS, SETTINGS) if not (folder / name).is_file()]
    if missing:
        raise VimpacError(f"{folder} is no saved model: it has no {' and no '.join(missing)}")
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        with torch.device("meta"):
            model = Vimpac(ModelConfig(**settings))
        model.load_state_dict(load_file(folder / WEIGHTS), assign=True)
    except (ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise VimpacError(f"{folder} holds no intact model: {reason}") from error
    return model.requires_grad_()
