"""What SimVTP's network and losses claim beside equality with the released code."""

import math

import pytest
import torch
import torch.nn.functional as F

from vimpac.simvtp import NetworkConfig, ObjectiveConfig, SimVTP, TextConfig
from vimpac.simvtp.layer import Attention, Transformer
from vimpac.simvtp.model import draw_negatives
from vimpac.simvtp.objective import MaskedWords, contrastive_loss
from vimpac.simvtp.positions import sine_table
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


def test_positions_are_sine_and_cosine_of_the_flattened_index():
    table = sine_table(5, 6)
    assert table[3, 2] == pytest.approx(math.sin(3 / 10_000 ** (2 / 6)))
    assert table[3, 5] == pytest.approx(math.cos(3 / 10_000 ** (4 / 6)))
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1]


def test_a_bias_of_the_keys_would_change_nothing(one_thread):
    torch.manual_seed(0)
    attention, x = Attention(16, 2).double(), torch.randn(3 * 5, 16, dtype=torch.float64)
    torch.nn.init.normal_(attention.q_bias)
    torch.nn.init.normal_(attention.v_bias)
    bias = torch.cat((attention.q_bias, torch.randn(16, dtype=torch.float64), attention.v_bias))
    qkv = F.linear(x, attention.qkv.weight, bias).view(3, 5, 3, 2, 8)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    expected = F.linear((weights @ v).transpose(1, 2).reshape(15, 16), attention.out.weight)
    torch.testing.assert_close(attention(x, [(3, 5)], [None], 0), expected)


def test_batches_that_go_together_do_not_see_each_other(one_thread):
    torch.manual_seed(0)
    layers = Transformer(2, 16, 2, 32).double()
    batches = [torch.randn(B, S, 16, dtype=torch.float64) for B, S in ((2, 5), (3, 2), (1, 7))]
    keys = [None, None, torch.arange(7)[None, None, None] < 4]
    for first in (0, 1):
        together = layers(batches, keys, first)
        for i, (rows, stream) in enumerate(together):
            ((alone, alone_stream),) = layers(batches[i : i + 1], keys[i : i + 1], first)
            torch.testing.assert_close(rows, alone)
            torch.testing.assert_close(stream, alone_stream)


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
        ({"text_attention": torch.ones(4, 7)}, r"ids and attention of texts must be \(B, L\)"),
        ({"text_ids": torch.ones(4, 8)}, "ids of texts must be integers, got torch.float32"),
    ],
)
def test_bad_input_is_named(model, change, message):
    with pytest.raises(ValueError, match=message):
        model(**{**_batch(), **change})


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
