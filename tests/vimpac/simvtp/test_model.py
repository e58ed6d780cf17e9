"""What SimVTP's network and losses claim beside equality with the released code."""

import math

import pytest
import torch
import torch.nn.functional as F

from vimpac.simvtp import DualEncoder, NetworkConfig, ObjectiveConfig, SimVTP, TextConfig, inputs
from vimpac.simvtp.model import draw_negatives
from vimpac.simvtp.objective import MaskedWords, contrastive_loss
from vimpac.simvtp.tubelets import split_mask

TINY = NetworkConfig(
    frames=4,
    size=16,
    patch=4,
    width=32,
    layers=2,
    heads=2,
    mlp_width=64,
    decoder_width=16,
    decoder_layers=2,
    decoder_heads=2,
    decoder_mlp_width=32,
    vocabulary=40,
    text_positions=12,
)
PAD, CLS, SEP, MASK = 0, 2, 3, 4


def _batch(pairs: int = 4, length: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of noise: captions of 3 to 6 words, half of the cells masked."""
    g = torch.Generator().manual_seed(seed)
    T, H, W = TINY.grid
    video = torch.randint(0, 256, (pairs, 4, 16, 16, 3), generator=g).to(torch.uint8)
    cells = torch.rand(pairs, H * W, generator=g).argsort(1) < H * W // 2
    ids = torch.full((pairs, length), PAD)
    for row in ids:
        words = int(torch.randint(1, length - 1, (), generator=g))
        row[: words + 2] = torch.randint(5, TINY.vocabulary, (words + 2,), generator=g)
        row[0], row[words + 1] = CLS, SEP
    hidden = (ids >= 5) & (torch.rand(ids.shape, generator=g) < 0.75)
    hidden[:, 1] = True
    return {
        "video": video,
        "mask": cells.repeat(1, T),
        "text_ids": ids,
        "text_attention": ids != PAD,
        "text_masked_ids": ids.masked_fill(hidden, MASK),
        "text_labels": ids.masked_fill(~hidden, -100),
        "negatives": (torch.arange(pairs) + 1) % pairs,
    }


@pytest.fixture
def model(one_thread) -> SimVTP:
    torch.manual_seed(0)
    return SimVTP(TINY, TextConfig(dropout=0.0)).double()


def test_losses_of_a_model_that_knows_nothing_are_those_of_chance(model):
    for parameter in (*model.decoder.head.parameters(), *model.word_head.parameters()):
        torch.nn.init.zeros_(parameter)
    for parameter in model.match_head.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        output = model(**_batch())
    values = TINY.pixels // 3
    assert float(output.pixel_loss) == pytest.approx((values - 1) / values, rel=1e-4)
    assert float(output.word_loss) == pytest.approx(math.log(TINY.vocabulary))
    assert float(output.match_loss) == pytest.approx(math.log(2))
    alike = torch.ones(16, 32).double()
    assert float(contrastive_loss(alike, alike, 0.05)) == pytest.approx(2 * math.log(16))


def test_loss_is_the_weighted_sum(model):
    batch = _batch()
    parts = model(**batch)
    model.loss_config = ObjectiveConfig(pixels=2, words=0.5, contrast=0.25, match=3)
    expected = 2 * parts.pixel_loss + 0.5 * parts.word_loss
    expected = expected + 0.25 * parts.contrastive_loss + 3 * parts.match_loss
    torch.testing.assert_close(model(**batch).loss, expected)


def test_a_masked_pixel_changes_the_target_and_nothing_that_is_predicted(model):
    batch = _batch()
    before = model(**batch)
    target = before.target_pixels
    cell = int(batch["mask"][0].nonzero()[0])  # of the first time step
    row, column = cell // TINY.grid[2] * 4, cell % TINY.grid[2] * 4
    batch["video"][0, 0, row, column] = 255 - batch["video"][0, 0, row, column]
    after = model(**batch)
    assert torch.equal(after.predicted_pixels, before.predicted_pixels)
    for loss in ("word_loss", "contrastive_loss", "match_loss"):
        assert torch.equal(getattr(after, loss), getattr(before, loss)), loss
    assert not torch.equal(after.target_pixels, target)
    assert after.pixel_loss != before.pixel_loss


def test_the_last_decoder_layer_needs_no_rows_of_visible_tubelets(model):
    """The masked rows of a decoder that computes all of them are the same."""
    batch = _batch()
    visible, masked = split_mask(batch["mask"], int(batch["mask"][0].sum()))
    decoder, hidden = model.decoder, torch.randn(4, visible.shape[1], TINY.width).double()
    table = decoder.table.double()
    seen = decoder.project(hidden) + table[visible.long()]
    stream = torch.cat((seen, decoder.mask_token + table[masked.long()]), 1)
    y = decoder.transformer.first_norm(stream)
    for layer in decoder.transformer.layers:
        attention = layer.attention
        bias = torch.cat((attention.q_bias, 0 * attention.q_bias, attention.v_bias))
        q, k, v = F.linear(y, attention.qkv.weight, bias).chunk(3, -1)
        q, k, v = (z.unflatten(-1, (2, -1)).transpose(1, 2) for z in (q, k, v))
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        stream = stream + attention.out((weights @ v).transpose(1, 2).flatten(2))
        y = layer.attention_norm(stream)
        stream = stream + layer.mlp.out(F.gelu(layer.mlp.up(y)))
        y = layer.mlp_norm(stream)
    expected = decoder.head(y[:, visible.shape[1] :])
    torch.testing.assert_close(decoder(hidden, visible, masked), expected)


def test_padding_changes_nothing_where_words_are_pooled(one_thread):
    torch.manual_seed(0)
    model = SimVTP(TINY, TextConfig(dropout=0.0, pool="words")).double()
    batch, wider = _batch(), _batch()
    for name, filler in (("text_ids", PAD), ("text_masked_ids", PAD), ("text_labels", -100)):
        wider[name] = F.pad(batch[name], (0, 3), value=filler)
    wider["text_attention"] = F.pad(batch["text_attention"], (0, 3))
    torch.testing.assert_close(model(**wider).loss, model(**batch).loss)
    released = SimVTP(TINY, TextConfig(dropout=0.0)).double()
    assert abs(released(**wider).match_loss - released(**batch).match_loss) > 1e-6


def test_whole_text_is_compared_where_it_is_asked_for(one_thread):
    torch.manual_seed(0)
    model = SimVTP(TINY, TextConfig(dropout=0.0, contrast="whole")).double()
    batch = _batch()
    whole = model(**batch)
    model.text_config = TextConfig(dropout=0.0)
    masked = model(**batch)
    assert whole.contrastive_loss != masked.contrastive_loss
    for loss in ("pixel_loss", "word_loss", "match_loss"):
        assert torch.equal(getattr(whole, loss), getattr(masked, loss))
    batch["text_masked_ids"] = batch["text_ids"]
    assert torch.equal(model(**batch).contrastive_loss, whole.contrastive_loss)


def test_tied_words_are_predicted_by_their_embedding(one_thread):
    torch.manual_seed(0)
    model = SimVTP(TINY, TextConfig(dropout=0.0, tied=True)).double()
    model(**_batch()).loss.backward()
    weight = model.encoder.words.words.weight
    assert "word_head.weight" not in dict(model.named_parameters())
    assert bool(weight.grad[1].any())  # a word that no text has: only the head reads it


def test_contrastive_loss_is_the_cross_entropy_both_ways(one_thread):
    torch.manual_seed(0)
    text, video = torch.randn(2, 6, 32).double().unbind()
    scores = F.normalize(text, dim=-1) @ F.normalize(video, dim=-1).T / 0.05
    pairs = torch.arange(6)
    expected = F.cross_entropy(scores, pairs) + F.cross_entropy(scores.T, pairs)
    torch.testing.assert_close(contrastive_loss(text, video, 0.05), expected)


def test_batch_without_a_masked_word_has_no_word_loss(model):
    batch = _batch()
    batch["text_masked_ids"] = batch["text_ids"]
    batch["text_labels"] = torch.full_like(batch["text_ids"], -100)
    output = model(**batch)
    output.loss.backward()
    assert output.word_loss == 0
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_negatives_are_other_clips():
    for pairs in (2, 3, 50):
        drawn = draw_negatives(pairs, torch.device("cpu"))
        assert bool((drawn != torch.arange(pairs)).all())
        assert bool(((drawn >= 0) & (drawn < pairs)).all())


def test_masked_words_of_labels_are_their_rows_in_order():
    words = MaskedWords.of(torch.tensor([[-100, 7, -100], [9, -100, 8]]))
    assert int(words.count) == 3
    assert words.positions[:3].tolist() == [1, 3, 5]


def test_a_model_without_a_loss_computes_nothing(one_thread):
    output = SimVTP(TINY, loss=ObjectiveConfig(0.0, 0.0, 0.0, 0.0))(**_batch())
    assert float(output.loss) == 0


def test_activation_checkpointing_changes_no_gradient(model):
    batch = _batch()
    model(**batch).loss.backward()
    before = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.encoder.transformer.recompute = model.decoder.transformer.recompute = True
    model(**batch).loss.backward()
    for parameter, expected in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"video": torch.zeros(4, 4, 16, 16, 3)}, r"video must be \(B, 4, 16, 16, 3\) uint8"),
        ({"video": torch.zeros(4, 8, 16, 16, 3).byte()}, "video must be"),
        ({"mask": torch.zeros(4, 32).bool()}, r"between 1 and 31, got \[0, 0, 0, 0\]"),
        ({"mask": torch.zeros(4, 31).bool()}, r"mask must be \(4, 32\) bool"),
        ({"text_attention": torch.ones(4, 7)}, r"text_ids and text_attention must be \(B, L\)"),
        ({"text_attention": torch.ones(4, 8)}, "text_attention must be integers, got"),
        ({"text_ids": torch.ones(4, 8)}, "text_ids must be integers, got torch.float32"),
        ({"text_ids": torch.full((4, 8), 40)}, r"text_ids must lie in \[0, 40\), got 40"),
        ({"text_ids": torch.full((4, 8), -1)}, r"text_ids must lie in \[0, 40\), got -1"),
        ({"text_masked_ids": torch.full((4, 8), 40)}, "text_masked_ids must lie in"),
        ({"text_masked_ids": torch.ones(4, 7).int()}, r"text_masked_ids must be \(4, 8\) as"),
        ({"text_masked_ids": torch.ones(3, 8).int()}, r"text_masked_ids must be \(4, 8\) as"),
        ({"text_labels": torch.ones(4, 7).int()}, r"text_labels must be \(4, 8\) as text_ids"),
        ({"text_labels": torch.full((4, 8), -1)}, r"text_labels must lie in \[0, 40\), got -1"),
        ({"text_labels": torch.ones(4, 8).byte()}, "text_labels must be int32 or int64"),
        ({"negatives": torch.arange(4)}, "negatives must be other clips than a text's own"),
        ({"negatives": torch.tensor([1, 2, 3, 4])}, r"negatives must lie in \[0, 4\), got 4"),
        ({"negatives": torch.tensor([1, 2, 3, -4])}, r"negatives must lie in \[0, 4\), got -4"),
        ({"negatives": torch.ones(4)}, "negatives must be integers, got torch.float32"),
        ({"negatives": torch.ones(4).bool()}, "negatives must be integers, got torch.bool"),
        ({"negatives": torch.ones(3).int()}, r"negatives must be \(4,\), got \(3,\)"),
        ({"negatives": torch.ones(4, 1).int()}, r"negatives must be \(4,\), got \(4, 1\)"),
    ],
)
def test_bad_input_is_named(model, change, message):
    with pytest.raises(ValueError, match=message):
        model(**{**_batch(), **change})


@pytest.mark.parametrize("name", _batch())
def test_input_of_another_kind_or_device_is_named(model, name):
    batch = _batch()
    with pytest.raises(ValueError, match="is on meta|text_.* is on cpu, .* on meta"):
        model(**{**batch, name: batch[name].to("meta")})
    with pytest.raises(TypeError, match=f"{name} must be a tensor, got list"):
        model(**{**batch, name: [1]})


def test_label_of_minus_one_is_not_padding_where_nobody_looks(model, monkeypatch):
    monkeypatch.setattr(inputs, "may_look", lambda tensor: False)
    with pytest.raises(IndexError, match="target -1"):
        model(**{**_batch(), "text_labels": torch.full((4, 8), -1)})


def test_a_batch_of_no_pairs_is_refused_and_has_features(model):
    empty = {name: tensor[:0] for name, tensor in _batch().items()}
    with pytest.raises(ValueError, match="video must hold a clip or more, got none"):
        model(**empty)
    for encoder in (model, DualEncoder.of(model)):
        assert encoder.embed_video(empty["video"]).shape == (0, TINY.width)
        texts = empty["text_ids"], empty["text_attention"]
        assert encoder.embed_text(*texts).shape == (0, TINY.width)


def test_two_encoders_take_pairs(model):
    batch, dual = _batch(), DualEncoder.of(model)
    texts = batch["text_ids"], batch["text_attention"]
    assert dual(batch["video"], texts[0], texts[1].int())[1].shape == (4, TINY.width)
    with pytest.raises(ValueError, match="1 texts do not fit 4 videos"):
        dual(batch["video"], texts[0][:1], texts[1][:1])
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 40\), got 41"):
        dual(batch["video"], texts[0] * 0 + 41, texts[1])
    with pytest.raises(ValueError, match="video must be"):
        dual(batch["video"].float(), *texts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_learns_and_embeds(model, dtype):
    batch = _batch()
    texts = batch["text_ids"], batch["text_attention"]
    expected = model.embed_text(*texts), model(**batch).loss
    model.to(dtype)
    loss = model(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss.double(), expected[1], rtol=0.05, atol=0)
    for encoder in (model, DualEncoder.of(model, fresh_norm=False)):
        assert encoder.embed_video(batch["video"]).dtype == dtype
        found = encoder.embed_text(*texts)
        torch.testing.assert_close(found.double(), expected[0], rtol=0, atol=0.03)


def test_a_text_of_padding_only_makes_nothing_nan(one_thread):
    torch.manual_seed(0)
    model = SimVTP(TINY, TextConfig(dropout=0.0, pool="words"))
    batch = _batch()
    batch["text_attention"][1] = False
    loss = model(**batch).loss
    loss.backward()
    assert bool(loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    for encoder in (model, DualEncoder.of(model)):
        texts = batch["text_ids"], batch["text_attention"]
        assert bool(encoder.embed_text(*texts).isfinite().all())


def test_one_pair_has_no_mismatch(model):
    batch = {name: tensor[:1] for name, tensor in _batch().items()}
    with pytest.raises(ValueError, match="give two pairs or more"):
        model(**{**batch, "negatives": None})


def test_long_text_is_refused(model):
    with pytest.raises(ValueError, match="a text of 13 tokens does not fit: .* text_positions=12"):
        model(**_batch(length=13))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"frames": 5}, "frames=5 must be a multiple of tubelet=2"),
        ({"size": 50}, "size=50 must be a multiple of patch=16"),
        ({"width": 100}, "width=100 must be a multiple of heads=12"),
        ({"frames": 65_536, "size": 65_536}, "make 549,755,813,888 tubelets of a clip: at most"),
        ({"layers": 0}, r"layers=0 must lie in \[1, 65,536\]"),
        ({"layers": 2.0}, "layers=2.0 must be a whole number"),
    ],
)
def test_illegal_networks_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**settings)
    with pytest.raises(ValueError, match=message):
        SimVTP.from_preset("base", **settings)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TextConfig(pool="x"), "pool='x' must be all or words"),
        (lambda: TextConfig(length="a"), "length='a' must be a whole number"),
        (lambda: TextConfig(ratio=2), r"ratio=2 must lie in \[0, 1\]"),
        (lambda: ObjectiveConfig(match=-1), "match=-1 must not be negative"),
        (lambda: ObjectiveConfig(temperature=math.nan), "temperature=nan must be finite"),
        (lambda: ObjectiveConfig(pixels=True), "pixels=True must be a number"),
        (lambda: SimVTP(TINY, TextConfig(padding=40)), "padding=40 must be less than vocabulary"),
    ],
)
def test_illegal_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="preset must be one of base, tiny; got 'huge'"):
        SimVTP.from_preset("huge")


def test_the_row_of_padding_is_not_trained_whatever_its_id(one_thread):
    torch.manual_seed(0)
    model = SimVTP(TINY, TextConfig(dropout=0.0, padding=7)).double()
    batch = _batch()
    for name in ("text_ids", "text_masked_ids"):
        batch[name] = (
            batch[name].masked_fill(batch[name] == 7, 8).masked_fill(~batch["text_attention"], 7)
        )
    batch["text_labels"] = batch["text_labels"].masked_fill(batch["text_labels"] == 7, 8)
    model(**batch).loss.backward()
    gradient = model.encoder.words.words.weight.grad
    assert not gradient[7].any()
    assert bool(gradient[2].any())  # [CLS]
    assert not model.encoder.words.words.weight[7].any()
