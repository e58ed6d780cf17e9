"""What the pictures of `vimpac visualise` show, as numbers."""

import itertools
import math

import numpy as np
import pytest
import torch

from vimpac import PAD_TOKEN, Vimpac
from vimpac.errors import UsageError
from vimpac.pictures.attention import cls_attention, relative
from vimpac.pictures.clip import CHEQUERS, RIGHT, WRONG, cover, mark, paint
from vimpac.pictures.masks import compare_masks, hide
from vimpac.pictures.neighbours import (
    blocks_for,
    compare_copying,
    copy_nearest,
    nearest_visible,
    psnr,
)
from vimpac.pictures.predictions import Score, commonest_token, judge, predict_tokens
from vimpac.pictures.run import Curve, Panel, draw_run
from vimpac.pictures.samples import choose_videos
from vimpac.pictures.sheet import Row, Sheet
from vimpac.tokenizers import get_tokenizer
from vimpac.tokens import MASK_TOKEN, NUM_TOKENS

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = get_tokenizer("patch")


def moving_shapes(clips: int) -> torch.Tensor:
    """Tokens of squares that move over gradients, (clips, 5, 16, 16)."""
    rng, found = np.random.default_rng(0), []
    for _ in range(clips):
        y, x = np.indices((128, 128))
        slope, colours = rng.uniform(-0.6, 0.6, 2), rng.integers(40, 220, (2, 3))
        frames = np.empty((5, 3, 128, 128), np.uint8)
        place, speed = rng.uniform(0, 80, 2), rng.uniform(-6, 6, 2)
        for frame in frames:
            ground = colours[0][:, None, None] + slope[0] * (y - 64) + slope[1] * (x - 64)
            frame[:] = ground.clip(0, 255)
            top, left = (place % 96).astype(int)
            frame[:, top : top + 32, left : left + 32] = colours[1][:, None, None]
            place = place + speed
        found.append(torch.from_numpy(TOKENIZER.encode(frames)))
    return torch.stack(found)


@pytest.mark.parametrize("same_frame", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nearest_visible_token_is_that_of_a_search(monkeypatch, seed, same_frame):
    monkeypatch.setattr("vimpac.pictures.neighbours._AT_ONCE", 60)  # parts, and a rest
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, 4, 4, generator=generator) < 0.6
    mask[2] = True  # a frame without a visible token
    found = nearest_visible(mask, ~mask, same_frame=same_frame).tolist()
    cells = [*itertools.product(range(3), range(4), range(4))]
    expected = []
    for cell in cells:
        if not mask[cell]:
            continue
        near = [
            (sum((a - b) ** 2 for a, b in zip(cell, other, strict=True)), place)
            for place, other in enumerate(cells)
            if not mask[other] and (not same_frame or other[0] == cell[0])
        ]
        expected.append(min(near)[1] if near else -1)
    assert found == expected
    assert (-1 in found) == same_frame


def test_copies_take_no_padding_and_nothing_where_nothing_is_visible():
    tokens = torch.arange(8, dtype=torch.int32).view(2, 2, 2)
    tokens[1] = PAD_TOKEN
    mask = torch.zeros(2, 2, 2, dtype=torch.bool)
    mask[0, 0] = True
    filled = copy_nearest(tokens, mask, same_frame=False)
    assert filled[0].tolist() == [[2, 3], [2, 3]] and (filled[1] == PAD_TOKEN).all()
    mask[0] = True
    assert (copy_nearest(tokens, mask, same_frame=False)[0] == MASK_TOKEN).all()


def test_copying_solves_iid_masks_more_than_block_masks():
    clips = moving_shapes(17)
    for ratio in (0.15, 0.45):
        block, iid = compare_copying(clips[0], clips[1:], ratio)
        assert (block.strategy, iid.strategy) == ("block", "iid")
        for space, right in block.right_of_all.items():
            assert 0.1 < right < iid.right_of_all[space] - 0.04, (ratio, space)
        assert abs(block.share - ratio) < 0.2 and abs(iid.share - ratio) < 0.05


