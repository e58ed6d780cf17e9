"""Every wrong argument of the model package is an error that names it."""

from __future__ import annotations

import math

import pytest
import torch

from vimpac import (
    ContrastiveHead,
    LossConfig,
    MaskedTokenHead,
    ModelConfig,
    VideoClassifier,
    VideoTokenEncoder,
    Vimpac,
    info_nce,
    preset,
    view_major,
)

GRID = (2, 2, 2)
SIZES = dict(layers=1, width=16, heads=2, head_dim=8, mlp_width=16, grid=GRID)
CONFIG = ModelConfig(**SIZES, contrastive_width=16, contrastive_dim=8)
TOKENS = torch.zeros(3, *GRID, dtype=torch.int64)
CLIPS = torch.zeros(3, 2, *GRID, dtype=torch.int64)
FEATURES = torch.ones(6, 8)
POSITIONS, COUNT = torch.tensor([1, 2], dtype=torch.int32), torch.tensor(2, dtype=torch.int32)


def _int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _model() -> Vimpac:
    torch.manual_seed(0)
    return Vimpac(CONFIG)


# What is called, with arguments that it takes
CALLS = {
    "ModelConfig": (ModelConfig, SIZES),
    "LossConfig": (LossConfig, {}),
    "preset": (preset, {"name": "tiny"}),
    "Vimpac": (Vimpac, {"config": CONFIG}),
    "Vimpac.forward": (
        lambda **given: _model()(**given),
        {"clips": CLIPS, "labels": CLIPS, "positions": POSITIONS, "count": COUNT},
    ),
    "Vimpac.resize_grid": (lambda **given: _model().resize_grid(**given), {"grid": (1, 2, 3)}),
    "Vimpac.contrastive_loss": (
        lambda **given: _model().contrastive_loss(**given),
        {"cls": torch.randn(6, 16)},
    ),
    "VideoTokenEncoder": (VideoTokenEncoder, {"config": CONFIG}),
    "VideoTokenEncoder.forward": (
        lambda **given: _model().encoder(**given),
        {"tokens": TOKENS},
    ),
    "VideoTokenEncoder.cls": (lambda **given: _model().encoder.cls(**given), {"tokens": TOKENS}),
    "VideoClassifier": (VideoClassifier, {"encoder": _model().encoder, "num_classes": 3}),
    "VideoClassifier.forward": (
        lambda **given: VideoClassifier(_model().encoder, 3)(**given),
        {"tokens": TOKENS},
    ),
    "MaskedTokenHead": (MaskedTokenHead, {"embedding": torch.nn.Embedding(9, 16)}),
    "MaskedTokenHead.forward": (
        lambda **given: _model().token_head(**given),
        {"hidden": torch.zeros(3, 9, 16), "labels": TOKENS, "positions": POSITIONS, "count": COUNT},
    ),
    "ContrastiveHead": (ContrastiveHead, {"config": CONFIG}),
    "ContrastiveHead.forward": (
        lambda **given: _model().contrastive_head(**given),
        {"cls": torch.randn(6, 16)},
    ),
    "info_nce": (info_nce, {"features": FEATURES}),
    "view_major": (view_major, {"clips": CLIPS}),
}

NO_OBJECT = [None, "text", 3, {}, [1]]
NO_NUMBER = ["0.5", None, [0.5], FEATURES, True, 1j, math.nan, math.inf, -1.0, 10**400]
NO_WHOLE = ["1", [1], FEATURES, True, math.nan, 1.5, 2.0]
NO_FLAG = ["no", 1, None, FEATURES]
NO_GRID = [
    None,
    3,
    "222",
    (2, 2),
    (2.5, 2, 2),
    (2.0, 2, 2),
    ("2", "2", "2"),
    (0, 2, 2),
    [True, 2, 2],
]
NO_IDS = [*NO_OBJECT, TOKENS.float(), TOKENS.bool(), TOKENS.to(torch.complex64), TOKENS[0]]
NO_SEED = ["1", 1.5, True, [1], FEATURES, torch.zeros(2, dtype=torch.int64), 2**63, 2**64]
NO_POSITIONS = [*("text", [1], 3.0), POSITIONS.float(), POSITIONS[None], None]
NO_COUNT = [*("text", [1], 3), COUNT.long(), COUNT[None], None]
NO_STATES = [*NO_OBJECT, FEATURES.long(), FEATURES[0], FEATURES[:, :3]]

