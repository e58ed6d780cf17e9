"""What `model.json` says of a SimVTP model, and models on disk.

{"format": 1, "kind": "simvtp" | "simvtp_dual",
 "config": NetworkConfig, "text": TextConfig, "loss": ObjectiveConfig,
 "frame_step": frames of a video from one of a clip to the next | null,
 "masked_cells": hidden cells of a frame | null,
 "words": what turns captions into ids, see `vimpac.simvtp.text` | null}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vimpac.checkpoints.checksums import damaged
from vimpac.checkpoints.model_card import model_card
from vimpac.checkpoints.model_files import read_model, save_whole
from vimpac.checkpoints.protocol import Description
from vimpac.errors import UsageError, VimpacError
from vimpac.paths import local_path
from vimpac.settings import LARGEST
from vimpac.simvtp.config import NetworkConfig, ObjectiveConfig, TextConfig
from vimpac.simvtp.dual import DualEncoder
from vimpac.simvtp.model import SimVTP
from vimpac.simvtp.text import SHORTEST, Words, make_words

FORMAT = 1
MODELS: dict[str, type[SimVTP | DualEncoder]] = {"simvtp": SimVTP, "simvtp_dual": DualEncoder}


@dataclasses.dataclass(frozen=True)
class SimVTPDescription:
    """What `model.json` says."""

    kind: str
    config: NetworkConfig
    text: TextConfig
    loss: ObjectiveConfig
    frame_step: int | None = None
    masked_cells: int | None = None
    words: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.text.length < SHORTEST:
            raise ValueError(f"text.length={self.text.length} must be at least {SHORTEST}")
        for name, most in (("frame_step", LARGEST), ("masked_cells", self.config.cells - 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 0 < value <= most):
                raise ValueError(f"{name}={value!r} must be a whole number up to {most:,}")

    @classmethod
    def of(cls, model: SimVTP | DualEncoder, **more: Any) -> SimVTPDescription:
        """Describes a model."""
        (kind,) = (kind for kind, other in MODELS.items() if isinstance(model, other))
        return cls(kind, model.config, model.text_config, model.loss_config, **more)

    @property
    def facts(self) -> dict[str, Any]:
        """See `Description`."""
        return {name: getattr(self, name) for name in ("frame_step", "masked_cells", "words")}

    def build(self) -> SimVTP | DualEncoder:
        """The model, with fresh weights, on the current default device."""
        return MODELS[self.kind](self.config, self.text, self.loss)

    def to_json(self) -> str:
        """The text of `model.json`."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    def with_new_names(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Description`; names have not changed yet."""
        return tensors

    def check_data(self, path: Path, was: Description) -> Iterator[str]:
        """See `Description`; the words must be the same."""
        if not isinstance(was, SimVTPDescription):
            return
        if was.words is not None and was.words != self.words:
            raise UsageError(
                f"{path} was trained on other words: give the captions or the vocab= of its run, "
                "or another out="
            )
        if was.frame_step is not None and was.frame_step != self.frame_step:
            yield f"clips.step is {self.frame_step}, it was {was.frame_step} in {path}"


def from_json(text: str) -> SimVTPDescription:
    """Reads `to_json`.

    Raises:
        ValueError: If it is something else.
        KeyError: If something is missing.
        TypeError: If something has a wrong type or name.
    """
    values = json.loads(text)
    if values["format"] != FORMAT:
        raise UsageError(
            f"it is of format {values['format']}, which this version of vimpac does not know: "
            "upgrade it"
        )
    return SimVTPDescription(
        values["kind"],
        NetworkConfig(**values["config"]),
        TextConfig(**values["text"]),
        ObjectiveConfig(**values["loss"]),
        values["frame_step"],
        values["masked_cells"],
        values["words"],
    )


def save_simvtp(
    model: SimVTP | DualEncoder, folder: str | Path, *, card: str = "", **more: Any
) -> None:
    """Writes a model; the directory appears complete or not at all.

    Args:
        model: The model.
        folder: A directory that does not exist yet.
        card: The name on the hub for a model card, as in `push_to_hub`; empty for no card.
        more: `frame_step`, `masked_cells` and `words`, as `SimVTPDescription` has them.

    Raises:
        UsageError: If `folder` exists.
    """
    description = SimVTPDescription.of(model, **more)
    text = model_card(description, model, card) if card else ""
    save_whole(local_path(folder), description, model.state_dict(), text)


save_any = save_simvtp  # see `vimpac.checkpoints.hub`


def read_any(folder: str | Path) -> tuple[SimVTP | DualEncoder, SimVTPDescription]:
    """Reads a model: of `save_simvtp`, `vimpac convert` or a run's checkpoint.

    Args:
        folder: The directory.

    Returns:
        The model, fp32 on the CPU, in training mode, and what the directory says of it.

    Raises:
        UsageError: The directory holds no such model.
        VimpacError: A file is damaged, or does not fit the other.
    """
    description, tensors = read_model(folder)
    if not isinstance(description, SimVTPDescription):
        raise UsageError(
            f"{folder} holds a {description.kind}, no model of SimVTP: train one with "
            "`vimpac simvtp pretrain`"
        )
    try:
        with torch.device("meta"):
            model = description.build()
        model.load_state_dict(tensors, assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise damaged(Path(folder), error) from None
    model.facts = description.facts
    return model.float().requires_grad_(), description


def read_words(description: SimVTPDescription, folder: str | Path) -> Words:
    """What turns captions into the ids of a model.

    Args:
        description: Of the model.
        folder: Where it was read from, for messages.

    Raises:
        UsageError: It says nothing of words.
        VimpacError: They are damaged, or do not fit the network.
    """
    if description.words is None:
        raise UsageError(
            f"{folder} has no words: take a checkpoint of a run, or convert with --vocab"
        )
    try:
        words = make_words(json.dumps(description.words))
    except VimpacError as error:
        raise damaged(Path(folder), error) from None
    if words.size != description.config.vocabulary:
        reason = f"it has {words.size} words, its network {description.config.vocabulary}"
        raise damaged(Path(folder), ValueError(reason))
    return words


def read_simvtp(folder: str | Path) -> tuple[SimVTP, SimVTPDescription]:
    """`read_any` for a pre-trained model.

    Raises:
        UsageError: The directory holds no such model.
        VimpacError: A file is damaged, or does not fit the other.
    """
    model, description = read_any(folder)
    if not isinstance(model, SimVTP):
        raise UsageError(f"{folder} holds a fine-tuned model: give a pre-trained one")
    return model, description


def load_simvtp(folder: str | Path) -> SimVTP | DualEncoder:
    """Reads a model, pre-trained or fine-tuned.

    Args:
        folder: Of `save_simvtp`, `vimpac convert` or a run's checkpoint.

    Returns:
        The model, fp32 on the CPU, in training mode.

    Raises:
        UsageError: The directory holds no such model.
        VimpacError: A file is damaged, or does not fit the other.
    """
    return read_any(folder)[0]