def test_shares_of_a_clip_are_those_of_its_copies():
    clips = moving_shapes(2)
    for one in compare_copying(clips[0], clips[1:], 0.3, seed=4):
        for space, ids in one.filled.items():
            same = ids == clips[0]
            assert one.right[space] == pytest.approx(float(same[one.mask].float().mean()))
            assert same[~one.mask].all()


def test_psnr_is_that_of_the_mean_squared_error():
    frames = np.full((1, 2, 2, 3), 100, np.uint8)
    assert psnr(frames, frames) == math.inf
    assert psnr(frames + np.uint8(5), frames) == pytest.approx(10 * math.log10(255**2 / 25))
    assert psnr(np.zeros_like(frames), np.full_like(frames, 255)) == 0


def test_number_of_boxes_comes_as_near_to_a_ratio_as_it_can():
    assert blocks_for((5, 16, 16), 0.145) == 5  # Table 2
    assert blocks_for((10, 32, 32), 0.154) == 7
    assert blocks_for((1, 2, 2), 0.99) > 5


def test_mean_shares_are_those_of_table_2_and_alike():
    tokens = torch.zeros(5, 16, 16, dtype=torch.int32)
    block, iid, tube = compare_masks(tokens, blocks=5, clips=1024)
    assert block.table_2 == 0.145 and iid.table_2 is None
    assert block.mean == pytest.approx(0.145, abs=0.005)
    assert iid.mean == pytest.approx(block.mean, abs=0.003)
    assert tube.share == pytest.approx(block.mean, abs=0.5 / 256)
    assert block.most > iid.most > iid.mean  # the share of a clip varies most with boxes
    assert (tube.mask == tube.mask[:1]).all()
    for one in (block, iid, tube):
        assert one.share == pytest.approx(float(one.mask.float().mean()))
    assert [one.name for one in compare_masks(tokens, ratio=0.5, clips=1)] == [
        "block, 5 boxes",
        "iid, ratio 0.500",
        "tube, ratio 0.500",
    ]


def test_padding_is_not_hidden_and_its_frames_do_not_count():
    tokens = torch.zeros(4, 8, 8, dtype=torch.int32)
    tokens[1:] = PAD_TOKEN
    for one in compare_masks(tokens, ratio=0.5, clips=4):
        assert not one.mask[1:].any()
        assert one.share == pytest.approx(float(one.mask[0].float().mean()))


def test_hidden_tokens_are_chequered_and_guesses_marked():
    ids = torch.tensor([[[10, 20], [MASK_TOKEN, 30]]])
    frames = paint(TOKENIZER, ids)
    assert frames.shape == (1, 16, 16, 3) and frames.dtype == np.uint8
    decoded = TOKENIZER.decode(np.array([[[10, 20], [0, 30]]])).transpose(0, 2, 3, 1)
    assert {*frames[0, 8:, :8].flatten()} == {*CHEQUERS}
    assert (frames[0, :8] == decoded[0, :8]).all() and (
        frames[0, 8:, 8:] == decoded[0, 8:, 8:]
    ).all()
    hidden = torch.tensor([[[True, False], [False, False]]])
    covered = cover(decoded, hidden)
    assert {*covered[0, :8, :8].flatten()} == {*CHEQUERS}
    assert (covered[0, 8:] == decoded[0, 8:]).all()
    marked = mark(decoded, hidden, hidden.flip(2))
    assert (marked[0, :8, :8] == RIGHT).all() and (marked[0, :8, 8:] == WRONG).all()


def _tiny(grid: tuple[int, int, int] = (2, 4, 4), **settings) -> Vimpac:
    torch.manual_seed(0)
    model = Vimpac.from_preset("tiny", grid=grid, **settings).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # so that nothing is nearly uniform
    return model


