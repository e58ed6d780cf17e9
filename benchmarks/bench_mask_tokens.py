"""mask_tokens against the released per-sample loop, and vectorised in torch, compiled, and NumPy.

    pytest benchmarks/bench_mask_tokens.py --benchmark-only

The others draw different masks, from their own generators, of the same distribution: they
are checked by their mean masked ratio, ours bit for bit against the reference.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import common
import numpy as np
import pytest
import torch
import turns
from torch import Tensor

import vimpac_kernels

PAD_TOKEN, MASK_TOKEN = 8193, 8196
NUM_BLOCKS = 5
BATCHES = {"cpu": (64,), "cuda": (64, 1024)}


def python_loop(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One clip and one box at a time, in Python, as the released code does it; then the labels."""
    B, T, H, W = tokens.shape
    longest = (max(1, 2 * T // 3), max(1, H // 2), max(1, W // 2))
    mask = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
    for clip in range(B):
        for _ in range(NUM_BLOCKS):
            box: list[int | slice] = [clip]
            for size, most in zip((T, H, W), longest, strict=True):
                length = random.randint(1, most)
                start = random.randint(0, size - length)
                box.append(slice(start, start + length))
            mask[tuple(box)] = True
    mask &= tokens != PAD_TOKEN
    inputs, labels = tokens.clone(), tokens.clone()
    labels[~mask] = -100
    inputs[mask] = MASK_TOKEN
    return inputs, labels


def torch_vectorised(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """All clips and boxes at once in torch, by comparing coordinates with the boxes' bounds."""
    B, T, H, W = tokens.shape
    device = tokens.device
    inside = torch.ones(B, NUM_BLOCKS, 1, 1, 1, dtype=torch.bool, device=device)
    for d, (size, most) in enumerate(((T, 2 * T // 3), (H, H // 2), (W, W // 2))):
        length = torch.randint(1, max(1, most) + 1, (B, NUM_BLOCKS, 1), device=device)
        start = (torch.rand(B, NUM_BLOCKS, 1, device=device) * (size - length + 1)).long()
        at = torch.arange(size, device=device)
        covers = (at >= start) & (at < start + length)
        inside = inside & covers.view(B, NUM_BLOCKS, *(size if i == d else 1 for i in range(3)))
    mask = inside.any(1)
    return tokens.masked_fill(mask, MASK_TOKEN), mask


def numpy_vectorised(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The same in NumPy, on host memory."""
    ids = tokens.cpu().numpy()
    B, T, H, W = ids.shape
    generator = np.random.default_rng()
    inside = np.ones((B, NUM_BLOCKS, 1, 1, 1), dtype=bool)
    for d, (size, most) in enumerate(((T, 2 * T // 3), (H, H // 2), (W, W // 2))):
        length = generator.integers(1, max(1, most) + 1, (B, NUM_BLOCKS, 1))
        start = generator.integers(0, size - length + 1)
        at = np.arange(size)
        covers = (at >= start) & (at < start + length)
        inside = inside & covers.reshape(B, NUM_BLOCKS, *(size if i == d else 1 for i in range(3)))
    mask = inside.any(1)
    inputs = np.where(mask, MASK_TOKEN, ids)
    return torch.from_numpy(inputs).to(tokens.device), torch.from_numpy(mask).to(tokens.device)


OTHERS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "python loop": python_loop,
    "torch": torch_vectorised,
    "torch.compile": torch.compile(torch_vectorised, dynamic=False),
    "numpy": numpy_vectorised,
}


def _tokens(shape: common.Shape, device: str) -> Tensor:
    return torch.randint(0, 8192, (shape.B, shape.T, shape.H, shape.W), device=device)


@pytest.mark.parametrize("batch", BATCHES[common.default_device()])
def test_mask_tokens(bench, batch: int) -> None:
    """Times the small model's grid, int64 tokens, five blocks."""
    shape = common.Shape("small", batch, 5, 16, 16, 8, 64)
    tokens = _tokens(shape, bench.device)
    seed = torch.tensor(7, device=bench.device)
    moved = common.mask_tokens_bytes(shape, tokens.element_size())

    def ours(impl: str) -> vimpac_kernels.MaskedTokens:
        return vimpac_kernels.mask_tokens(
            tokens, mask_token=MASK_TOKEN, pad_token=PAD_TOKEN, seed=seed, impl=impl
        )

    def same_bits(name: str) -> None:
        for one, other in zip(ours(name), ours("reference"), strict=True):
            assert torch.equal(one, other)

    def same_ratio(name: str) -> None:
        many = tokens.repeat(max(1, 4096 // batch), 1, 1, 1)
        inputs, mask = OTHERS[name](many)
        if name == "python loop":
            mask = mask != -100
        assert abs(mask.float().mean().item() - 0.145) < 0.01  # Table 2
        assert torch.equal(inputs == MASK_TOKEN, mask)

    def candidate(name: str) -> turns.Candidate:
        other = name in OTHERS
        return turns.Candidate(
            functools.partial(OTHERS[name], tokens) if other else functools.partial(ours, name),
            functools.partial(same_ratio if other else same_bits, name),
            moved_bytes=moved,
            traced=name != "numpy",
        )

    names = (*common.KERNELS[bench.device], "reference", *OTHERS)
    bench("mask_tokens", f"B{batch} {shape.T}x{shape.H}x{shape.W}", names, candidate)
