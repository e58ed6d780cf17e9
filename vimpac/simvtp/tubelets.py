"""Which tubelets of a clip are seen, and their pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from vimpac.simvtp.config import NetworkConfig
from vimpac_kernels import mask_tokens


def split_mask(
    mask: Tensor,  # (B, N) bool, true: masked
    masked: int,
) -> tuple[Tensor, Tensor]:  # int32 indices: (B, N - masked), (B, masked)
    """The tubelets that are seen and those that are masked, each in increasing order.

    Every row of the mask must be true at `masked` places; nothing waits for the device to look.
    """
    order = mask.to(torch.uint8).argsort(dim=1, stable=True).to(torch.int32)
    seen = mask.shape[1] - masked
    return order[:, :seen].contiguous(), order[:, seen:].contiguous()


def draw_tubes(
    config: NetworkConfig,
    masked_cells: int,
    clips: int,
    seed: int | Tensor,
    first: int | Tensor = 0,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Hides the same cells in every time step, others in every clip.

    Args:
        config: The network.
        masked_cells: Hidden cells of a frame.
        clips: How many.
        seed: Of the masks.
        first: Number of the first clip; masks follow from (seed, number).
        device: Where the result is to be; None: the CPU.

    Returns:
        int32 indices of the visible tubelets (clips, V) and of the masked ones (clips, M).
    """
    T, H, W = config.grid
    blank = torch.zeros(clips, 1, H, W, dtype=torch.int32, device=device)
    ratio = masked_cells / (H * W)
    tubes = mask_tokens(
        blank, mask_token=1, strategy="tube", ratio=ratio, seed=seed, clip_offset=first
    )
    return split_mask(tubes.mask.flatten(1).repeat(1, T), T * masked_cells)


def patches(
    video: Tensor,  # (B, T, H, W, 3)
    tubelets: Tensor,  # (B, V) int32
    tubelet: tuple[int, int],  # frames, pixels of a side
) -> Tensor:  # (B, V, t*P*P, 3)
    """The pixels of tubelets, in the order (frame, row, column)."""
    B, T, H, W, _ = video.shape
    t, P = tubelet
    rows = video.reshape(B, T // t, t, H // P, P, W // P, P, 3)
    rows = rows.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, -1, t * P * P, 3)
    return torch.take_along_dim(rows, tubelets.long()[:, :, None, None], 1)
