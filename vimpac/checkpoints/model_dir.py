"""A model on disk: a directory with `model.safetensors` and `model.json`, which says what it is.

    model.json    {"format": 3, "kind": "vimpac" | "classifier", "config": ModelConfig,
                   "loss": LossConfig | null, "classes": [name, ...] | null,
                   "data": DataFacts | null}
    checksums.json of both, see `vimpac.checkpoints.checksums`

Every checkpoint of a run is such a directory, with the files beside that continue the run
(`vimpac.checkpoints.training_state`). Those of version 0.1 are read, too.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vimpac.checkpoints import version_01
from vimpac.checkpoints.checksums import check_file, damaged, write_checksums
from vimpac.data.store import TokenStore
from vimpac.errors import UsageError, VimpacError
from vimpac.files import whole_directory
from vimpac.model.config import LossConfig, ModelConfig
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.model.heads import VideoClassifier
from vimpac.model.pretraining import Vimpac
from vimpac.paths import local_path

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
FORMAT = 3  # 2 is read, too: its norm "pre" is "pre_textbook" now
KINDS = ("vimpac", "classifier")


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """Of the clips that a model was trained on."""

    tokenizer: str
    digest: str  # SHA-256 of the tokenizer's weights; empty when it has none
    fps: float  # of the store
    frame_stride: int  # stored frames from one frame of a clip to the next
    height: int  # rows of the token map
    width: int  # columns of the token map

    @classmethod
    def of(cls, store: TokenStore, frame_stride: int) -> DataFacts:
        """The facts of clips of a store."""
        meta = store.meta
        sizes = meta.height, meta.width
        return cls(meta.tokenizer, meta.digest, meta.fps, frame_stride, *sizes)

    @property
    def tokens(self) -> str:
        """What made the tokens, for messages."""
        return f"the tokenizer '{self.tokenizer}'" + (
            f" with the weights {self.digest[:12]}" if self.digest else ""
        )


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """What `model.json` says."""

    kind: str
    config: ModelConfig
    loss: LossConfig | None = None
    classes: list[str] | None = None
    data: DataFacts | None = None

    def build(self) -> nn.Module:
        """The model, with fresh weights, on the current default device."""
        if self.kind == "vimpac":
            return Vimpac(self.config, self.loss or LossConfig(alpha=0))
        return VideoClassifier(VideoTokenEncoder(self.config), len(self.classes or ()))

    @classmethod
    def of(cls, model: nn.Module, **more: Any) -> ModelDescription:
        """Describes a `Vimpac` or, with `classes`, a `VideoClassifier`."""
        if isinstance(model, Vimpac):
            return cls("vimpac", model.config, model.loss_config, **more)
        assert isinstance(model, VideoClassifier)
        config = dataclasses.replace(model.encoder.config, grid=model.encoder.grid)
        return cls("classifier", config, **more)

    def to_json(self) -> str:
        """The text of `model.json`."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelDescription:
        """Reads `to_json`, or the file of version 0.1.

        Raises:
            ValueError: If it is neither.
            KeyError: If something is missing.
            TypeError: If something has a wrong type or name.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it holds no names and values")
        if "format" not in values:
            config, loss = version_01.read_settings(values)
            return cls("vimpac", config, loss)
        if values["format"] not in (2, FORMAT) or values["kind"] not in KINDS:
            raise UsageError(
                f"it is of format {values['format']}, kind {values['kind']!r}, which this version "
                "of vimpac does not know: upgrade it"
            )
        classes = values["classes"]
        if classes is not None and not all(isinstance(name, str) for name in [*classes]):
            raise TypeError(f"classes must be names, got {classes!r}")
        network = values["config"]
        if values["format"] == 2:
            network = version_01.with_new_norm(network)
        return cls(
            values["kind"],
            _from_fields(ModelConfig, network),
            _from_fields(LossConfig, values["loss"]) if values["loss"] else None,
            classes,
            _from_fields(DataFacts, values["data"]) if values["data"] else None,
        )


T = TypeVar("T")


def _from_fields(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass of all of its fields and no other."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    wrong = sorted(names ^ values.keys())
    if wrong:
        raise ValueError(f"{wrong[0]!r} is absent or unknown")
    return kind(**values)


def write_model(folder: Path, description: ModelDescription, tensors: dict[str, Tensor]) -> None:
    """Writes the two files into a directory."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    (folder / DESCRIPTION).write_text(description.to_json(), encoding="utf-8")
    save_file(whole, folder / WEIGHTS)
    shutil.copymode(folder / DESCRIPTION, folder / WEIGHTS)  # safetensors writes for one user only


