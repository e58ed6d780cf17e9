"""The last layer computes only the rows that are read: same values, same gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F

from vimpac import MASK_TOKEN, PAD_TOKEN, VideoClassifier, VideoTokenEncoder, Vimpac, preset
from vimpac.model.masked_rows import choose_masked_rows
from vimpac_kernels import mask_tokens

GRID = (2, 3, 4)
ROWS = [0, 25, 3, 30, 3, 24, 49, 13]  # of two clips, both [CLS] and one row twice
LAYOUTS = [
    *(pytest.param(name, "released", id=name) for name in ("T,H|W", "T,H,W", "T|H|W", "T,HW")),
    *(pytest.param(name, "paper", id=f"{name}-paper") for name in ("T,H,W", "T,HW")),
    *(pytest.param("THW", cls, id=f"THW-{cls}") for cls in ("released", "paper")),
]


def _encoder(**settings) -> VideoTokenEncoder:
    torch.manual_seed(0)
    sizes = dict(width=48, heads=6, head_dim=8, mlp_width=64, grid=GRID)
    encoder = VideoTokenEncoder(preset("tiny", **{**sizes, "dropout": 0.0, **settings}))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def _clips() -> torch.Tensor:
    """(2, T, H, W); the first ends in PAD."""
    clips = torch.randint(0, 8192, (2, *GRID), generator=torch.Generator().manual_seed(1))
    clips[0, 1:] = PAD_TOKEN
    return clips


def _run(encoder: VideoTokenEncoder, chosen_early: bool) -> list[torch.Tensor]:
    """The states of ROWS and the gradients of every parameter."""
    encoder.zero_grad()
    rows = torch.tensor(ROWS)
    if chosen_early:
        states = encoder(_clips(), rows=rows)
    else:
        states = encoder(_clips()).flatten(0, 1)[rows]
    weight = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view_as(states)
    (states * weight).sum().backward()
    return [states, *(p.grad for p in encoder.parameters())]


@pytest.mark.parametrize("norm", ["post", "pre", "pre_textbook"])
@pytest.mark.parametrize(("layout", "cls"), LAYOUTS)
def test_rows_and_gradients_are_those_of_all_rows(layout, cls, norm):
    encoder = _encoder(layout=layout, cls=cls, norm=norm).double()
    expected = _run(encoder, chosen_early=False)
    torch.testing.assert_close(_run(encoder, chosen_early=True), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("layout", "cls"), [("T,H|W", "released"), ("T,H,W", "paper")])
def test_checkpointed_rows_have_the_same_gradients(layout, cls):
    encoder = _encoder(layout=layout, cls=cls, dropout=0.3)
    torch.manual_seed(2)
    expected = _run(encoder, chosen_early=True)
    encoder.activation_checkpointing = True
    torch.manual_seed(2)
    assert all(map(torch.equal, _run(encoder, chosen_early=True), expected))


def test_last_layer_computes_the_rows_that_are_read():
    model = Vimpac.from_preset("tiny", grid=GRID)
    seen: list[int] = []
    mlp = model.encoder.layers[-1].mlp
    mlp.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][..., 0].numel()))
    clips = torch.randint(0, 8192, (8, 2, *GRID))
    labels = clips.masked_fill(torch.rand(clips.shape) < 0.9, -100)
    model(clips, labels)  # 16 [CLS] and the masked tokens, in steps of 128
    model(clips, labels, max_masked=50)
    VideoClassifier(model.encoder, 3)(clips[:, 0])
    assert seen == [16 + 128, 16 + 50, 8]


def test_mask_loss_is_that_of_all_hidden_states():
    model = Vimpac.from_preset("tiny", grid=GRID, dropout=0.0)
    tokens = torch.randint(0, 8192, (4, *GRID))
    masked = mask_tokens(tokens, mask_token=MASK_TOKEN, seed=3, row_offset=1)
    where = dict(positions=masked.positions, count=masked.count)
    output = model(masked.inputs, tokens, **where)
    logits = model.token_head.logits(model.encoder(masked.inputs)[:, 1:][masked.mask.flatten(1)])
    expected = F.cross_entropy(logits, tokens[masked.mask])
    torch.testing.assert_close(output.mask_loss, expected)


@pytest.mark.parametrize("norm", ["post", "pre", "pre_textbook"])
def test_dropout_depends_on_no_other_row_that_is_read(norm):
    """[CLS] first, it drops the same elements alone: what the cached gradient rests on."""
    encoder = _encoder(norm=norm, dropout=0.3)
    results = []
    for rows in ([0, 25], [0, 25, 3, 30], [3, 0, 25]):
        torch.manual_seed(4)
        results.append(encoder(_clips(), rows=torch.tensor(rows)))
    alone, first, later = results
    torch.testing.assert_close(first[:2], alone)
    assert not torch.allclose(later[1:], alone)


def test_bound_on_masked_rows_changes_nothing_but_dead_slots():
    labels = torch.randint(0, 8192, (2, *GRID))
    tokens = mask_tokens(labels, mask_token=MASK_TOKEN, seed=3, row_offset=1)
    model = Vimpac.from_preset("tiny", grid=GRID, dropout=0.3, alpha=0.0)
    losses, gradients = [], []
    for bound in (int(tokens.count), int(tokens.count) + 5):
        torch.manual_seed(5)
        twin = copy.deepcopy(model)
        where = dict(positions=tokens.positions, count=tokens.count, max_masked=bound)
        losses.append(twin(tokens.inputs, labels, **where).loss)
        losses[-1].backward()
        gradients.append([p.grad for p in twin.parameters()])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_dead_slots_have_rows_of_their_own_and_no_target():
    labels = torch.full((2, *GRID), -100)
    labels[0, 0, 0, 2], labels[1, 1, 2, 3] = 7, 8
    rows, target, num_live = choose_masked_rows(labels, max_masked=4)
    assert rows.tolist() == [3, 49, 2, 3] and target.tolist() == [7, 8, -100, -100]
    assert num_live == 2
