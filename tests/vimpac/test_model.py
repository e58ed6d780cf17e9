"""The model: published sizes, one path for every way to name masked rows, options and errors."""

import inspect

import pytest
import torch
import torch.nn.functional as F

import vimpac.model.encoder
import vimpac.model.layer
from vimpac import (
    MASK_TOKEN,
    PAD_TOKEN,
    VideoClassifier,
    VideoTokenEncoder,
    Vimpac,
    info_nce,
    preset,
)
from vimpac.model.positions import interpolate
from vimpac_kernels import AxialAttention, mask_tokens

GRID = (2, 3, 4)
LAYOUTS = ["T,H|W", "T,H,W", "T|H|W", "T,HW", "THW"]
NORMS = ["post", "pre", "pre_textbook"]


def _tiny(**overrides) -> Vimpac:
    torch.manual_seed(0)
    sizes = dict(width=48, heads=6, head_dim=8, mlp_width=64, contrastive_width=32, grid=GRID)
    return Vimpac.from_preset("tiny", **{**sizes, **overrides})


def _clips(videos: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked clips (B, 2, T, H, W) and their labels, one clip ending in PAD."""
    torch.manual_seed(1)
    labels = torch.randint(0, 8192, (videos, 2, *GRID))
    labels[0, 0, -1] = PAD_TOKEN
    hide = (torch.rand(labels.shape) < 0.3) & (labels != PAD_TOKEN)
    return labels.masked_fill(hide, MASK_TOKEN), labels.masked_fill(~hide, -100)


@pytest.mark.parametrize(
    ("name", "layout", "parameters"),
    [
        ("small", "T,H|W", 29_442_048),
        ("base", "T,H|W", 119_748_096),
        ("large_half", "T,H|W", 210_106_368),
        ("small", "T,H,W", 35_751_936),
        ("6x768", "T,H|W", 63_037_440),
        ("12x512", "T,H|W", 54_666_240),
        ("small", "THW", 23_132_160),
    ],
)
def test_backbone_has_the_published_number_of_parameters(name, layout, parameters):
    with torch.device("meta"):
        encoder = VideoTokenEncoder(preset(name, layout=layout))
    assert sum(p.numel() for p in encoder.parameters()) == parameters


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_every_parameter(layout, norm):
    model = _tiny(layout=layout, norm=norm)
    output = model(*_clips())
    assert output.loss.isfinite()
    torch.testing.assert_close(output.loss, output.mask_loss + output.contrastive_loss)
    output.loss.backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_contrastive_loss_follows_the_settings():
    settings = dict(alpha=0.5, gamma=0.3, temperature=0.5)
    model, (clips, labels) = _tiny(dropout=0.0, **settings), _clips(videos=4)
    output = model(clips, labels, contrastive_batch=2)
    views = clips.transpose(0, 1).flatten(0, 1)
    features = model.contrastive_head(model.encoder(views)[:, 0]).unflatten(0, (2, 4))
    halves = [info_nce(half.flatten(0, 1), 0.5, gamma=0.3) for half in features.split(2, dim=1)]
    torch.testing.assert_close(output.contrastive_loss, torch.stack(halves).mean())
    torch.testing.assert_close(output.loss, output.mask_loss + 0.5 * output.contrastive_loss)


def test_rows_by_labels_and_by_positions_agree():
    model = _tiny(dropout=0.0)
    tokens = torch.randint(0, 8192, (4, *GRID))
    masked = mask_tokens(tokens, mask_token=MASK_TOKEN, seed=3, row_offset=1)
    hidden = model.encoder(masked.inputs)
    by_labels = model.token_head(hidden, tokens.masked_fill(~masked.mask, -100))
    where = dict(positions=masked.positions, count=masked.count)
    for bound in (None, int(masked.count), int(masked.count) + 5):
        by_positions = model.token_head(hidden, tokens, **where, max_masked=bound)
        torch.testing.assert_close(by_positions, by_labels)
    logits = model.token_head.logits(hidden[:, 1:][masked.mask.flatten(1)])
    torch.testing.assert_close(by_labels.loss, F.cross_entropy(logits, tokens[masked.mask]))
    assert model.token_head(hidden, tokens, **where, max_masked=2).num_targets == 2


def test_masked_rows_come_in_few_sizes():
    """A process whose buffers differ in size at every step grows without end."""
    model, rows = _tiny(), []
    cross_entropy = model.token_head.cross_entropy
    cross_entropy.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    labels = torch.randint(0, 8192, (12, *GRID))
    hidden = model.encoder(labels)
    for ratio in (0.1, 0.11, 0.5, 1.0):
        hide = torch.rand(labels.shape) < ratio
        model.token_head(hidden, labels.masked_fill(~hide, -100))
    assert rows == [128, 128, 256, labels.numel()]


def test_no_masked_token_gives_zero():
    model = _tiny()
    clips, labels = _clips()
    output = model(clips, torch.full_like(labels, -100))
    assert output.mask_loss == 0 and output.accuracy == 0
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_padding_is_no_key():
    model = _tiny(dropout=0.0)
    block = model.encoder.layers[0].attention[0]
    padding = torch.zeros(2, *GRID, dtype=torch.bool)
    padding[:, 1] = True
    x = torch.randn(2, 25, 48)
    changed = x.clone()
    changed[:, 13:] += 1.0  # the second frame, all PAD
    before, after = (block(h, GRID, padding, None) for h in (x, changed))
    assert torch.equal(before[:, 1:13], after[:, 1:13])
    assert not torch.equal(before[:, 13:], after[:, 13:])  # PAD queries are computed as usual


def test_encoder_finds_the_padding_itself():
    encoder = _tiny(dropout=0.0).encoder
    clips = torch.randint(0, 8192, (2, *GRID))
    clips[:, 1] = PAD_TOKEN
    assert not torch.equal(encoder(clips), encoder(clips, has_padding=False))


def test_promise_of_no_padding_changes_nothing_without_padding():
    encoder = _tiny(dropout=0.0).encoder
    clips = torch.randint(0, 8192, (2, *GRID))
    torch.testing.assert_close(encoder(clips), encoder(clips, has_padding=False))


def test_dropout_follows_the_generator():
    model = _tiny(dropout=0.5)
    clips, labels = _clips()
    losses = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        losses.append(model(clips, labels).mask_loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_joint_axes_draw_from_the_generator_on_a_gpu_only():
    for layout, expected in (("T,HW", True), ("T,H|W", False)):
        layer = _tiny(layout=layout).encoder.layers[0]
        assert layer.draws_from_generator(torch.device("cuda")) is expected
        assert not layer.draws_from_generator(torch.device("cpu"))


@pytest.mark.parametrize("layout", ["T,H|W", "T,HW"])
@pytest.mark.parametrize("norm", NORMS)
def test_every_dropout_has_the_rate_and_a_seed_of_its_own(monkeypatch, norm, layout):
    """That of the embedding, of each block's probabilities and of each branch."""
    calls: list[tuple[float, int | None]] = []

    def watch(name: str, user: object = vimpac.model.encoder) -> None:
        op = getattr(user, name)

        def run(*arguments, dropout_p, seed, **options):
            calls.append((dropout_p, None if seed is None else int(seed)))
            return op(*arguments, dropout_p=dropout_p, seed=seed, **options)

        monkeypatch.setattr(user, name, run)

    watch("embed_tokens")
    watch("axial_attention", inspect.getmodule(AxialAttention))
    watch("dropout_add_layer_norm", vimpac.model.layer)
    encoder, (clips, _) = _tiny(dropout=0.3, norm=norm, layout=layout).encoder, _clips()
    streams = []  # what the embedding gives, as it enters the first layer
    encoder.layers[0].register_forward_pre_hook(lambda _, inputs: streams.append(inputs[1]))
    encoder(clips[:, 0])
    rates, seeds = zip(*calls, strict=True)
    assert rates == 11 * (0.3,) and len(set(seeds)) == 11  # 2 layers: two axes and MLP
    assert (streams[0] == 0).float().mean() == pytest.approx(0.3, abs=0.05)
    calls.clear()
    encoder.eval()(clips[:, 0])
    assert calls == 11 * [(0.0, None)] and streams[1].all()


@pytest.mark.parametrize(("norm", "backend"), [("post", "aot_eager"), ("pre", "eager")])
def test_compiled_forward_equals_eager(norm, backend):
    model = _tiny(norm=norm, dropout=0.0, layers=1)
    clips, labels = _clips()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(clips, labels), model(clips, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_autocast_computes_in_bf16(norm):
    model = _tiny(norm=norm, dropout=0.0)
    clips, labels = _clips()
    exact = model(clips, labels)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(clips, labels)
        assert model.encoder(clips[:, 0]).dtype == torch.bfloat16
    assert output.mask_loss.dtype == output.contrastive_loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, exact.loss, rtol=2e-2, atol=0)
    output.loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_meta_device_gives_shapes():
    with torch.device("meta"):
        model = _tiny()
        clips = torch.zeros(2, 2, *GRID, dtype=torch.long)
        assert model(clips, clips).loss.shape == ()
        assert model.encoder(clips[:, 0]).shape == (2, 25, 48)


def test_initialisation_is_as_published():
    encoder = _tiny(norm="pre", width=192, mlp_width=512, layers=3).encoder
    layer = encoder.layers[0]
    for weight, std in [
        (encoder.token_embedding.weight, 0.02),
        (layer.attention[0].axial.in_proj_weight, 0.02),
        (layer.mlp.up.weight, 0.02),
        (layer.mlp.out.weight, 0.02 / 9**0.5),  # 3 layers x 3 branches
        (layer.attention[1].out.weight, 0.02 / 9**0.5),
    ]:
        assert abs(weight.std().item() / std - 1) < 0.03
    tables = (table.std().item() for table in encoder.positions.parameters())  # [CLS] first
    assert abs(next(tables) / 0.02 - 1) < 0.2
    assert abs(sum(std**2 for std in tables) ** 0.5 / 0.02 - 1) < 0.2
    assert not layer.mlp.out.bias.any()
    assert {m.eps for m in encoder.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-12}


def test_tied_weight_is_stored_once():
    model = _tiny()
    model = model.to(torch.float64)
    head = model.token_head.cross_entropy
    assert head.linear_weight is model.encoder.token_embedding.weight
    assert sum("embedding.weight" in name for name in model.state_dict()) == 1
    copy = _tiny(layers=1)
    assert set(model.state_dict()) > set(copy.state_dict())


def test_classifier_starts_at_zero_and_trains():
    classifier = VideoClassifier(_tiny().encoder, 5)
    logits = classifier(_clips()[0][:, 0])
    assert logits.shape == (3, 5) and not logits.any()
    F.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    assert classifier.classifier.weight.grad.any()


def test_classifier_drops_its_input_in_training():
    classifier = VideoClassifier(_tiny(dropout=0.0).encoder, 5, dropout=0.5)
    torch.nn.init.ones_(classifier.classifier.weight)
    clips = _clips()[0][:, 0]
    assert not torch.equal(classifier(clips), classifier(clips))
    classifier.eval()
    assert torch.equal(classifier(clips), classifier(clips))


def test_interpolation_is_linear_between_cell_centres():
    table = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    torch.testing.assert_close(interpolate(table, 2), torch.tensor([[0.5], [2.5]]))
    torch.testing.assert_close(interpolate(table, 8)[:3, 0], torch.tensor([0.0, 0.25, 0.75]))


def test_resize_takes_adam_along():
    model = _tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    model(*_clips()).loss.backward()
    optimizer.step()
    table = model.encoder.positions.height
    moment = optimizer.state[table]["exp_avg"].clone()
    model.resize_grid((2, 6, 4), optimizer)
    assert model.config.grid == model.encoder.grid == (2, 6, 4)
    assert model.encoder.positions.height is table and table.shape == (6, 48)
    torch.testing.assert_close(optimizer.state[table]["exp_avg"], interpolate(moment, 6))
    clips = torch.randint(0, 8192, (2, 2, 2, 6, 4))
    model(clips, clips).loss.backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(layout="H,T"), "layout must be one of"),
        (dict(norm="rms"), "norm must be"),
        (dict(grid=(0, 4, 4)), "grid=.* must be positive"),
        (dict(heads=3), "do not divide"),
        (dict(dropout=1.0), "dropout=1.0 must lie in"),
    ],
)
def test_rejects_bad_setting(change, words):
    with pytest.raises(ValueError, match=words):
        preset("tiny", **change)


def test_rejects_unknown_names():
    with pytest.raises(ValueError, match="preset must be one of"):
        preset("huge")
    with pytest.raises(TypeError, match="'depth' is no setting"):
        preset("tiny", depth=3)


def test_rejects_bad_input():
    model = _tiny()
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        model.encoder(torch.zeros(1, 2, 3, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="integers"):
        model.encoder(torch.zeros(1, *GRID))
    with pytest.raises(ValueError, match="labels must be"):
        model.token_head(torch.zeros(1, 25, 48), torch.zeros(1, 2, 3, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="labels must be as clips"):
        model(
            torch.zeros(1, 2, *GRID, dtype=torch.long), torch.zeros(2, 2, *GRID, dtype=torch.long)
        )
    with pytest.raises(ValueError, match="come together"):
        model.token_head(
            torch.zeros(1, 25, 48),
            torch.zeros(1, *GRID, dtype=torch.long),
            count=torch.tensor(1),
        )


def test_preset_takes_every_setting_by_name():
    model = Vimpac.from_preset(name="tiny", layout="THW", grid=GRID, cls="paper")
    assert (model.config.layout, model.config.cls) == ("THW", "paper")
