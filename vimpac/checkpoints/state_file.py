"""Reads and writes tensors by names, without running code from a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vimpac.checkpoints.checksums import damaged
from vimpac.errors import VimpacError

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = ("num_batches_tracked", "_ids", "_index")  # ends of names of buffers
_WRAPPERS = ("model", "module", "state_dict")  # what training code names a state dict
# How PyTorch says what it has not unpickled.
_FOREIGN = re.compile(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL) (\S+) ")


def load_state(file: Path) -> dict[str, Any]:
    """Reads a file of tensors, numbers, texts, lists and dicts.

    Args:
        file: What `torch.save` wrote.

    Returns:
        The dict that was saved, its tensors on the CPU.

    Raises:
        OSError: The file cannot be read.
        VimpacError: It is damaged, or holds anything else.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # an unpickler may raise anything over damaged bytes
        foreign = _FOREIGN.search(str(error))
        if foreign:
            raise VimpacError(
                f"{file} holds more than plain tensors and numbers ({foreign[1]}), which could run "
                "code and is not read: if you trust it, read it with torch.load(weights_only="
                "False) and save its tensors alone"
            ) from error
        raise VimpacError(f"{file} is damaged, or not of torch.save: use another copy") from error
    if not isinstance(state, dict):
        raise VimpacError(f"{file} holds a {type(state).__name__}, not names and values")
    return state


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Reads the state dict of a model.

    Args:
        file: A .safetensors file, or what `torch.save` wrote: a state dict, or a dict that has one
            as its entry `model`, `module` or `state_dict`.

    Returns:
        Tensors by name, on the CPU, as `check_state` wants them.

    Raises:
        OSError: The file cannot be read.
        VimpacError: It is damaged, or holds anything else.
    """
    file.open("rb").close()  # raises with the reason, which safetensors does not say
    if file.suffix == ".safetensors":
        try:
            content: Any = load_file(file)
        except SafetensorError as error:
            raise damaged(file, error) from None
    else:
        content = load_state(file)
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
    if not any(isinstance(value, Tensor) for value in content.values()):
        raise VimpacError(f"{file} holds no state dict (names -> tensors)")
    try:
        return check_state(content)
    except ValueError as error:
        raise VimpacError(f"{file}: {error}") from None


def check_state(state_dict: object) -> dict[str, Tensor]:
    """Checks what training code saved, and drops a `module.` that all names begin with.

    Raises:
        ValueError: A name is no text, or what it names no dense floating-point tensor with data;
            only buffers that count may be integers.
    """
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"state_dict must map names to tensors, got {_kind(state_dict)}")
    for name, tensor in state_dict.items():
        if not isinstance(name, str):
            raise ValueError(f"the name {name!r} in the state dict is no text")
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name!r} must be a tensor, got {_kind(tensor)}")
        if tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided:
            layout = "on the meta device" if tensor.is_meta else f"of layout {tensor.layout}"
            raise ValueError(f"{name!r} must be a dense tensor with data, not one {layout}")
        if tensor.dtype not in _FLOATS and not (
            name.endswith(_INTEGERS) and tensor.dtype in (torch.int64, torch.int32)
        ):
            raise ValueError(f"{name!r} must be fp64, fp32, fp16 or bf16, not {tensor.dtype}")
    state = dict(state_dict)
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def save_state(state: Mapping[str, Any], file: Path) -> None:
    """Writes what `load_state` reads.

    Raises:
        OSError: Writing failed.
    """
    try:
        with file.open("wb") as stream:  # by name, torch refuses one that begins with a dot
            torch.save(state, stream)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # of a full disk, which PyTorch hides
            raise error.__context__ from None
        raise


def _kind(value: object) -> str:
    return type(value).__name__
