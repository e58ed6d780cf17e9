"""mask_tokens: the same bits on every backend, and the distribution of the paper's Table 2."""

from __future__ import annotations

import math

import pytest
import torch

import vimpac_kernels
from vimpac_kernels import mask_tokens
from vimpac_kernels.reference import MaskedTokens

MASK = 8196
DTYPES = (torch.int16, torch.uint16, torch.int32, torch.int64)
GRIDS = {
    "vimpac": (2, 5, 16, 16),
    "several programs per clip": (1, 3, 20, 40),
    "ragged": (2, 3, 7, 5),
    "one token": (1, 1, 1, 1),
    "T=1": (1, 1, 6, 9),
    "H=1": (1, 4, 1, 9),
    "W=1": (1, 5, 7, 1),
    "no clip": (0, 2, 3, 4),
}
STRATEGIES = {
    "block": {},
    "no block": {"num_blocks": 0},
    "largest block": {"max_block": "grid"},
    "iid": {"strategy": "iid", "ratio": 0.3},
    "iid all": {"strategy": "iid", "ratio": 1.0},
    "tube": {"strategy": "tube", "ratio": 0.9},
    "tube none": {"strategy": "tube", "ratio": 0.0},
}
NOISES = {
    "no noise": {},
    "noise per token": {"noise": (0.8, 0.1, 0.1), "vocab_size": 30},
    "noise per block": {"noise": (0.3, 0.4, 0.3), "vocab_size": 30, "noise_unit": "block"},
}
# Mean masked ratio in percent for 4..8 blocks, by (T, H, W): Table 2 of arXiv 2106.11250.
TABLE_2 = {
    (5, 16, 16): (11.9, 14.5, 17.0, 19.4, 21.7),
    (5, 32, 32): (10.6, 13.1, 15.2, 17.5, 19.5),
    (10, 16, 16): (10.4, 12.8, 15.0, 17.1, 19.2),
    (10, 32, 32): (9.3, 11.4, 13.4, 15.4, 17.2),
}


def _tokens(shape: tuple[int, ...], dtype: torch.dtype = torch.int64, device: str = "cpu"):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 30, shape, generator=generator).to(device=device, dtype=dtype)


