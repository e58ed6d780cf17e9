"""Philox4x32-10 (Salmon et al., SC 2011) in PyTorch: the random bits of every op, on every backend.

A draw is a pure function of a 64-bit seed and four 32-bit counters, so a kernel can recompute in
its backward what it drew in its forward, and two backends can be compared bit for bit. The fourth
counter carries the stream in its top byte, so that ops sharing a seed never share bits.
"""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from vimpac_kernels.runtime import library

STREAM_ATTENTION = 0  # counter: key group, query, line, head | axis << 16
STREAM_RESIDUAL = 1  # counter: column group, row (low word), row (high word)
STREAM_MASK = 2  # counter: clip, block or token group, word group
STREAM_NOISE = 3  # counter: clip, token pair, 0
STREAM_EMBEDDING = 4  # counter: as STREAM_RESIDUAL

DECISIONS = 8  # dropout decisions of one call: 16 bits each, low half of a word first
_U32 = 0xFFFFFFFF


def as_seed(seed: int | Tensor, device: torch.device) -> Tensor:
    """Returns `seed` as a 0-d int64 tensor on `device`, without a host synchronisation."""
    return as_number("seed", seed, device)


def as_number(name: str, number: int | Tensor, device: torch.device) -> Tensor:
    """`as_seed` for the argument of that name; ValueError if it is no int64."""
    if isinstance(number, Tensor):
        if number.is_meta and device.type != "meta":
            raise ValueError(f"{name} is on meta, where it has no value, not on {device}")
        if number.dim() != 0 or number.dtype != torch.int64:
            got = f"{number.dtype} {tuple(number.shape)}"
            raise ValueError(f"{name} must be an int or a 0-d int64 tensor, got {got}")
        return number if number.device == device else number.to(device, non_blocking=True)
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise ValueError(f"{name} must be an int or a 0-d int64 tensor, got {number!r}")
    if not -(1 << 63) <= int(number) < 1 << 63:
        raise ValueError(f"{name} must be in [-2^63, 2^63), as int64 is, got {number}")
    return torch.full((), int(number), dtype=torch.int64, device=device)


def fresh_seed(device: torch.device) -> Tensor:
    """Draws a seed from PyTorch's generator of `device`; a replayed CUDA graph draws a new one."""
    return torch.randint(-(1 << 63), (1 << 63) - 1, (), dtype=torch.int64, device=device)


def philox(
    seed: Tensor, c0: Tensor, c1: Tensor | int, c2: Tensor | int, c3: int | Tensor
) -> Tensor:
    """Four 32-bit words per counter.

    Args:
        seed: 0-d int64; its low and high words are the key.
        c0: First counter, int64 of any shape; the others broadcast against it. Taken modulo 2^32.
        c1: Second counter.
        c2: Third counter.
        c3: Fourth counter.

    Returns:
        int64 (..., 4) with values in [0, 2^32), the last dimension being the four words.
    """
    counters = (torch.as_tensor(c, dtype=torch.int64, device=seed.device) for c in (c0, c1, c2, c3))
    return philox_rounds(seed, *torch.broadcast_tensors(*counters))


# Opaque to torch.compile: for some broadcast counters Inductor of PyTorch 2.13 makes other words of
# the wrapping products, and it spends a minute on the ten rounds.
@library.operator(lambda seed, c0, *_: c0.new_empty((*c0.shape, 4)))
def philox_rounds(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> Tensor:
    """Philox of counters of one shape: (..., 4)."""
    k0, k1 = seed & _U32, (seed >> 32) & _U32
    x0, x1, x2, x3 = (c & _U32 for c in (c0, c1, c2, c3))
    for _ in range(10):
        p0, p1 = x0 * 0xD2511F53, x2 * 0xCD9E8D57  # wraps modulo 2^64, which keeps every bit
        x0, x1, x2, x3 = (
            ((p1 >> 32) & _U32) ^ x1 ^ k0,
            p1 & _U32,
            ((p0 >> 32) & _U32) ^ x3 ^ k1,
            p0 & _U32,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _U32, (k1 + 0xBB67AE85) & _U32
    return torch.stack((x0, x1, x2, x3), dim=-1)


def bounded(words: Tensor, bound: int | Tensor) -> Tensor:
    """Maps 32-bit words to [0, bound) by multiply-high; `bound` must be below 2^31."""
    return (words * bound) >> 32


def dropout_threshold(dropout_p: float) -> int:
    """The 16-bit threshold of a dropout probability: a decision below it drops its element."""
    return min(round(dropout_p * 65536), 65535)


def dropout_scale(threshold: int) -> float:
    """What kept elements are multiplied by; exact for the quantised probability."""
    return 65536 / (65536 - threshold)


def keep_mask(
    seed: Tensor, threshold: int, length: int, c1: Tensor, c2: Tensor, c3: int | Tensor
) -> Tensor:
    """Dropout decisions for `length` elements: element e is number e % 8 of call e // 8.

    Args:
        seed: 0-d int64.
        threshold: From `dropout_threshold`.
        length: Elements per counter (c1, c2, c3).
        c1: Second counter, int64 (...); c2 and c3 broadcast against it.
        c2: Third counter.
        c3: Fourth counter.

    Returns:
        bool (..., length), True = keep.
    """
    groups = torch.arange(-(-length // DECISIONS), device=seed.device)
    rest = (torch.as_tensor(c, device=seed.device)[..., None] for c in (c1, c2, c3))
    words = philox(seed, groups, *rest)  # (..., groups, 4)
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=-1)  # (..., groups, 4, 2)
    return halves.flatten(-3)[..., :length] >= threshold