def test_predictions_are_the_likeliest_tokens_of_the_masked_input():
    model, tokens = _tiny(), torch.randint(NUM_TOKENS, (2, 2, 4, 4), dtype=torch.int32)
    mask = hide(tokens, "iid", ratio=0.4)
    filled = predict_tokens(model, tokens, mask)
    with torch.no_grad():
        hidden = model.encoder(tokens.masked_fill(mask, MASK_TOKEN))[:, 1:]
        logits = model.token_head.logits(hidden)[..., :NUM_TOKENS].view(*tokens.shape, -1)
    assert (filled[mask] == logits.argmax(-1)[mask]).all()
    assert (filled[~mask] == tokens[~mask]).all()
    for temperature in (1e-4, 1e-320):  # the second one is 0 in fp32
        cold = predict_tokens(model, tokens, mask, temperature=temperature)
        assert (cold == filled).all()
    hot = [predict_tokens(model, tokens, mask, temperature=9.0, seed=seed) for seed in (0, 0, 1)]
    assert (hot[0] == hot[1]).all() and (hot[0] != hot[2]).any()
    nothing = torch.zeros_like(mask)
    assert (predict_tokens(model, tokens, nothing) == tokens).all()


def test_score_compares_with_copying_and_the_commonest_token():
    tokens = torch.tensor([[[[7, 7, 7, 5]]]])
    mask = torch.tensor([[[[False, True, False, True]]]])
    score = judge(tokens, mask, torch.tensor([[[[7, 7, 7, 6]]]]), commonest_token(tokens))
    assert score == Score(masked=2, model=0.5, nearest=0.5, background=0.5, commonest=0.5)
    assert score.verdict == "The model is no better than always guessing the commonest token."
    assert ", ".join(score.baselines) == (
        "nearest visible token 50.0%, commonest of the clip 50.0%, commonest of all 50.0%, "
        "chance 0.01%"
    )
    copied = "The model is no better than copying the nearest visible token."
    assert Score(9, 0.6, 0.7, 0.5, 0.5).verdict == copied
    assert Score(9, 0.8, 0.7, 0.5, 0.5).verdict == ""
    background = "The model is no better than guessing the commonest visible token of the clip."
    assert Score(9, 0.6, 0.5, 0.6, 0.5).verdict == background


def test_commonest_token_of_a_clip_is_of_what_is_visible_there():
    """Hidden tokens are not counted, nor those of another clip."""
    tokens = torch.tensor([[[[3, 3, 3, 5, 5]]], [[[8, 8, 5, 5, 5]]]])
    mask = torch.tensor(
        [[[[True, True, False, False, False]]], [[[True, False, True, True, True]]]]
    )
    score = judge(tokens, mask, tokens, commonest_token(tokens))
    assert score.background == pytest.approx(1 / 6) and score.commonest == 0.5


def test_commonest_token_of_a_clip_that_is_hidden_is_a_guess_like_any_other():
    tokens = torch.tensor([[[[3, 3]]]])
    assert judge(tokens, tokens > 0, tokens, 3).background == 0