def _assert_same(one: MaskedTokens, other: MaskedTokens) -> None:
    for name, a, b in zip(one._fields, one, other, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, name
        assert torch.equal(a.cpu().long(), b.cpu().long()), name


@pytest.mark.impls("cpu", "triton", "cuda")
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bits_match_reference(impl, strategy: str, noise: str) -> None:
    """Every grid; dtypes, padding and offsets in turn."""
    options = {**STRATEGIES[strategy], **NOISES[noise]}
    if noise == "noise per block" and options.get("strategy", "block") != "block":
        with pytest.raises(ValueError, match="noise_unit 'block' needs strategy 'block'"):
            mask_tokens(_tokens((1, 1, 1, 1)), mask_token=29, **options)
        return
    for i, shape in enumerate(GRIDS.values()):
        tokens = _tokens(shape, DTYPES[i % 4], impl.device)
        if strategy == "largest block":
            options["max_block"] = shape[1:]
        options |= {"pad_token": (None, 3, -1)[i % 3], "row_offset": i % 2, "seed": -(7**20) + i}
        options |= {"clip_offset": (0, 5, 2**32 - 2)[i % 3], "mask_token": MASK}
        _assert_same(
            mask_tokens(tokens, impl=impl.name, **options),
            mask_tokens(tokens, impl="reference", **options),
        )


@pytest.mark.impls("cpu", "triton", "cuda")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_matches_reference(impl, dtype: torch.dtype) -> None:
    """Largest ids included, and strides other than packed ones."""
    top = min(torch.iinfo(dtype).max, 2**31 - 1)
    tokens = _tokens((3, 4, 6, 4), dtype, impl.device)
    tokens[0] = torch.tensor(top, dtype=dtype)
    for view in (tokens, tokens.transpose(1, 2)):
        options = {"mask_token": top, "pad_token": 7, "noise": (0.4, 0.3, 0.3), "seed": 3}
        options["vocab_size"] = min(top, 2**31 - 2) + 1
        _assert_same(
            mask_tokens(view, impl=impl.name, **options),
            mask_tokens(view, impl="reference", **options),
        )


@pytest.mark.impls("cpu")
def test_instruction_sets_agree(impl, isa: str) -> None:
    """Every instruction set of this processor returns the reference's bits, on 1 and 2 threads."""
    tokens = _tokens((40, 5, 16, 16), torch.int32)
    for strategy in STRATEGIES.values():
        if "max_block" in strategy:
            continue
        options = {**NOISES["noise per token"], **strategy, "mask_token": MASK, "seed": 11}
        expected = mask_tokens(tokens, impl="reference", **options)
        for count in (1, 2):
            torch.set_num_threads(count)
            _assert_same(mask_tokens(tokens, impl="cpu", **options), expected)


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("grid", TABLE_2, ids=str)
def test_mean_ratio_is_that_of_table_2(impl, grid: tuple[int, int, int]) -> None:
    """20,480 clips per cell."""
    clips, chunk = 20_480, 4096
    tokens = torch.zeros((chunk, *grid), dtype=torch.int16)
    for num_blocks, expected in zip(range(4, 9), TABLE_2[grid], strict=True):
        masked = 0
        for first in range(0, clips, chunk):
            options = {"num_blocks": num_blocks, "seed": 5, "clip_offset": first}
            masked += int(mask_tokens(tokens, mask_token=1, impl=impl.name, **options).count)
        assert abs(100 * masked / (clips * math.prod(grid)) - expected) < 0.15, num_blocks


@pytest.mark.impls("reference", "triton", "cuda")
@pytest.mark.parametrize("grid", TABLE_2, ids=str)
def test_table_2_is_drawn_alike(impl, grid: tuple[int, int, int]) -> None:
    """The first clips of every cell have the bits of the backend whose ratios are measured."""
    if "cpu" not in vimpac_kernels.available_impls("mask_tokens"):
        pytest.skip("the C++ extension is not built")
    tokens = torch.zeros((1, *grid), dtype=torch.int16)
    for num_blocks in (4, 8):  # those between are the first boxes of the 8
        options = {"mask_token": 1, "num_blocks": num_blocks, "seed": 5}
        own = mask_tokens(tokens.to(impl.device), impl=impl.name, **options)
        _assert_same(own, mask_tokens(tokens, impl="cpu", **options))


def test_fields_agree_with_each_other(impl) -> None:
    """inputs, mask, positions and count describe one mask; padding stays out of it."""
    tokens = _tokens((6, 5, 9, 8), device=impl.device)
    out = mask_tokens(tokens, mask_token=MASK, pad_token=4, seed=2, row_offset=1, impl=impl.name)
    assert torch.equal(out.inputs, tokens.masked_fill(out.mask, MASK))
    assert not (out.mask & (tokens == 4)).any()
    hidden = torch.zeros(6, 1 + 5 * 9 * 8, dtype=torch.bool, device=impl.device)
    hidden[:, 1:] = out.mask.flatten(1)
    rows = hidden.flatten().nonzero()[:, 0]
    assert out.count == rows.numel() > 0
    assert torch.equal(out.positions[: rows.numel()].long(), rows)
    assert (out.positions[rows.numel() :] == -1).all()


def test_clips_seeds_and_blocks_differ(impl) -> None:
    """No two clips share a mask, nor do two seeds; clip_offset continues the same stream."""
    tokens = torch.zeros((4, 5, 16, 16), dtype=torch.int32, device=impl.device)
    masks = [
        mask_tokens(tokens, mask_token=1, seed=s, clip_offset=o, impl=impl.name).mask.flatten(1)
        for s, o in ((1, 0), (2, 0), (1, 2))
    ]
    assert torch.unique(torch.cat(masks[:2]), dim=0).shape[0] == 8
    assert torch.equal(masks[0][2:], masks[2][:2])
    offset = torch.tensor(2, device=impl.device)  # as a CUDA graph reads it
    same = mask_tokens(tokens, mask_token=1, seed=1, clip_offset=offset, impl=impl.name).mask
    assert torch.equal(masks[2], same.flatten(1))
    blocks = [
        mask_tokens(tokens, mask_token=1, seed=1, num_blocks=n, impl=impl.name).mask
        for n in (1, 2, 3)
    ]
    assert blocks[0].sum() < blocks[1].sum() < blocks[2].sum()


def test_seed_tensor_is_read_where_it_lies(impl) -> None:
    """A 0-d tensor gives the bits of the int; changing it in place changes the masks."""
    tokens = _tokens((2, 3, 8, 8), device=impl.device)
    seed = torch.tensor(-9, device=impl.device)

    def masked(value: int | torch.Tensor) -> MaskedTokens:
        return mask_tokens(tokens, mask_token=MASK, seed=value, impl=impl.name)

    _assert_same(masked(seed), masked(-9))
    seed.fill_(10)
    _assert_same(masked(seed), masked(10))


@pytest.mark.impls("cpu")
def test_boxes_are_uniform(impl) -> None:
    """Chi-square of the lengths, and of the starts given the length, on every axis."""
    clips, grid, longest = 30_000, (5, 8, 6), (3, 4, 3)
    tokens = torch.zeros((1, 1, 1, 1), dtype=torch.int16).expand(clips, *grid)
    mask = mask_tokens(tokens, mask_token=1, num_blocks=1, seed=17, impl=impl.name).mask
    for d, (size, most) in enumerate(zip(grid, longest, strict=True)):
        line = mask.any([i + 1 for i in range(3) if i != d])  # (clips, size)
        length, start = line.sum(1), line.float().argmax(1)
        assert length.min() == 1 and length.max() == most
        _assert_uniform(torch.bincount(length - 1, minlength=most))
        for n in range(1, most + 1):
            _assert_uniform(torch.bincount(start[length == n], minlength=size - n + 1))


def _assert_uniform(counts: torch.Tensor) -> None:
    expected = counts.sum() / counts.numel()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.numel() - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom), counts  # five standard deviations