def read_model(folder: str | Path) -> tuple[ModelDescription, dict[str, Tensor]]:
    """Reads a model directory, never running code from it.

    Args:
        folder: The directory.

    Returns:
        What the model is, and its tensors on the CPU.

    Raises:
        UsageError: The directory is no model directory.
        VimpacError: A file is damaged.
    """
    folder = local_path(folder)
    description = read_description(folder)
    (folder / WEIGHTS).open("rb").close()  # raises with the reason, which safetensors does not say
    check_file(folder / WEIGHTS)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise damaged(folder, error) from error
    return description, version_01.with_new_names(tensors)


def read_description(folder: Path) -> ModelDescription:
    """What `read_model` says the model is."""
    if not (folder / WEIGHTS).is_file():
        reason = f"it has no {WEIGHTS}" if folder.exists() else "it does not exist"
        inside = folder / "checkpoints"
        hint = f"; look into {inside}" if inside.is_dir() else ""
        raise UsageError(f"{folder} is no model: {reason}{hint}")
    try:
        if (folder / DESCRIPTION).is_file():
            text = (folder / DESCRIPTION).read_text(encoding="utf-8")
            description = ModelDescription.from_json(text)
            check_file(folder / DESCRIPTION)
            return description
        if version_01.is_checkpoint(folder):
            return ModelDescription(**version_01.read_description(folder))
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from None
    except (OSError, VimpacError):
        raise
    except Exception as error:  # anything, over damaged bytes that still are JSON, YAML or a dict
        raise damaged(folder, error) from error
    raise UsageError(f"{folder} is no model: it has no {DESCRIPTION}")


def save_model(
    model: Vimpac | VideoClassifier,
    folder: str | Path,
    *,
    classes: list[str] | None = None,
    data: DataFacts | None = None,
) -> None:
    """Writes a model; the directory appears complete or not at all.

    Args:
        model: The model.
        folder: A directory that does not exist yet.
        classes: The names of a classifier's classes.
        data: What it was trained on, if known.

    Raises:
        TypeError: If the model is of neither kind.
        ValueError: If a classifier has another number of classes.
        UsageError: If `folder` exists.
    """
    folder = local_path(folder)
    if not isinstance(model, Vimpac | VideoClassifier):
        raise TypeError(f"model must be a Vimpac or a VideoClassifier, got {type(model).__name__}")
    outputs = model.classifier.out_features if isinstance(model, VideoClassifier) else 0
    if len([] if classes is None else [*classes]) != outputs or isinstance(classes, str):
        raise ValueError(f"classes must be the names of {outputs} classes, got {classes!r}")
    if folder.exists():
        raise UsageError(f"{folder} exists already: remove it or name another directory")
    description = ModelDescription.of(model, classes=classes, data=data)
    try:
        with whole_directory(folder) as temporary:
            write_model(temporary, description, model.state_dict())
            write_checksums(temporary)
    except SafetensorError as error:
        raise VimpacError(f"cannot write {folder}: {error}") from None


def load_model(folder: str | Path) -> Vimpac:
    """Reads a pre-trained model: of `save_model`, `vimpac convert` or a run's checkpoint.

    Args:
        folder: The directory.

    Returns:
        The model, on the CPU, in training mode.

    Raises:
        UsageError: The directory holds no pre-trained model.
        VimpacError: A file is damaged, or does not fit the other.
    """
    description, tensors = read_model(folder)
    if description.kind != "vimpac":
        raise UsageError(f"{folder} holds a {description.kind}, not a pre-trained model")
    model = _filled(Path(folder), description, tensors)
    assert isinstance(model, Vimpac)
    return model


def load_classifier(folder: str | Path) -> tuple[VideoClassifier, list[str]]:
    """Reads a classifier, from a checkpoint of `vimpac finetune`.

    Args:
        folder: The checkpoint's directory.

    Returns:
        The classifier, on the CPU, in evaluation mode, and the names of its classes.

    Raises:
        UsageError: The directory holds no classifier.
        VimpacError: A file is damaged, or does not fit the other.
    """
    description, tensors = read_model(folder)
    if description.kind != "classifier":
        raise UsageError(f"{folder} holds no classifier: train one with `vimpac finetune`")
    model = _filled(Path(folder), description, tensors)
    assert isinstance(model, VideoClassifier)
    return model.eval(), description.classes or []


def load_encoder(folder: str | Path) -> tuple[VideoTokenEncoder, ModelDescription]:
    """Reads the encoder of any model directory.

    Args:
        folder: The directory.

    Returns:
        The encoder, on the CPU, and what the directory says of it.

    Raises:
        UsageError: The directory is no model directory.
        VimpacError: A file is damaged, or does not fit the other.
    """
    description, tensors = read_model(folder)
    model = _filled(Path(folder), description, tensors)
    assert isinstance(model, Vimpac | VideoClassifier)
    return model.encoder, description


def _filled(folder: Path, description: ModelDescription, tensors: dict[str, Tensor]) -> nn.Module:
    """The described model with these tensors."""
    try:
        with torch.device("meta"):
            model = description.build()
        model.load_state_dict(tensors, assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise damaged(folder, error) from None
    return model.requires_grad_()
