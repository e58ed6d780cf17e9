"""VIMPAC's models on disk: directories as `vimpac.checkpoints.model_files` describes them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vimpac.checkpoints import model_files
from vimpac.checkpoints.checksums import damaged
from vimpac.checkpoints.description import (
    CLASSIFIERS,
    DataFacts,
    ModelDescription,
    check_classes,
)
from vimpac.checkpoints.model_card import model_card
from vimpac.checkpoints.model_files import save_whole
from vimpac.checkpoints.protocol import Description
from vimpac.errors import UsageError
from vimpac.model.attentive import AttentiveClassifier
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.model.heads import VideoClassifier
from vimpac.model.pretraining import Vimpac
from vimpac.paths import local_path

Classifier = VideoClassifier | AttentiveClassifier


def read_model(folder: str | Path) -> tuple[ModelDescription, dict[str, Tensor]]:
    """`vimpac.checkpoints.model_files.read_model` for models of VIMPAC.

    Raises:
        UsageError: The directory is no model directory, or of another system.
        VimpacError: A file is damaged.
    """
    description, tensors = model_files.read_model(folder)
    return _of_vimpac(folder, description), tensors


def read_description(folder: Path) -> ModelDescription:
    """What `read_model` says the model is."""
    return _of_vimpac(folder, model_files.read_description(folder))


def _of_vimpac(folder: str | Path, description: Description) -> ModelDescription:
    if not isinstance(description, ModelDescription):
        raise UsageError(
            f"{folder} holds a {description.kind}, a model of another system than VIMPAC: "
            "vimpac.simvtp.load_simvtp reads those of SimVTP"
        )
    return description


def save_model(
    model: Vimpac | Classifier,
    folder: str | Path,
    *,
    classes: list[str] | None = None,
    data: DataFacts | None = None,
    card: str = "",
) -> None:
    """Writes a model; the directory appears complete or not at all.

    Args:
        model: The model.
        folder: A directory that does not exist yet.
        classes: The names of a classifier's classes.
        data: What it was trained on, if known.
        card: The name on the hub for a model card, as in `push_to_hub`; empty for no card.

    Raises:
        TypeError: If the model is of neither kind.
        ValueError: If a classifier has another number of classes, or two of one name.
        UsageError: If `folder` exists.
    """
    folder = local_path(folder)
    if not isinstance(model, Vimpac | Classifier):
        raise TypeError(f"model must be a Vimpac or a classifier, got {type(model).__name__}")
    outputs = 0 if isinstance(model, Vimpac) else model.classifier.out_features
    if len([] if classes is None else [*classes]) != outputs or isinstance(classes, str):
        raise ValueError(f"classes must be the names of {outputs} classes, got {classes!r}")
    if classes is not None:
        check_classes([*classes])
    description = ModelDescription.of(model, classes=classes, data=data)
    text = model_card(description, model, card) if card else ""
    save_whole(folder, description, model.state_dict(), text)


save_any = save_model  # see `vimpac.checkpoints.hub`


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


def load_classifier(folder: str | Path) -> tuple[Classifier, list[str]]:
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
    if description.kind not in CLASSIFIERS:
        raise UsageError(f"{folder} holds no classifier: train one with `vimpac finetune`")
    model = _filled(Path(folder), description, tensors)
    assert isinstance(model, Classifier)
    return model.eval(), description.classes or []


def read_any(folder: str | Path) -> tuple[Vimpac | Classifier, ModelDescription]:
    """Reads a model of any kind.

    Args:
        folder: The directory.

    Returns:
        The model, on the CPU, in training mode, and what the directory says of it.

    Raises:
        UsageError: The directory is no model directory.
        VimpacError: A file is damaged, or does not fit the other.
    """
    description, tensors = read_model(folder)
    return _filled(Path(folder), description, tensors), description


def load_encoder(folder: str | Path) -> tuple[VideoTokenEncoder, ModelDescription]:
    """Reads the encoder of any model directory.

    Args:
        folder: The directory.

    Returns:
        The encoder, on the CPU, in training mode, and what the directory says of it.

    Raises:
        UsageError: The directory is no model directory.
        VimpacError: A file is damaged, or does not fit the other.
    """
    model, description = read_any(folder)
    return model.encoder.train().requires_grad_(), description  # whatever it was frozen for


def _filled(
    folder: Path, description: ModelDescription, tensors: dict[str, Tensor]
) -> Vimpac | Classifier:
    """The described model with these tensors."""
    try:
        with torch.device("meta"):
            model = description.build()
        model.load_state_dict(tensors, assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise damaged(folder, error) from None
    model.facts = description.facts
    if isinstance(model, AttentiveClassifier):
        return model  # whose encoder stays frozen
    return model.requires_grad_()