@pytest.mark.impls("reference", "cpu")
@pytest.mark.parametrize("unit", ["token", "block"])
def test_noise_has_its_probabilities(impl, unit: str) -> None:
    """Among masked tokens 80 % become the mask token, 10 % random ids, 10 % stay."""
    clips = 512 if impl.name == "reference" else 8192
    tokens = torch.full((clips, 5, 16, 16), 99, dtype=torch.int32, device=impl.device)
    out = mask_tokens(
        tokens, mask_token=MASK, noise=(0.8, 0.1, 0.1), noise_unit=unit, vocab_size=50, seed=1,
        impl=impl.name,
    )  # fmt: skip
    masked = out.inputs[out.mask]
    decisions = masked.numel() if unit == "token" else 5 * clips
    for found, probability in (((masked == MASK), 0.8), ((masked < 50), 0.1), (masked == 99, 0.1)):
        spread = math.sqrt(probability * (1 - probability) / decisions)
        assert abs(found.float().mean().item() - probability) < 7 * spread + 1e-3
    assert torch.equal(out.inputs[~out.mask], tokens[~out.mask])


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"tokens": torch.zeros(1, 2, 3, 4)}, TypeError, "tokens must be int16"),
        ({"tokens": torch.zeros(2, 3, 4, dtype=torch.int64)}, ValueError, "tokens must be"),
        ({"tokens": torch.zeros(2, 0, 3, 4, dtype=torch.int64)}, ValueError, "non-empty grid"),
        ({"strategy": "blocks"}, ValueError, "strategy must be one of block, iid, tube"),
        ({"num_blocks": -1}, ValueError, "num_blocks must be in"),
        ({"strategy": "iid"}, ValueError, "needs a ratio"),
        ({"strategy": "tube", "ratio": 1.5}, ValueError, "ratio must be in"),
        ({"max_block": (9, 1, 1)}, ValueError, "max_block must be three sizes within"),
        ({"max_block": (1, 2, 2, 1)}, ValueError, "max_block must be three sizes within"),
        ({"max_block": ()}, ValueError, "max_block must be three sizes within"),
        ({"noise": (0.5, 0.1, 0.1), "vocab_size": 9}, ValueError, "sum to 1"),
        ({"noise": (0.5, 0.5), "vocab_size": 9}, ValueError, "noise must be three"),
        ({"noise": (0.8, 0.1, 0.1)}, ValueError, "noise needs a vocab_size"),
        ({"noise_unit": "clip"}, ValueError, "noise_unit must be"),
        ({"mask_token": 2**63}, ValueError, "mask_token must be within 64 bits"),
        ({"clip_offset": -1}, ValueError, "clip_offset must be"),
        ({"clip_offset": torch.tensor([1])}, ValueError, "clip_offset must be"),
        ({"row_offset": 2}, ValueError, "row_offset must be"),
        ({"seed": torch.tensor(1.0)}, ValueError, "seed must be"),
        ({"impl": "fastest"}, ValueError, "impl must be 'auto' or one of"),
    ],
    ids=str,
)
def test_bad_input_is_named(change: dict, error: type[Exception], words: str) -> None:
    """Each wrong argument gets an error that says which."""
    arguments = {"tokens": _tokens((1, 2, 3, 4)), "mask_token": MASK, "seed": 0, **change}
    with pytest.raises(error, match=words):
        mask_tokens(arguments.pop("tokens"), **arguments)


