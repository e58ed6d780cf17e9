"""What version 0.1 wrote: model directories with other settings, checkpoints without `model.json`.

model.json     the fields of ModelConfig and LossConfig of then, all in one
state.pt       of a checkpoint: step, optimiser, sampler, grid; of a classifier: its encoder's
               settings and its classes
config.yaml    of a checkpoint: the configuration
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from vimpac.checkpoints.state_file import load_state
from vimpac.config import PretrainConfig
from vimpac.model.config import LossConfig, ModelConfig
from vimpac.settings import load_config
from vimpac.yaml_text import parse

STATE, CONFIG, WEIGHTS = "state.pt", "config.yaml", "model.safetensors"

_NAMES = (  # patterns of names of then, and what they are today
    (r"(\.attention\.\d+)\.qkv\.(weight|bias)$", r"\1.axial.in_proj_\2"),
    (r"(\.attention\.\d+)\.out\.(weight|bias)$", r"\1.axial.out_proj.\2"),
    (r"^token_head\.bias$", "token_head.cross_entropy.bias"),
)


def with_new_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of today; those that have them already keep them."""
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in _NAMES:
            name = re.sub(old, new, name)
        renamed[name] = tensor
    return renamed


def with_new_norm(config: dict[str, Any]) -> dict[str, Any]:
    """A network's settings, in which "pre" was the textbook form, under the names of today."""
    return {**config, "norm": "pre_textbook"} if config.get("norm") == "pre" else config


def is_checkpoint(folder: Path) -> bool:
    """Whether a directory is a checkpoint of version 0.1."""
    return (folder / STATE).is_file() and (folder / CONFIG).is_file()


def read_description(folder: Path) -> dict[str, Any]:
    """The fields of the `ModelDescription` of a checkpoint."""
    state = load_state(folder / STATE)
    if "classes" in state:
        config, _ = read_settings(state["encoder"])
        return {"kind": "classifier", "config": config, "classes": state["classes"]}
    sections = parse((folder / CONFIG).read_text(encoding="utf-8"))
    words = (
        f"{section}.{key}={text}"
        for section in ("model", "loss")
        for key, text in sections[section].items()
    )
    run = load_config(PretrainConfig, None, [*words])
    with safe_open(folder / WEIGHTS, "pt") as tensors:
        axes = ("time", "height", "width")
        grid = [tensors.get_slice(f"encoder.positions.{axis}").get_shape()[0] for axis in axes]
    return {
        "kind": "vimpac",
        "config": dataclasses.replace(run.model, grid=tuple(grid)),
        "loss": run.loss,
    }


def read_settings(values: dict[str, Any]) -> tuple[ModelConfig, LossConfig]:
    """The settings of a model, which had those of its loss among them."""
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    config = {key: value for key, value in values.items() if key in known}
    loss = {key: values[key] for key in ("alpha", "gamma", "temperature")}
    return ModelConfig(**with_new_norm(config)), LossConfig(**loss)
