"""mask_tokens against the released per-sample loop, and vectorised in torch, compiled, and NumPy.

    pytest benchmarks/bench_mask_tokens.py --benchmark-only

The others draw different masks, from their own generators, of the same distribution: they
are checked by their mean masked ratio, ours bit for bit against the reference.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import common
import interleaved
import numpy as np
import pytest
import torch
from cases import TINY, Case, Tensors, name_of
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

    def candidate(name: str) -> interleaved.Candidate:
        other = name in OTHERS
        return interleaved.Candidate(
            functools.partial(OTHERS[name], tokens) if other else functools.partial(ours, name),
            functools.partial(same_ratio if other else same_bits, name),
            moved_bytes=moved,
            traced=name != "numpy",
        )

    names = (*common.KERNELS[bench.device], "reference", *OTHERS)
    bench("mask_tokens", f"B{batch} {shape.T}x{shape.H}x{shape.W}", names, candidate)


CLIPS = {"published": (64, 1024), "check": (64,), "small": (3,)}


def cases(scale: str, device: str) -> Iterator[Case]:
    """The calls that a visit to a GPU checks and times."""
    for clips in CLIPS[scale]:
        yield from _cases(clips, device, scale)


def _cases(clips: int, device: str, scale: str) -> Iterator[Case]:
    shape = dataclasses.replace(common.SMALL if scale != "small" else TINY, B=clips)
    ways: tuple[dict[str, Any], ...] = ({},)
    if scale != "published":
        ways += (
            {"strategy": "iid", "ratio": 0.15},
            {"strategy": "tube", "ratio": 0.5},
            {"noise": (0.8, 0.1, 0.1), "vocab_size": 90},
        )
    for dtype in (torch.int64, torch.int16):
        for way in ways:

            def make(dtype: torch.dtype = dtype) -> Tensors:
                size = (shape.B, shape.T, shape.H, shape.W)
                return [torch.randint(0, 90, size, device=device).to(dtype)]

            def run(tokens: Tensor, *, impl: str, way: dict[str, Any] = way) -> Any:
                options = {"mask_token": 99, "seed": _seed(device), "row_offset": 1, **way}
                return vimpac_kernels.mask_tokens(tokens, **options, impl=impl)

            name = " ".join(map(str, way.values()))
            yield Case(
                "mask_tokens",
                f"{shape.label} {name_of(dtype)} {name}".strip(),
                0,
                dtype,
                make,
                run,
                (common.mask_tokens_bytes(shape, dtype.itemsize), 0),
                ("torch", torch_vectorised),
            )


@functools.cache
def _seed(device: str) -> Tensor:
    return torch.tensor(7, device=device)


def triton_calls() -> Iterator[common.TritonCall]:
    """Triton kernels with the arguments of real calls on meta tensors, for the static report."""
    from vimpac_kernels.ops.mask_tokens import triton

    grid = (2, 5, 16, 16)
    tokens = torch.empty(grid, dtype=torch.int64, device="meta")
    mask = torch.empty(grid, dtype=torch.bool, device="meta")
    positions = torch.empty(tokens.numel(), dtype=torch.int32, device="meta")
    number = tokens.sum()  # 0-d int64
    tensors = (tokens, number, number, tokens, mask, positions, number.int())
    for strategy, noise in ((0, 2), (1, 1), (2, 0)):
        plan: dict[str, Any] = dict(zip("BTHW", grid, strict=True))
        plan |= {"strategy": strategy, "num_blocks": 5, "max_block": (3, 8, 8), "mask_token": 99}
        plan |= {"amount": (0, 2**31, 128)[strategy], "has_pad": False, "pad_token": 0}
        plan |= {"noise": noise, "noise_below": (2**31, 2**32 - 1), "vocab_size": 98}
        for kernel, _, operands, constants in triton.launches(*tensors, **plan, row_offset=1):
            yield kernel, operands, constants