@pytest.mark.impls("cpu")
def test_operator_passes_opcheck(impl) -> None:
    """Schema, fake tensors and dispatch of the private operator."""
    plan = {
        "mask_token": 7, "strategy": "block", "num_blocks": 3, "ratio": 0.0, "pad_token": None,
        "max_block": [1, 2, 2], "noise": [], "noise_unit": "token", "vocab_size": 1,
        "row_offset": 0, "impl": impl.name,
    }  # fmt: skip
    operator = torch.ops.vimpac_kernels.mask_tokens_fwd.default
    tensors = (_tokens((2, 2, 4, 4)), torch.tensor(3), torch.tensor(1))
    torch.library.opcheck(operator, tensors, plan)


@pytest.mark.impls("cpu")
def test_compiled_graph_equals_eager(impl) -> None:
    """torch.compile(fullgraph=True) traces the public function."""
    tokens, seed = _tokens((2, 3, 8, 8)), torch.tensor(4)

    def run(tokens: torch.Tensor, seed: torch.Tensor) -> MaskedTokens:
        return mask_tokens(tokens, mask_token=MASK, seed=seed, impl=impl.name)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    _assert_same(compiled(tokens, seed), run(tokens, seed))


@pytest.mark.gpu
@pytest.mark.parametrize("impl_name", ["triton", "cuda"])
def test_captured_graph_draws_what_the_seed_holds(impl_name: str) -> None:
    """No host synchronisation: a CUDA graph replays with seed and clips that lie on the device."""
    if not torch.cuda.is_available() or impl_name not in vimpac_kernels.available_impls(
        "mask_tokens"
    ):
        pytest.skip(f"{impl_name} cannot run mask_tokens on a CUDA device here")
    tokens = _tokens((4, 5, 16, 16), device="cuda")
    seed, clip = torch.ones((2,), dtype=torch.int64, device="cuda")

    def run() -> MaskedTokens:
        return mask_tokens(tokens, mask_token=MASK, seed=seed, clip_offset=clip, impl=impl_name)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for value in (5, 6):
        seed.fill_(value)
        clip.fill_(value - 1)
        graph.replay()
        _assert_same(out, run())
