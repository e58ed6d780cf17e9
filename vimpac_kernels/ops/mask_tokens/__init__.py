"""Random mask generation on the device: one launch, no host loop, no host synchronisation.

Boxes are drawn per clip from a counter-based generator, so every backend returns the same bits for
the same seed and nothing but the seed crosses from the host. Bound by memory: the tokens are read
once; inputs, mask and the compacted positions are written once. Serves CPU (C++), CUDA and Triton.
"""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

from vimpac_kernels.ops.mask_tokens import operators, reference
from vimpac_kernels.ops.mask_tokens.limit import shared_bytes, shared_limit
from vimpac_kernels.ops.mask_tokens.operators import STRATEGIES
from vimpac_kernels.ops.mask_tokens.reference import MaskedTokens
from vimpac_kernels.runtime import philox, registry, sharded
from vimpac_kernels.runtime.checks import (
    as_int,
    as_real,
    as_sizes,
    check_probabilities,
    check_tensor,
)

_INTEGERS = (torch.int16, torch.uint16, torch.int32, torch.int64)
_MAX_BLOCKS = 65_536  # each is drawn and held for every clip: more would be a mistake


def mask_tokens(
    tokens: Tensor,
    *,
    mask_token: int,
    strategy: str = "block",
    num_blocks: int = 5,
    ratio: float | None = None,
    pad_token: int | None = None,
    max_block: tuple[int, int, int] | None = None,
    noise: tuple[float, float, float] | None = None,
    noise_unit: str = "token",
    vocab_size: int | None = None,
    seed: int | Tensor | None = None,
    clip_offset: int | Tensor = 0,
    row_offset: int = 0,
    impl: str = "auto",
) -> MaskedTokens:
    """Masks tokens of video clips for masked-token prediction (VIMPAC, Sec. B.1).

    Args:
        tokens: (B, T, H, W), int16, uint16, int32 or int64.
        mask_token: Id written where a token is masked.
        strategy: "block", the union of `num_blocks` boxes per clip; "iid", each token with
            probability `ratio`; "tube", one pattern of round(ratio*H*W) cells over all frames.
        num_blocks: Boxes per clip, 0 to 65,536; for "block".
        ratio: Masked fraction in [0, 1]; for "iid" and "tube".
        pad_token: Tokens equal to it are never masked; None if there is no padding.
        max_block: Largest box (t, h, w); default (max(1, 2*T//3), max(1, H//2), max(1, W//2)).
            Lengths are uniform from 1 to it, starts uniform over the places that fit.
        noise: None, or the probabilities (mask token, random id, unchanged) of a masked token, as
            BERT's (0.8, 0.1, 0.1).
        noise_unit: "token", or "block": one decision per box, the last box on a token deciding.
        vocab_size: Random ids are drawn from [0, vocab_size); needed with `noise`.
        seed: int in [-2^63, 2^63), or 0-d int64 tensor on the device of `tokens` (a captured
            CUDA graph then draws what it holds at replay). None draws one from PyTorch's generator.
        clip_offset: Added to the clip index in the counter, so that ranks and accumulation steps
            draw from disjoint streams of one seed: int, or 0-d int64 tensor like `seed`.
        row_offset: 1 if `positions` index rows of a (B, 1 + T*H*W, D) buffer with [CLS] first.
        impl: "auto", "cuda", "triton", "cpu" or "reference".

    Returns:
        MaskedTokens: inputs (B, T, H, W) in the dtype of `tokens`; mask (B, T, H, W) bool;
        positions (B*T*H*W,) int32, rows of the masked tokens in increasing order, then -1;
        count, 0-d int32 on the device.

    Raises:
        TypeError: If `tokens` is not of an integer dtype.
        ValueError: If an argument is outside its range, naming it.
        RuntimeError: If `impl` cannot run here, with the reason.

    The same seed gives the same bits on every backend. Extra memory: bytes per clip: cuda
    8, triton 4 per 1,024 of its tokens; cpu 12 per token of one clip for each thread.
    """
    if sharded.has_dtensors(tokens):
        raise TypeError(
            "mask_tokens: tokens must not be a DTensor, as positions number the rows of all clips: "
            "use tokens.to_local(), and clip_offset for the first clip of the rank"
        )
    plan = _check(
        tokens, mask_token, strategy, num_blocks, ratio, pad_token, max_block, noise, noise_unit,
        vocab_size, row_offset,
    )  # fmt: skip
    offset = _check_offset(clip_offset, tokens.device)
    chosen = _select(impl, tokens, strategy, num_blocks)
    device = tokens.device
    key = philox.fresh_seed(device) if seed is None else philox.as_seed(seed, device)
    if chosen == "reference":
        return reference.mask_tokens(tokens, seed=key, clip_offset=offset, **plan)
    plan["noise"] = list(plan["noise"] or ())
    return MaskedTokens(*operators.mask_tokens_fwd(tokens, key, offset, impl=chosen, **plan))


