"""Every wrong argument of every op is a TypeError or ValueError that names it."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from vimpac_kernels import (
    AxialAttention,
    TiedLinearCrossEntropy,
    axial_attention,
    bias_gelu,
    dropout_add_layer_norm,
    embed_tokens,
    linear_cross_entropy,
    mask_tokens,
    tubelet_embed,
    tubelet_mse,
)

TOKENS = torch.zeros(2, 2, 3, 4, dtype=torch.int64)
D = torch.ones(8)
ROWS = torch.ones(5, 8)
TARGET = torch.zeros(5, dtype=torch.int64)
TABLES = [torch.ones(n, 8) for n in (2, 3, 4)]


def attend_in_a_layer(x, grid, key_padding_mask=None, need_weights=False, seed=None, **options):
    """The layer, made and called."""
    sizes = {"embed_dim": 8, "num_heads": 2, "axes": "H|W"} | options
    layer = AxialAttention(**sizes)
    return layer(x, grid, key_padding_mask, need_weights=need_weights, seed=seed)


def classify_in_a_layer(weight, input=ROWS, target=TARGET, positions=None, count=None, **options):
    """The layer, made and called."""
    call = {"ignore_index": options.pop("ignore_index")} if "ignore_index" in options else {}
    layer = TiedLinearCrossEntropy(weight, **options)
    return layer(input, target, positions, count, **call)


# Op, arguments that it takes
CALLS = {
    "axial_attention": (
        axial_attention,
        {"qkv": torch.ones(2, 25, 3, 1, 8), "grid": (2, 3, 4)},
    ),
    "AxialAttention": (attend_in_a_layer, {"x": torch.ones(2, 24, 8), "grid": (2, 3, 4)}),
    "dropout_add_layer_norm": (
        dropout_add_layer_norm,
        {"x": ROWS, "residual": ROWS, "weight": D, "bias": D},
    ),
    "bias_gelu": (bias_gelu, {"x": ROWS, "bias": D}),
    "embed_tokens": (
        embed_tokens,
        {"tokens": TOKENS, "embedding": ROWS, "positions": TABLES, "weight": D, "bias": D},
    ),
    "linear_cross_entropy": (
        linear_cross_entropy,
        {"input": ROWS, "linear_weight": ROWS, "target": TARGET},
    ),
    "TiedLinearCrossEntropy": (classify_in_a_layer, {"weight": torch.nn.Parameter(ROWS)}),
    "mask_tokens": (mask_tokens, {"tokens": TOKENS, "mask_token": 1, "vocab_size": 9}),
    "tubelet_embed": (
        tubelet_embed,
        {
            "video": torch.zeros(2, 4, 4, 6, 3, dtype=torch.uint8),
            "tubelets": torch.zeros(2, 5, dtype=torch.int32),
            "weight": torch.ones(8, 3, 2, 2, 2),
            "bias": D,
            "positions": torch.ones(12, 8),
        },
    ),
    "tubelet_mse": (
        tubelet_mse,
        {
            "pred": torch.ones(2, 3, 12),
            "video": torch.zeros(2, 1, 4, 6, 3, dtype=torch.uint8),
            "tubelets": torch.zeros(2, 3, dtype=torch.int32),
            "tubelet": (1, 2),
        },
    ),
}

NO_TENSOR = ["text", 3, True, [1.0]]
NO_NUMBER = ["0.5", None, [0.5], D[0], True, 1j, math.nan, math.inf, -1.0, 10**400]
NO_INTEGER = ["1", [1], D[0], True, math.nan, 1.5]
NO_FLAG = ["no", 1, None, D]
NO_SIZES = ["234", None, 3, (2, 3), (2.0, 3.0, 4.0), ("2", "3", "4"), (0, 3, 4), [True, 3, 4]]
NO_SEED = [
    *("1", 1.5, True, [1], D[0], torch.zeros(2, dtype=torch.int64), "meta"),
    *(2**63, 2**64, -(2**63) - 1),
]
NO_CHANNELS = ["abc", 0.5, None, D[:3], (1.0, 0.0), ("1", "1", "1"), (math.nan, 1.0, 1.0)]
NO_WORD = ["fastest", None, 3, D, ["T"]]

# Op -> argument -> values that it must refuse
WRONG: dict[str, dict[str, list]] = {
    "axial_attention": {
        "qkv": [*NO_TENSOR, None],
        "grid": NO_SIZES,
        "axes": NO_WORD,
        "bias": NO_TENSOR,
        "bias_in_qkv": NO_FLAG,
        "key_padding_mask": NO_TENSOR,
        "dropout_p": NO_NUMBER,
        "scale": [v for v in NO_NUMBER if v is not None and v != -1.0] + [1e31, -1e31],
        "seed": NO_SEED,
        "impl": NO_WORD,
    },
    "AxialAttention": {
        "x": [*NO_TENSOR, None],
        "grid": NO_SIZES,
        "key_padding_mask": NO_TENSOR,
        "embed_dim": [*NO_INTEGER, None, 0],
        "num_heads": [*NO_INTEGER, None, 0],
        "head_dim": [*NO_INTEGER, 0],
        "axes": NO_WORD,
        "dropout": NO_NUMBER,
        "bias": NO_FLAG,
        "need_weights": NO_FLAG,
        "seed": NO_SEED,
        "impl": NO_WORD,
        "device": [3.5, [1]],
        "dtype": ["fp32", 3, torch.int64],
    },
    "dropout_add_layer_norm": {
        **dict.fromkeys(("x", "residual", "weight", "bias"), [*NO_TENSOR, None]),
        "linear_bias": NO_TENSOR,
        "dropout_p": NO_NUMBER,
        "eps": NO_NUMBER,
        "prenorm": NO_FLAG,
        "readers": [*NO_INTEGER, None, 0],
        "seed": NO_SEED,
        "impl": NO_WORD,
    },
    "bias_gelu": {"x": [*NO_TENSOR, None], "bias": [*NO_TENSOR, None], "impl": NO_WORD},
    "embed_tokens": {
        **dict.fromkeys(("tokens", "embedding"), [*NO_TENSOR, None]),
        "positions": [*NO_TENSOR, None, [None] * 3, TABLES[:2], ["a", "b", "c"]],
        **dict.fromkeys(("weight", "bias", "cls"), NO_TENSOR),
        "dropout_p": NO_NUMBER,
        "eps": NO_NUMBER,
        "dtype": ["fp32", 3, torch.int64, 0, False, ""],
        "seed": NO_SEED,
        "impl": NO_WORD,
    },
    "linear_cross_entropy": {
        **dict.fromkeys(("input", "linear_weight", "target"), [*NO_TENSOR, None]),
        **dict.fromkeys(("linear_bias", "positions", "count"), NO_TENSOR),
        **dict.fromkeys(("label_smoothing", "z_loss"), NO_NUMBER),
        "ignore_index": [*NO_INTEGER, None, 2**63, -(2**63) - 1],
        "return_stats": NO_FLAG,
        "reduction": [*NO_WORD, torch.ones(2)],
        "impl": NO_WORD,
    },
    "TiedLinearCrossEntropy": {
        "weight": [*NO_TENSOR, None, D, ROWS.long()],
        **dict.fromkeys(("input", "target"), [*NO_TENSOR, None]),
        **dict.fromkeys(("positions", "count"), NO_TENSOR),
        "ignore_index": [*NO_INTEGER, None, 2**63],
        "bias": NO_FLAG,
        **dict.fromkeys(("label_smoothing", "z_loss"), NO_NUMBER),
        "impl": NO_WORD,
    },
    "mask_tokens": {
        "tokens": [*NO_TENSOR, None],
        "mask_token": [*NO_INTEGER, None],
        "strategy": NO_WORD,
        "num_blocks": [*NO_INTEGER, None, -1, 65_537, 10**9, 2**31],
        "ratio": [v for v in NO_NUMBER if v is not None],
        "pad_token": [*NO_INTEGER, 2**63],
        "max_block": [v for v in NO_SIZES if v is not None] + [(3, 3, 4)],
        "noise": ["abc", 0.5, (1.0, 0.0), ("1", "0", "0"), (math.nan, 1.0, 0.0), (1.0, 1.0, 1.0)],
        "noise_unit": NO_WORD,
        "vocab_size": [*NO_INTEGER, -1, 0, 2**31],
        "seed": NO_SEED,
        "clip_offset": [*NO_SEED, None, -1, 2**32, math.nan],
        "row_offset": [*NO_INTEGER, None, 2],
        "impl": NO_WORD,
    },
    "tubelet_embed": {
        "video": [*NO_TENSOR, None, torch.zeros(2, 4, 4, 6, 3), torch.zeros(6, 3).byte()],
        "tubelets": [*NO_TENSOR, None, torch.zeros(2, 5), TARGET.int(), torch.zeros(3, 5).int()],
        "weight": [*NO_TENSOR, None, D, torch.ones(8, 3, 2, 2, 4), torch.ones(8, 4, 2, 2, 2)],
        "bias": [*NO_TENSOR, None, D[:7], D.double(), D.int(), D.to("meta")],
        "positions": [
            *(*NO_TENSOR, None, torch.ones(11, 8), torch.ones(12, 8).int()),
            torch.ones(12, 8, requires_grad=True),
        ],
        "mean": NO_CHANNELS,
        "std": [*NO_CHANNELS, (1.0, 1.0, 0.0), (-1.0, 1.0, 1.0)],
        "impl": NO_WORD,
    },
    "tubelet_mse": {
        "pred": [*NO_TENSOR, None, torch.ones(2, 3, 11), torch.ones(2, 12)],
        "video": [*NO_TENSOR, None, TOKENS.byte(), torch.ones(2, 1, 4, 6, 3)],
        "tubelets": [*NO_TENSOR, None, torch.zeros(2, 3), torch.zeros(3, dtype=torch.int32)],
        "tubelet": ["12", None, 2, (2,), (1.0, 2.0), ("1", "2"), (0, 2), [True, 2], (1, 1)],
        "eps": NO_NUMBER,
        "impl": NO_WORD,
    },
}
CASES = [
    pytest.param(op, argument, value, id=f"{op}-{argument}-{number}")
    for op, arguments in WRONG.items()
    for argument, values in arguments.items()
    for number, value in enumerate(values)
]


@pytest.mark.parametrize("op", CALLS)
def test_arguments_of_these_tests_are_right(op):
    function, arguments = CALLS[op]
    function(**arguments)


@pytest.mark.parametrize(("op", "argument", "value"), CASES)
def test_wrong_argument_is_named(op, argument, value):
    function, arguments = CALLS[op]
    if isinstance(value, str) and value == "meta":
        value = torch.zeros((), dtype=torch.int64, device="meta")
    with pytest.raises((TypeError, ValueError), match=rf"\b{argument}\b"):
        function(**(arguments | {argument: value}))


WRONG_SIZES = [(3.0, 4.0, 4.0), (3, 4, True), ("3", "4", "4"), (3, 4), (0, 4, 4), (3, -4, 4)]


@pytest.mark.parametrize("sizes", WRONG_SIZES, ids=str)
@pytest.mark.parametrize("name", ["auto", "reference"])
def test_sizes_are_named_with_what_they_must_be(sizes, name):
    """Before a dispatcher sees them, whose words say nothing of the argument."""
    qkv, got = torch.ones(1, 48, 3, 1, 8), re.escape(str(sizes))
    words = rf"grid must be three sizes \(T, H, W\) >= 1,.* got {got}"
    with pytest.raises((TypeError, ValueError), match=words):
        axial_attention(qkv, sizes, impl=name)


# Sizes that fit the dtype, whose product does not
NARROW = (np.uint8(4), np.uint8(8), np.uint8(8))


def test_sizes_may_be_numpy_integers():
    qkv, x = torch.randn(1, 256, 3, 2, 8), torch.randn(1, 256, 8)
    assert torch.equal(axial_attention(qkv, NARROW), axial_attention(qkv, (4, 8, 8)))
    layer = AxialAttention(np.uint8(8), np.uint8(2), head_dim=np.uint8(128))
    assert layer.in_proj_weight.shape == (768, 8)
    assert torch.equal(layer(x, NARROW), layer(x, (4, 8, 8)))
    tokens = torch.zeros(2, 4, 8, 8, dtype=torch.int64)
    options = {"mask_token": 7, "num_blocks": 3, "pad_token": 1, "vocab_size": 9, "row_offset": 1}
    noise = {"noise": (0.5, 0.5, 0.0), "seed": 1}
    narrow = {name: np.uint8(value) for name, value in options.items()}
    for impl in ("auto", "reference"):
        ours = mask_tokens(tokens, **narrow, **noise, max_block=NARROW, impl=impl)
        theirs = mask_tokens(tokens, **options, **noise, max_block=(4, 8, 8), impl=impl)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
