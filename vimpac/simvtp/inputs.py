"""Checks of what a model is given."""

from __future__ import annotations

import torch
from torch import Tensor

from vimpac.simvtp.config import NetworkConfig


def check_video(video: Tensor, config: NetworkConfig) -> None:
    """Raises ValueError unless clips are (B, T, S, S, 3) uint8 of the network's sizes."""
    clip = (config.frames, config.size, config.size, 3)
    if video.dim() != 5 or video.shape[1:] != clip or video.dtype != torch.uint8:
        raise ValueError(
            f"video must be (B, {', '.join(map(str, clip))}) uint8, got {tuple(video.shape)} "
            f"{video.dtype}"
        )


def check_text(ids: Tensor, attention: Tensor, config: NetworkConfig) -> None:
    """Raises ValueError unless ids and attention are (B, L) and the network has L positions."""
    if ids.dim() != 2 or attention.shape != ids.shape:
        raise ValueError(
            f"ids and attention of texts must be (B, L), got {tuple(ids.shape)} and "
            f"{tuple(attention.shape)}"
        )
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"ids of texts must be integers, got {ids.dtype}")
    if not 0 < ids.shape[1] <= config.text_positions:
        raise ValueError(
            f"a text of {ids.shape[1]} tokens does not fit: the network has text_positions="
            f"{config.text_positions}"
        )
