"""Stochastic depth: what a clip goes past adds nothing, and the rest is scaled up for it."""

import pytest
import torch
from torch import Tensor

from vimpac import VideoTokenEncoder
from vimpac.config import FinetuneConfig
from vimpac.errors import UsageError
from vimpac.model.config import preset
from vimpac.model.drop_path import draw_scales, drop_rates
from vimpac.model.layer import Attention
from vimpac.settings import load_config

pytestmark = pytest.mark.usefixtures("one_thread")

GRID, LAYERS, RATE, SEED = (2, 3, 4), 3, 0.6, torch.tensor(7)


def _encoder(**settings) -> VideoTokenEncoder:
    torch.manual_seed(0)
    config = dict(grid=GRID, layers=LAYERS, dropout=0.0) | settings
    encoder = VideoTokenEncoder(preset("tiny", **config))
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):  # biases are dropped, too
            torch.nn.init.normal_(parameter)
    encoder.drop_path = RATE
    return encoder


def _tokens(clips: int = 6) -> Tensor:
    return torch.randint(8192, (clips, *GRID), generator=torch.manual_seed(1))


def _scales(encoder: VideoTokenEncoder, clips: int) -> list[Tensor]:
    """What the encoder draws from the seed, in its documented place: after those of dropout."""
    branches = len(encoder.layers[0].branches())
    first = 1 + LAYERS * branches * 2
    seeds = SEED + torch.arange(first, first + LAYERS)
    scales = draw_scales(seeds, drop_rates(RATE, LAYERS), branches, clips)
    return [torch.ones(branches, clips) if s is None else s for s in scales]


def _reference(encoder: VideoTokenEncoder, tokens: Tensor) -> Tensor:
    """The encoder with every residual sum written out."""
    branches = [branch for layer in encoder.layers for branch in layer.branches()]
    scales = torch.cat(_scales(encoder, len(tokens)))
    norms = [branch.norm for branch in branches]
    x = stream = encoder._embed(tokens)
    if encoder.prenorm:
        x, norms = norms[0](stream), [*norms[1:], encoder.final_norm]
    for branch, norm, scale in zip(branches, norms, scales, strict=True):
        is_attention = isinstance(branch, Attention)
        update = branch(x, GRID, None, None) if is_attention else branch(x)
        update = scale[:, None, None] * (update + branch.out.bias)
        adds_to_x = is_attention and encoder.config.norm == "pre"
        stream = (x if adds_to_x else stream) + update
        x = norm(stream)
        stream = stream if encoder.prenorm else x
    return x


def _gradients(encoder: VideoTokenEncoder, y: Tensor) -> dict[str, Tensor]:
    encoder.zero_grad()
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters()}


@pytest.mark.parametrize("norm", ["post", "pre", "pre_textbook"])
def test_forward_and_gradients_match_the_written_out_sums(norm):
    encoder, tokens = _encoder(norm=norm), _tokens()
    scales = torch.cat(_scales(encoder, len(tokens)))
    assert (scales == 0).any() and (scales > 1).any()
    y, expected = encoder(tokens, seed=SEED), _reference(encoder, tokens)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    found, wanted = _gradients(encoder, y), _gradients(encoder, expected)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", ["post", "pre", "pre_textbook"])
@pytest.mark.parametrize("cls", ["released", "paper"])
def test_rows_are_those_of_the_whole(norm, cls):
    encoder, tokens = _encoder(norm=norm, cls=cls, layout="T,H,W"), _tokens()
    whole = encoder(tokens, seed=SEED)
    torch.testing.assert_close(encoder.cls(tokens, seed=SEED), whole[:, 0], rtol=1e-4, atol=1e-4)
    rows = torch.tensor([3, 140, 30, 26, 99])
    found = encoder(tokens, seed=SEED, rows=rows)
    torch.testing.assert_close(found, whole.flatten(0, 1)[rows], rtol=1e-4, atol=1e-4)


def test_branch_that_every_clip_goes_past_gets_no_gradient():
    encoder, tokens = _encoder(), _tokens(1)
    found = _gradients(encoder, encoder(tokens, seed=SEED))
    scales = _scales(encoder, 1)
    seen = set()
    for layer, scale in zip(encoder.layers, scales, strict=True):
        for branch, kept in zip(layer.branches(), scale[:, 0] > 0, strict=True):
            (name,) = [n for n, p in encoder.named_parameters() if p is branch.out.bias]
            assert found[name].any() == kept
            seen.add(bool(kept))
    assert seen == {True, False}


def test_evaluation_goes_through_every_branch():
    encoder, tokens = _encoder().eval(), _tokens()
    y = encoder(tokens, seed=SEED)
    encoder.drop_path = 0.0
    assert torch.equal(y, encoder(tokens))


def test_recomputed_layers_go_past_the_same_branches():
    encoder, tokens = _encoder(dropout=0.1), _tokens()
    plain = _gradients(encoder, encoder(tokens, seed=SEED))
    encoder.activation_checkpointing = True
    torch.testing.assert_close(
        _gradients(encoder, encoder(tokens, seed=SEED)), plain, rtol=0, atol=0
    )


def test_compiled_encoder_goes_past_the_same_branches():
    encoder, tokens = _encoder(layers=2), _tokens()
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(tokens, seed=SEED), encoder(tokens, seed=SEED))


def test_dropout_draws_what_it_draws_without():
    encoder, tokens = _encoder(dropout=0.3, layers=1), _tokens()  # one layer: its rate is 0
    y = encoder(tokens, seed=SEED)
    encoder.drop_path = 0.0
    assert torch.equal(y, encoder(tokens, seed=SEED))


def test_rates_rise_in_a_line_and_the_mean_stays_one():
    rates, clips = drop_rates(0.4, 5), 4096
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert drop_rates(0.4, 1) == [0]
    scales = draw_scales(torch.arange(5), rates, 3, clips)
    assert scales[0] is None
    for scale, p in zip(scales[1:], rates[1:], strict=True):
        assert scale.shape == (3, clips)
        assert scale.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
        deviation = (p / (1 - p) / clips) ** 0.5
        assert (scale.mean(1) - 1).abs().max() < 5 * deviation
    kept = torch.cat([scale > 0 for scale in scales[1:]])
    assert len(kept.unique(dim=0)) == 12  # branches draw apart


def test_same_seed_draws_the_same_and_every_step_another():
    encoder, tokens = _encoder(), _tokens()
    one, same, other = (encoder(tokens, seed=s) for s in (SEED, SEED, SEED + 1))
    assert torch.equal(one, same) and not torch.allclose(one, other)
    drawn = [encoder(tokens) for _ in range(2)]  # without a seed: of PyTorch's generator
    assert not torch.allclose(*drawn)


@pytest.mark.parametrize("value", ["1", "-0.1"])
def test_rate_out_of_range_is_refused(value):
    with pytest.raises(UsageError, match=r"drop_path=.* must lie in \[0, 1\)"):
        load_config(FinetuneConfig, None, [f"drop_path={value}"])
