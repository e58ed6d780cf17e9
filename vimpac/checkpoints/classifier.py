"""The encoder that a classifier starts from, and the classifier, from their files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from vimpac.checkpoints import training_state as ckpt
from vimpac.checkpoints.model_dir import SETTINGS, load_model
from vimpac.errors import UsageError, VimpacError
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.model.heads import VideoClassifier
from vimpac.presets import ModelConfig, preset
from vimpac.train.config import PretrainConfig
from vimpac.train.overrides import load_config


def describe(encoder: VideoTokenEncoder, classes: list[str]) -> dict[str, Any]:
    """What a classifier's checkpoint holds beside its tensors: how to build it anew."""
    settings = dataclasses.replace(encoder.config, grid=encoder.grid)
    return {"encoder": dataclasses.asdict(settings), "classes": classes}


def load_classifier(path: str | Path) -> tuple[VideoClassifier, list[str]]:
    """Reads a checkpoint of `vimpac finetune`.

    Args:
        path: The checkpoint's directory.

    Returns:
        The classifier, on the CPU, in evaluation mode, and the names of its classes.

    Raises:
        UsageError: The directory is no checkpoint of a classifier.
        VimpacError: A file is damaged.
    """
    path = Path(path)
    is_model = (path / SETTINGS).is_file()  # of a pre-training, too
    tensors, saved = ({}, {}) if is_model else _read(path)
    if "classes" not in saved:
        raise UsageError(f"{path} holds no classifier: train one with `vimpac finetune`")
    model = VideoClassifier(_build_encoder(path, tensors, saved), len(saved["classes"]))
    model.load_state_dict(tensors)
    return model.eval(), saved["classes"]


def load_encoder(path: Path) -> VideoTokenEncoder:
    """Reads the encoder of a checkpoint or of a model directory.

    Args:
        path: The directory.

    Returns:
        The encoder, on the CPU.

    Raises:
        UsageError: The directory is neither.
        VimpacError: A file is damaged.
    """
    if (path / SETTINGS).is_file():
        return load_model(path).encoder
    return _build_encoder(path, *_read(path))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint and what else it holds."""
    missing = [name for name in (ckpt.MODEL, ckpt.CONFIG) if not (path / name).is_file()]
    if missing:
        raise UsageError(f"{path} is no checkpoint: it has no {' and no '.join(missing)}")
    return ckpt.load_checkpoint(path)


def _build_encoder(
    path: Path, tensors: dict[str, Tensor], saved: dict[str, Any]
) -> VideoTokenEncoder:
    state = {k[8:]: v for k, v in tensors.items() if k.startswith("encoder.")}
    try:
        if "encoder" in saved:
            config = ModelConfig(**saved["encoder"])
        else:
            settings = load_config(PretrainConfig, str(path / ckpt.CONFIG)).model
            grid = tuple(len(state[f"positions.{axis}"]) for axis in ("time", "height", "width"))
            config = preset(**dataclasses.asdict(settings), grid=grid)
        encoder = VideoTokenEncoder(config)
        encoder.load_state_dict(state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise VimpacError(f"{path} does not hold the encoder it describes: {reason}") from None
    return encoder
