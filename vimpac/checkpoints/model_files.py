"""A model on disk: a directory with `model.safetensors` and `model.json`, which says what it is.

    model.json        see `vimpac.checkpoints.protocol`; its "kind" names the system that reads it
    checksums.json    of both, see `vimpac.checkpoints.checksums`

Every checkpoint of a run is such a directory, with the files beside that continue the run
(`vimpac.checkpoints.training_state`). Those of version 0.1 are read, too.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vimpac.checkpoints import version_01
from vimpac.checkpoints.checksums import check_file, damaged, write_checksums
from vimpac.checkpoints.model_card import CARD
from vimpac.checkpoints.protocol import DESCRIPTION, READERS, VIMPAC_READER, WEIGHTS, Description
from vimpac.errors import UsageError, VimpacError
from vimpac.files import whole_directory
from vimpac.paths import local_path


def write_model(folder: Path, description: Description, tensors: dict[str, Tensor]) -> None:
    """Writes the two files into a directory."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    (folder / DESCRIPTION).write_text(description.to_json(), encoding="utf-8")
    save_file(whole, folder / WEIGHTS)
    shutil.copymode(folder / DESCRIPTION, folder / WEIGHTS)  # safetensors writes for one user only


def save_whole(
    folder: Path, description: Description, tensors: dict[str, Tensor], card: str = ""
) -> None:
    """Writes a model directory, which appears complete or not at all.

    Args:
        folder: The directory.
        description: What the model is.
        tensors: Its state dict.
        card: The text of its model card; empty for none.

    Raises:
        UsageError: It exists.
        OSError: Writing failed.
        VimpacError: As OSError, where safetensors reports it in its own words.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already: remove it or name another directory")
    try:
        with whole_directory(folder) as temporary:
            write_model(temporary, description, tensors)
            write_checksums(temporary)
            if card:
                (temporary / CARD).write_text(card, encoding="utf-8")
    except SafetensorError as error:
        raise VimpacError(f"cannot write {folder}: {error}") from None


def read_model(folder: str | Path) -> tuple[Description, dict[str, Tensor]]:
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
    return description, description.with_new_names(tensors)


def read_description(folder: Path) -> Description:
    """What `read_model` says the model is."""
    if folder.is_file():
        hint = f"`vimpac convert {folder} DIR` makes one of a released checkpoint"
        if (folder.parent / DESCRIPTION).is_file():
            hint = f"give {folder.parent}"
        raise UsageError(f"{folder} is a file, no model directory: {hint}")
    if not (folder / WEIGHTS).is_file():
        reason = f"it has no {WEIGHTS}" if folder.exists() else "it does not exist"
        inside = folder / "checkpoints"
        hint = f"; look into {inside}" if inside.is_dir() else ""
        raise UsageError(f"{folder} is no model: {reason}{hint}")
    try:
        if (folder / DESCRIPTION).is_file():
            text = (folder / DESCRIPTION).read_text(encoding="utf-8")
            kind = json.loads(text).get("kind")
            reader = importlib.import_module(READERS.get(kind, VIMPAC_READER))
            description: Description = reader.from_json(text)
            check_file(folder / DESCRIPTION)
            return description
        if version_01.is_checkpoint(folder):
            return importlib.import_module(VIMPAC_READER).of_version_01(folder)
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from None
    except (OSError, VimpacError):
        raise
    except Exception as error:  # anything, over damaged bytes that still are JSON, YAML or a dict
        raise damaged(folder, error) from error
    raise UsageError(f"{folder} is no model: it has no {DESCRIPTION}")