def test_commonest_token_is_no_padding_and_the_lowest_of_several():
    assert commonest_token(torch.tensor([PAD_TOKEN, PAD_TOKEN, PAD_TOKEN, 9, 4, 9, 4])) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"layout": "T,H|W"},
        {"layout": "T|H|W", "width": 96, "heads": 3},
        {"layout": "T,HW", "norm": "pre"},
        {"layout": "THW"},
        {"layout": "T,H,W", "cls": "paper"},
    ],
    ids=lambda settings: settings["layout"],
)
def test_attention_of_cls_is_that_of_the_formula(settings):
    grid = T, H, W = 3, 4, 5
    encoder = _tiny(grid, **settings).encoder
    tokens = torch.randint(NUM_TOKENS, grid)
    tokens[2] = PAD_TOKEN
    read, blocks = {}, encoder.layers[1].attention
    for block in blocks:
        block.register_forward_pre_hook(lambda block, inputs: read.update({block: inputs[0]}))
    found = cls_attention(encoder, tokens, 2)
    cells = [*itertools.product(range(T), range(H), range(W))]
    expected = []
    for block in blocks:
        axial = block.axial
        qkv = torch.nn.functional.linear(read[block][0], axial.in_proj_weight, axial.in_proj_bias)
        q, k, _ = qkv.detach().double().view(1 + T * H * W, 3, axial.num_heads, -1).unbind(1)
        groups = axial.axes.split("|")
        n = axial.num_heads // len(groups)
        for g, axis in enumerate(groups):
            lines: dict[tuple, list[int]] = {}
            for place, cell in enumerate(cells):
                key = tuple(x for name, x in zip("THW", cell, strict=True) if name not in axis)
                lines.setdefault(key, []).append(place)
            shares, itself = torch.zeros(T * H * W).double(), 0.0
            for head, line in itertools.product(range(g * n, (g + 1) * n), lines.values()):
                keys = [place + 1 for place in line if tokens.flatten()[place] != PAD_TOKEN]
                keys += [] if block.per_line else [0]
                if keys:
                    p = (k[keys, head] @ q[0, head] * q.shape[-1] ** -0.5).softmax(0)
                    for key, share in zip(keys, p / (n * len(lines)), strict=True):
                        if key:
                            shares[key - 1] += share
                        else:
                            itself += float(share)
            expected.append((axis, shares.view(grid), itself))
    assert [one.axis for one in found] == [axis for axis, _, _ in expected]
    for one, (_, shares, itself) in zip(found, expected, strict=True):
        torch.testing.assert_close(one.tokens.double(), shares, rtol=1e-4, atol=1e-6)
        assert one.itself == pytest.approx(itself, rel=1e-4)
        assert (one.tokens[2] == 0).all()
        assert float(relative(one, 2).mean()) == pytest.approx(1)  # without those of PAD


def test_layer_that_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"layer 3 must lie in \[1, 2\]"):
        cls_attention(_tiny().encoder, torch.zeros(2, 4, 4, dtype=torch.int32), 3)


def test_sampled_videos_are_of_as_many_classes_as_there_can_be():
    classes = {video: "abc"[min(video // 8, 2)] for video in range(1, 20)}
    for seed in range(5):
        chosen = choose_videos(30, classes, 4, seed)
        assert len({*chosen}) == 4 and {*chosen} <= {*classes}
        assert {classes[video] for video in chosen} == {"a", "b", "c"}
        assert [classes[video] for video in chosen] == sorted(classes[video] for video in chosen)
        assert chosen == choose_videos(30, classes, 4, seed)
    assert len({tuple(choose_videos(30, classes, 4, seed)) for seed in range(5)}) > 1
    assert choose_videos(3, {}, 9) == [0, 1, 2]


def test_names_of_levels_that_are_near_stand_above_each_other(tmp_path, monkeypatch):
    figures, write = [], Sheet.write
    monkeypatch.setattr(
        Sheet, "write", lambda self, path: (figures.append(self.figure), write(self, path))
    )
    levels = {"copying 33%": 0.33, "of the clip 5%": 0.05, "of all 4%": 0.04}
    rows = [Row("original", np.zeros((2, 8, 8, 3), np.uint8))]
    curve = Curve("right", [1, 2], [0.0, 0.1], levels, are_shares=True)
    draw_run([Panel("a clip", rows, ["0 s", "1 s"])], [curve], [], tmp_path / "run.png")
    names = [text for axes in figures[0].axes for text in axes.texts]
    assert sorted(text.get_text() for text in names) == sorted(levels)
    boxes = sorted((text.get_window_extent() for text in names), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 for low, high in zip(boxes, boxes[1:], strict=False))
