"""Reading weights files without running any code that may be in them."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch

from vimpac.errors import VimpacError


class PickledModule:
    """Stands for any module class in a pickled model: keeps its attributes, has no behaviour."""

    _parameters: dict[str, torch.Tensor]
    _modules: dict[str, Any]

    def state(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """The parameters by their dotted names."""
        found = {prefix + name: value for name, value in self._parameters.items()}
        for name, module in self._modules.items():
            found.update(module.state(f"{prefix}{name}."))
        return found


# The published DALL-E files are whole pickled modules of these classes.
MODULE_CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
)


def load_state(file: Path) -> dict[str, torch.Tensor]:
    """Reads a state dict.

    Args:
        file: `.safetensors`, or what torch.save wrote: a state dict or a pickled DALL-E module.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        VimpacError: It is neither, or holds more than tensors.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                return load_file(file)
            except SafetensorError as error:
                raise VimpacError(f"{file} is corrupt ({error}): download it again") from error
        stand_ins: list[Any] = [(PickledModule, name) for name in MODULE_CLASSES]
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        # torch's message is long; what the unpickler itself said is after its own name.
        said = str(error).rpartition("WeightsUnpickler error: ")[2]
        reason = " ".join(said.split()) or "it ends too early"
        raise VimpacError(f"{file} cannot be read ({reason:.200}): download it again") from error
    if isinstance(content, PickledModule):
        return content.state()
    if not isinstance(content, dict):
        raise VimpacError(f"{file} holds a {type(content).__name__}, not a state dict")
    return content


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        sha = hashlib.sha256()
        while block := stream.read(1 << 20):
            sha.update(block)
        return sha.hexdigest()