def _check(
    tokens: Tensor,
    mask_token: int,
    strategy: str,
    num_blocks: int,
    ratio: float | None,
    pad_token: int | None,
    max_block: tuple[int, int, int] | None,
    noise: tuple[float, float, float] | None,
    noise_unit: str,
    vocab_size: int | None,
    row_offset: int,
) -> dict[str, Any]:
    check_tensor("tokens", tokens)
    if tokens.dtype not in _INTEGERS:
        raise TypeError(f"tokens must be int16, uint16, int32 or int64, got {tokens.dtype}")
    if tokens.dim() != 4 or 0 in tokens.shape[1:]:
        raise ValueError(
            f"tokens must be (B, T, H, W) with a non-empty grid, got {tuple(tokens.shape)}"
        )
    B, T, H, W = tokens.shape
    if B * (T * H * W + 1) >= 2**31:
        raise ValueError(f"tokens {tuple(tokens.shape)} have more rows than int32 positions hold")
    vocab_size = None if vocab_size is None else as_int("vocab_size", vocab_size)
    if vocab_size is not None and not 1 <= vocab_size < 2**31:
        raise ValueError(f"vocab_size must be in [1, 2^31), got {vocab_size}")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    num_blocks, row_offset = as_int("num_blocks", num_blocks), as_int("row_offset", row_offset)
    if not 0 <= num_blocks <= _MAX_BLOCKS:
        raise ValueError(f"num_blocks must be in [0, {_MAX_BLOCKS}], got {num_blocks}")
    if strategy != "block" and ratio is None:
        raise ValueError(f"strategy {strategy!r} needs a ratio in [0, 1]")
    if ratio is not None and not 0 <= as_real("ratio", ratio) <= 1:
        raise ValueError(f"ratio must be in [0, 1], got {ratio}")
    if max_block is None:
        max_block = (max(1, 2 * T // 3), max(1, H // 2), max(1, W // 2))
    must = f"three sizes within 1 and the grid {(T, H, W)}"
    max_block = as_sizes("max_block", max_block, must, (T, H, W))
    if noise_unit not in ("token", "block"):
        raise ValueError(f"noise_unit must be 'token' or 'block', got {noise_unit!r}")
    if noise is not None:
        _check_noise(noise, noise_unit, strategy, vocab_size)
    mask_token = as_int("mask_token", mask_token)
    _check_ids(tokens.dtype, mask_token=mask_token, vocab_size=(vocab_size or 1) - 1)
    pad_token = None if pad_token is None else as_int("pad_token", pad_token)
    if row_offset not in (0, 1):
        raise ValueError(f"row_offset must be 0 or 1, got {row_offset}")
    return {
        "mask_token": mask_token,
        "strategy": strategy,
        "num_blocks": num_blocks,
        "ratio": 0.0 if ratio is None else float(ratio),
        "pad_token": pad_token,
        "max_block": list(max_block),
        "noise": noise,
        "noise_unit": noise_unit,
        "vocab_size": vocab_size or 1,
        "row_offset": row_offset,
    }


def _check_ids(dtype: torch.dtype, **ids: int) -> None:
    for name, value in ids.items():
        if not torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max:
            raise ValueError(f"{name}: id {value} does not fit the dtype of tokens, {dtype}")


def _check_offset(clip_offset: int | Tensor, device: torch.device) -> Tensor:
    if isinstance(clip_offset, numbers.Integral) and not 0 <= clip_offset < 2**32:
        raise ValueError(f"clip_offset must be in [0, 2^32), got {clip_offset}")
    return philox.as_number("clip_offset", clip_offset, device)


def _check_noise(
    noise: tuple[float, float, float], noise_unit: str, strategy: str, vocab_size: int | None
) -> None:
    check_probabilities("noise", noise)
    if noise_unit == "block" and strategy != "block":
        raise ValueError(f"noise_unit 'block' needs strategy 'block', got {strategy!r}")
    if vocab_size is None:
        raise ValueError("noise needs a vocab_size in [1, 2^31), got None")


def _select(impl: str, tokens: Tensor, strategy: str, num_blocks: int) -> str:
    device = tokens.device.type

    def cuda_problem() -> str | None:
        reason = registry.backend_problem("cuda", "mask_tokens", device)
        if reason is None:
            needed = shared_bytes(tokens.shape, strategy, num_blocks)
            most = shared_limit(tokens.device)
            if needed > most:
                reason = f"a clip takes {needed} bytes of shared memory, a block has {most}"
        return reason

    return registry.select(
        "mask_tokens",
        impl,
        [
            ("cuda", cuda_problem),
            ("triton", lambda: registry.backend_problem("triton", "mask_tokens", device)),
            ("cpu", lambda: registry.backend_problem("cpu", "mask_tokens", device)),
            ("reference", lambda: None),
        ],
    )
