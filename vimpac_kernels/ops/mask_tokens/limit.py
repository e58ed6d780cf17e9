"""The limit of csrc/mask_tokens/cuda.cu: a block keeps what a clip draws in shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vimpac_kernels.runtime import registry
from vimpac_kernels.runtime.compiling import constant_in_graphs


@constant_in_graphs
def _kernel_bytes() -> tuple[int, int, int]:
    """What every clip takes, what a box of it takes, and the most that a block can have."""
    return registry.extension("cuda").mask_tokens_shared_bytes()


def shared_bytes(shape: Sequence[int], strategy: str, num_blocks: int) -> int:
    """What one clip of tokens (B, T, H, W) takes, as launch_mask_tokens_fwd counts it."""
    every, box, _ = _kernel_bytes()
    _, T, H, W = shape
    groups = (T * H * W + 3) // 4  # a byte each
    boxes = box * num_blocks if strategy == "block" else 0
    keys = 4 * H * W if strategy == "tube" else 0
    return every + _whole_vectors(groups) + _whole_vectors(boxes) + keys


def _whole_vectors(size: int) -> int:
    return (size + 15) // 16 * 16


@constant_in_graphs
def shared_limit(device: torch.device) -> int:
    """Bytes that a block can have on a device; emulated kernels have the most there is."""
    *_, most = _kernel_bytes()
    if device.type != "cuda":
        return most
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stub lacks it
    return min(most, properties.shared_memory_per_block_optin)
