"""mask_tokens as an operator, and the plan of a call as kernels take it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vimpac_kernels.runtime import library, native

STRATEGIES = ("block", "iid", "tube")


def _fake(tokens: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(tokens, memory_format=torch.contiguous_format),
        torch.empty(tokens.shape, dtype=torch.bool, device=tokens.device),
        torch.empty(tokens.numel(), dtype=torch.int32, device=tokens.device),
        torch.empty((), dtype=torch.int32, device=tokens.device),
    )


@library.operator(_fake)
def mask_tokens_fwd(
    tokens: Tensor,
    seed: Tensor,
    clip_offset: Tensor,
    *,
    mask_token: int,
    strategy: str,
    num_blocks: int,
    ratio: float,
    pad_token: int | None,
    max_block: Sequence[int],
    noise: Sequence[float],
    noise_unit: str,
    vocab_size: int,
    row_offset: int,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """inputs and mask (B, T, H, W), positions (B*T*H*W,), count (0-d)."""
    tokens = tokens.contiguous()
    inputs, mask, positions, count = outputs = _fake(tokens)
    if tokens.numel() == 0:
        count.zero_()
    else:
        options = kernel_options(tokens.shape, strategy, ratio, pad_token, noise, noise_unit)
        native.launch(
            impl, "mask_tokens_fwd", tokens=tokens, seed=seed, clip_offset=clip_offset,
            inputs=inputs, mask=mask, positions=positions, count=count, mask_token=mask_token,
            num_blocks=num_blocks, max_block=max_block, vocab_size=vocab_size,
            row_offset=row_offset, **options,
        )  # fmt: skip
    return outputs


def kernel_options(
    shape: Sequence[int],
    strategy: str,
    ratio: float,
    pad_token: int | None,
    noise: Sequence[float],
    noise_unit: str,
) -> dict[str, Any]:
    """The options as kernels take them: thresholds for random words of 32 bits."""
    B, T, H, W = shape
    low, high = (noise[0], noise[0] + noise[1]) if noise else (0.0, 0.0)
    return {
        "B": B,
        "T": T,
        "H": H,
        "W": W,
        "strategy": STRATEGIES.index(strategy),
        # iid: a word below it masks its token; tube: cells masked in every frame
        "amount": round(ratio * 2**32) if strategy == "iid" else math.floor(ratio * H * W + 0.5),
        "has_pad": pad_token is not None,
        "pad_token": pad_token or 0,
        "noise": (2 if noise_unit == "block" else 1) if noise else 0,  # 0: none
        # decisions below the first: mask token; below the second: random id
        "noise_below": (round(low * 2**32), round(high * 2**32)),
    }
