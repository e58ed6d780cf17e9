"""Reads what `torch.save` wrote, without running code from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vimpac.errors import VimpacError


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
        raise VimpacError(
            f"{file} is damaged, or holds more than plain tensors and numbers: use another copy"
        ) from error
    if not isinstance(state, dict):
        raise VimpacError(f"{file} holds a {type(state).__name__}, not names and values")
    return state
