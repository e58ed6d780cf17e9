"""Which tubelets are seen, and the eager forms of the two passes over pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from vimpac.simvtp.config import NetworkConfig
from vimpac_kernels import mask_tokens

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]


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


def tubelet_embed(
    video: Tensor,  # (B, T, H, W, 3) uint8
    tubelets: Tensor,  # (B, V) int32
    weight: Tensor,  # (D, 3, t, P, P)
    bias: Tensor,  # (D,)
    positions: Tensor,  # (N, D)
) -> Tensor:  # (B, V, D)
    """A 3-d convolution of the normalised video at these tubelets, plus their positions."""
    pixels = patches(video, tubelets, (weight.shape[2], weight.shape[3])).to(weight.dtype) / 255
    mean, std = pixels.new_tensor(MEAN), pixels.new_tensor(STD)
    flat = weight.permute(0, 2, 3, 4, 1).flatten(1)
    x = torch.nn.functional.linear(((pixels - mean) / std).flatten(2), flat, bias)
    return x + positions.to(x.dtype)[tubelets.long()]


def tubelet_targets(
    video: Tensor,  # (B, T, H, W, 3) uint8
    tubelets: Tensor,  # (B, M) int32
    tubelet: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    eps: float = 1e-6,
) -> Tensor:  # (B, M, t*P*P*3)
    """Pixels of tubelets, each channel of each normalised to mean 0 and unbiased deviation 1."""
    pixels = patches(video, tubelets, tubelet).to(dtype) / 255
    std, mean = torch.std_mean(pixels, dim=2, keepdim=True)
    return ((pixels - mean) / (std + eps)).flatten(2)


def tubelet_mse(
    pred: Tensor,  # (B, M, t*P*P*3)
    video: Tensor,  # (B, T, H, W, 3) uint8
    tubelets: Tensor,  # (B, M) int32
    tubelet: tuple[int, int],
) -> Tensor:  # 0-d, at least fp32
    """The mean squared error of predicted, normalised pixels."""
    dtype = torch.promote_types(pred.dtype, torch.float32)
    target = tubelet_targets(video, tubelets, tubelet, dtype)
    return (pred.to(dtype) - target).square().mean()
