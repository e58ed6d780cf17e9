"""Tokenizers: frames to maps of ids and, where a decoder is at hand, back.

`patch` needs no download and is for trying things; `dalle` is the paper's tokenizer. `pixels` keeps
the frames as they are, for `vimpac frames`. Only `dalle` imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from vimpac.errors import UsageError

__all__ = ["TOKENIZERS", "Tokenizer", "device_batch", "get_tokenizer"]

TOKENIZERS = ("patch", "dalle")


class Tokenizer(Protocol):
    """What every tokenizer offers; S is a multiple of `patch`."""

    name: str
    vocab_size: int
    patch: int
    digest: str  # SHA-256 of the weights, empty without weights
    compute: str  # dtype and device, empty unless the ids depend on them

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """RGB frames (F, 3, S, S) uint8 to ids (F, S / patch, S / patch) int32."""

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Ids (F, h, w) to RGB frames (F, 3, h * patch, w * patch) uint8."""


def get_tokenizer(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> Tokenizer:
    """Makes a tokenizer.

    Args:
        name: One of `TOKENIZERS`, or "pixels".
        weights: Weights file, or directory with encoder and decoder files; `dalle` only.
        device: Where it computes; `dalle` only, the others compute on the CPU.
        dtype: Of its arithmetic, of `dalle.DTYPES`; `dalle` only, the others use integers.

    Returns:
        The tokenizer.

    Raises:
        UsageError: An unknown name, device or dtype, or one that the tokenizer does not have.
        VimpacError: The weights are missing or do not fit.
    """
    if name == "dalle":
        from vimpac.tokenizers.dalle import DalleTokenizer

        return DalleTokenizer(weights, device=device, dtype=dtype)
    if name not in ("patch", "pixels"):
        raise UsageError(f"unknown tokenizer '{name}': one of {', '.join(TOKENIZERS)}")
    if weights is not None:
        raise UsageError(f"the tokenizer '{name}' has no weights: leave --weights out")
    if device != "cpu":
        raise UsageError(f"the tokenizer '{name}' computes on the CPU: leave --device out")
    if dtype != "float32":
        raise UsageError(f"the tokenizer '{name}' computes with integers: leave --dtype out")
    if name == "patch":
        from vimpac.tokenizers.patch import PatchTokenizer

        return PatchTokenizer()
    from vimpac.tokenizers.pixels import PixelTokenizer

    return PixelTokenizer()


def device_batch(size: int) -> int:
    """How many frames of this side a GPU encodes at a time: 64 of 128 x 128 pixels."""
    return max(1, (64 << 14) // size**2)


def check_frames(frames: np.ndarray, patch: int) -> None:
    """Raises unless `frames` is (F, 3, S, S') uint8 with sides divisible by `patch`."""
    if frames.dtype != np.uint8:
        raise TypeError(f"frames must be uint8, not {frames.dtype}")
    if frames.ndim != 4 or frames.shape[1] != 3 or any(s % patch for s in frames.shape[2:]):
        raise ValueError(f"frames {frames.shape} are not (F, 3, S, S), S % {patch} == 0")


def check_ids(ids: np.ndarray, vocab_size: int) -> None:
    """Raises unless `ids` is (F, h, w) integer in [0, vocab_size)."""
    if ids.ndim != 3 or ids.dtype.kind not in "iu":
        raise ValueError(f"ids {ids.shape} {ids.dtype} are not (F, h, w) integers")
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(f"an id of [{ids.min()}, {ids.max()}] is not in [0, {vocab_size})")