# Call -> argument -> values that it must refuse
WRONG: dict[str, dict[str, list]] = {
    "ModelConfig": {
        **dict.fromkeys(
            ("layers", "width", "heads", "head_dim", "mlp_width", "contrastive_layers"),
            [*NO_WHOLE, None, 0, -1, 10**9],
        ),
        **dict.fromkeys(("contrastive_width", "contrastive_dim"), [*NO_WHOLE, None, 0]),
        **dict.fromkeys(("layout", "norm", "cls"), [None, 3, ["T"], "fastest"]),
        "grid": NO_GRID,
        "dropout": [*NO_NUMBER, 1.0],
    },
    "LossConfig": {
        **dict.fromkeys(("mask", "alpha", "gamma"), NO_NUMBER),
        "temperature": [*NO_NUMBER, 0],
    },
    "preset": {"name": [None, 3, ["tiny"], "huge"]},
    "Vimpac": {"config": NO_OBJECT, "loss": NO_OBJECT[1:]},
    "Vimpac.forward": {
        "clips": NO_IDS,
        "labels": NO_IDS,
        "positions": NO_POSITIONS,
        "count": NO_COUNT,
        "max_masked": [*NO_WHOLE, -1],
        "has_padding": NO_FLAG,
        "contrastive_batch": [*NO_WHOLE, 0, -1, 2],
    },
    "Vimpac.resize_grid": {"grid": NO_GRID, "optimizer": NO_OBJECT[1:]},
    "Vimpac.contrastive_loss": {"cls": NO_STATES, "contrastive_batch": [*NO_WHOLE, 0, 2]},
    "VideoTokenEncoder": {"config": NO_OBJECT},
    "VideoTokenEncoder.forward": {
        "tokens": NO_IDS,
        "has_padding": NO_FLAG,
        "rows": ["text", [1], 3, FEATURES, TOKENS, TOKENS[0, 0, 0, 0], TOKENS.flatten().short()],
        "seed": NO_SEED,
    },
    "VideoTokenEncoder.cls": {"tokens": NO_IDS, "has_padding": NO_FLAG, "seed": NO_SEED},
    "VideoClassifier": {
        "encoder": [*NO_OBJECT, torch.nn.Linear(2, 2), _model()],
        "num_classes": [*NO_WHOLE, None, 0, -1],
        "dropout": [*NO_NUMBER, 1.5],
    },
    "VideoClassifier.forward": {"tokens": NO_IDS, "has_padding": NO_FLAG, "seed": NO_SEED},
    "MaskedTokenHead": {"embedding": [*NO_OBJECT, torch.nn.Linear(2, 2)]},
    "MaskedTokenHead.forward": {
        "hidden": NO_STATES,
        "labels": NO_IDS,
        "positions": NO_POSITIONS,
        "count": NO_COUNT,
        "max_masked": [*NO_WHOLE, -1],
    },
    "ContrastiveHead": {"config": NO_OBJECT},
    "ContrastiveHead.forward": {"cls": NO_STATES},
    "info_nce": {
        "features": [*NO_OBJECT, FEATURES.long(), FEATURES[0], FEATURES[:5]],
        "temperature": [*NO_NUMBER, 0, 0.0],
        "gamma": NO_NUMBER,
        "contrastive_batch": [*NO_WHOLE, 0, -1, 2],
    },
    "view_major": {"clips": [*NO_OBJECT, TOKENS, CLIPS.float(), CLIPS[:, :1]]},
}
CASES = [
    pytest.param(call, argument, value, id=f"{call}-{argument}-{number}")
    for call, arguments in WRONG.items()
    for argument, values in arguments.items()
    for number, value in enumerate(values)
]


@pytest.mark.parametrize("call", CALLS)
def test_arguments_of_these_tests_are_right(call):
    function, arguments = CALLS[call]
    function(**arguments)


@pytest.mark.parametrize(("call", "argument", "value"), CASES)
def test_wrong_argument_is_named(call, argument, value):
    function, arguments = CALLS[call]
    with pytest.raises((TypeError, ValueError), match=rf"\b{argument}\b"):
        function(**(arguments | {argument: value}))


# Values out of range: call, what is changed, what the error says
OUT_OF_RANGE = {
    "id": ("VideoTokenEncoder.forward", {"tokens": TOKENS + 8197}, "token 8197 is outside"),
    "negative-id": ("VideoTokenEncoder.cls", {"tokens": TOKENS - 1}, "token -1 is outside"),
    "id-of-clips": ("Vimpac.forward", {"clips": CLIPS + 8197}, "token 8197 is outside"),
    "label": ("Vimpac.forward", {"labels": CLIPS + 8197}, "target 8197 is outside"),
    "row": ("VideoTokenEncoder.forward", {"rows": _int32(0, 27)}, r"rows: 27 is outside \[0, 27\)"),
    "no-row": ("VideoTokenEncoder.forward", {"rows": _int32(-1)}, "rows: -1 is outside"),
    "position": ("Vimpac.forward", {"positions": _int32(1, 54)}, "position 54 is not the row of a"),
    "negative": ("Vimpac.forward", {"positions": _int32(-1, 3)}, "position -1 is not the row of a"),
    "cls": ("MaskedTokenHead.forward", {"positions": _int32(1, 9)}, "position 9 is not the row of"),
    "count": ("Vimpac.forward", {"count": _int32(3)[0]}, r"count 3 is outside \[0, 2\]"),
    "negative-count": ("Vimpac.forward", {"count": _int32(-3)[0]}, "count -3 is outside"),
}


@pytest.mark.parametrize(("call", "change", "message"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_value_out_of_range_is_named_on_a_cpu(call, change, message):
    function, arguments = CALLS[call]
    with pytest.raises(IndexError, match=message):
        function(**(arguments | change))
