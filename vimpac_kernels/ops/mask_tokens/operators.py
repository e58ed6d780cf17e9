"""mask_tokens as an operator, and the plan of a call as kernels take it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vimpac_kernels.runtime import library, native

STRATEGIES = ("block", "iid", "tube")


def _run(
    tokens: Tensor, seed: Tensor, clip_offset: Tensor, *, impl: str, **plan: Any
) -> tuple[Tensor, ...]:
    tokens = tokens.contiguous()
    outputs = _fake(tokens, seed, clip_offset)
    if tokens.numel() == 0:
        outputs[3].zero_()
    else:
        inputs, mask, positions, count = outputs
        native.launch(
            impl, "mask_tokens_fwd", tokens=tokens, seed=seed, clip_offset=clip_offset,
            inputs=inputs, mask=mask, positions=positions, count=count,
            **kernel_options(tokens.shape, **plan),
        )  # fmt: skip
    return outputs


def kernel_options(
    shape: Sequence[int],
    *,
    strategy: str,
    ratio: float,
    pad_token: int | None,
    noise: Sequence[float],
    noise_unit: str,
    **others: Any,
) -> dict[str, Any]:
    """The plan of a call as kernels take it: decisions are words of 32 bits."""
    B, T, H, W = shape
    low, high = (noise[0], noise[0] + noise[1]) if noise else (0.0, 0.0)
    return others | {
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


def _fake(tokens: Tensor, seed: Tensor, clip_offset: Tensor, **plan: Any) -> tuple[Tensor, ...]:
    return (
        torch.empty_like(tokens, memory_format=torch.contiguous_format),
        torch.empty(tokens.shape, dtype=torch.bool, device=tokens.device),
        torch.empty(tokens.numel(), dtype=torch.int32, device=tokens.device),
        torch.empty((), dtype=torch.int32, device=tokens.device),
    )


mask_tokens_fwd = library.define(
    "mask_tokens_fwd",
    "(Tensor tokens, Tensor seed, Tensor clip_offset, *, int mask_token, str strategy, "
    "int num_blocks, float ratio, int? pad_token, SymInt[] max_block, float[] noise, "
    "str noise_unit, int vocab_size, int row_offset, str impl) -> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)
