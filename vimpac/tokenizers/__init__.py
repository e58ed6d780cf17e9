"""Tokenizers: frames to maps of ids and, where a decoder is at hand, back.

`patch` needs no download and is for trying things; `dalle` is the paper's tokenizer. `pixels` keeps
the frames as they are, for `vimpac frames`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from vimpac.errors import UsageError

__all__ = ["TOKENIZERS", "Tokenizer", "get_tokenizer"]

TOKENIZERS = ("patch", "dalle")


class Tokenizer(Protocol):
    """What every tokenizer offers; S is a multiple of `patch`."""

    name: str
    vocab_size: int
    patch: int
    digest: str  # SHA-256 of the weights, empty without weights

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """RGB frames (F, 3, S, S) uint8 to ids (F, S / patch, S / patch) int64, on the CPU."""

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (F, h, w) to RGB frames (F, 3, h * patch, w * patch) uint8, on the CPU."""


def get_tokenizer(
    name: str, *, weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> Tokenizer:
    """Makes a tokenizer.

    Args:
        name: One of `TOKENIZERS`, or "pixels".
        weights: Weights file, or directory with encoder and decoder files; `dalle` only.
        device: Where it computes.

    Returns:
        The tokenizer.

    Raises:
        UsageError: An unknown name or device, or weights where there are none.
        VimpacError: The weights are missing or do not fit.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"device '{device}' cannot be used ({reason}): give e.g. cpu") from error
    if name == "patch":
        from vimpac.tokenizers.patch import PatchTokenizer

        if weights is not None:
            raise UsageError("the tokenizer 'patch' has no weights: leave --weights out")
        return PatchTokenizer(device=device)
    if name == "dalle":
        from vimpac.tokenizers.dalle import DalleTokenizer

        return DalleTokenizer(weights, device=device)
    if name == "pixels" and weights is None:
        from vimpac.tokenizers.pixels import PixelTokenizer

        return PixelTokenizer()
    raise UsageError(f"unknown tokenizer '{name}': one of {', '.join(TOKENIZERS)}")


def check_frames(frames: torch.Tensor, patch: int) -> None:
    """Raises unless `frames` is (F, 3, S, S') uint8 with sides divisible by `patch`."""
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames must be uint8, not {frames.dtype}")
    if frames.ndim != 4 or frames.shape[1] != 3 or any(s % patch for s in frames.shape[2:]):
        raise ValueError(f"frames {tuple(frames.shape)} are not (F, 3, S, S), S % {patch} == 0")


def check_ids(ids: torch.Tensor, vocab_size: int) -> None:
    """Raises unless `ids` is (F, h, w) integer in [0, vocab_size)."""
    if ids.ndim != 3 or ids.is_floating_point():
        raise ValueError(f"ids {tuple(ids.shape)} {ids.dtype} are not (F, h, w) integers")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError(f"an id of [{ids.min()}, {ids.max()}] is not in [0, {vocab_size})")
