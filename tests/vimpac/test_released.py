"""Released checkpoints: our model computes what the released one computed, and names map back."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from vimpac import Vimpac, export_released, info_nce, load_released, preset

FIXTURE = Path(__file__).parent / "data" / "released_model_T_HW_post.npz"


@pytest.fixture(scope="module")
def arrays() -> dict[str, torch.Tensor]:
    with np.load(FIXTURE, allow_pickle=False) as file:
        return {k: torch.from_numpy(np.array(file[k])) for k in file.files if k != "meta"}


def _state(arrays, prefix="state."):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def ran(arrays):
    """The loaded model in eval mode after forward and backward, and its outputs."""
    model = load_released(_state(arrays), layout="T,H|W", num_heads=4).eval()
    hidden = model.encoder(arrays["inputs"])
    features = model.contrastive_head(hidden[:, 0])
    token = model.token_head(hidden, arrays["labels"])
    nce = info_nce(features, temperature=0.2)
    (token.loss + nce).backward()
    outputs = {
        "cls": hidden[:, 0],
        "hidden": hidden[:, 1:].unflatten(1, arrays["inputs"].shape[1:]),
        "feats": features,
        "logits_first": model.token_head.logits(hidden[0, 1:5]),
        "mlm_loss": token.loss,
        "nce_loss": nce,
        "accuracy": token.accuracy,
    }
    return model, outputs


def _assert_close(ours, theirs, name):
    ours, theirs = ours.detach().double(), theirs.double()
    assert ours.shape == theirs.shape, name
    error = (ours - theirs).abs().max()
    assert error <= 2e-5 * theirs.abs().max(), f"{name}: {error}"


@pytest.mark.parametrize(
    "name", ["cls", "hidden", "feats", "logits_first", "mlm_loss", "nce_loss", "accuracy"]
)
def test_output_matches_released_model(arrays, ran, name):
    _assert_close(ran[1][name], arrays[name], name)


def test_every_gradient_matches_released_model(arrays, ran):
    model = ran[0]
    gradients = load_released(_state(arrays), layout="T,H|W", num_heads=4)
    for ours, parameter in zip(gradients.parameters(), model.parameters(), strict=True):
        ours.data = parameter.grad.clone()
    ours, theirs = export_released(gradients), _state(arrays, "grad.")
    assert len(theirs) > 50
    for name, gradient in theirs.items():
        if name.endswith("key.bias"):  # softmax ignores a key bias: the truth is 0
            scale = theirs[name.replace("key", "query")].abs().max()
            assert max(ours[name].abs().max(), gradient.abs().max()) <= 1e-4 * scale
        else:
            _assert_close(ours[name], gradient, name)


def test_embedding_gradient_matches_released_model(arrays, ran):
    gradient = ran[0].encoder.token_embedding.weight.grad
    _assert_close(gradient.norm(), arrays["embedding_grad_norm"], "norm")
    rows = gradient[[0, 5, 8191, 8192, 8193, 8196]]
    _assert_close(rows, arrays["embedding_grad_rows"], "rows")


def test_released_state_returns_exactly(arrays):
    state = _state(arrays)
    back = export_released(load_released(state, layout="T,H|W", num_heads=4))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("layout", ["T,H|W", "T,H,W", "T|H|W", "T,HW", "THW"])
def test_any_model_survives_the_released_names(layout, norm):
    torch.manual_seed(0)
    config = preset(
        "tiny",
        layers=1,
        width=48,
        heads=6,
        head_dim=4,  # attention width 24: halved
        mlp_width=96,  # halved
        layout=layout,
        norm=norm,
        grid=(2, 3, 4),
    )
    model = Vimpac(config)
    released = export_released(model)
    back = load_released(
        {f"module.{key}": value for key, value in released.items()},
        layout=layout,
        num_heads=6,
        norm=norm,
    )
    assert dataclasses.asdict(back.config) == dataclasses.asdict(config)
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("norm", ["pre", "pre_textbook"])
def test_pre_norm_as_released_adds_attention_to_the_normalised_stream(norm):
    torch.manual_seed(0)
    config = preset("tiny", norm="pre", grid=(2, 3, 4), dropout=0.0)
    released = export_released(Vimpac(config).double())
    for value in released.values():  # no bias is 0
        if value.is_floating_point():
            value.add_(torch.randn_like(value), alpha=0.1)
    model = load_released(released, layout="T,H|W", num_heads=4, norm="pre").eval()
    if norm == "pre_textbook":  # the same arrays in the other form
        other = Vimpac(dataclasses.replace(config, norm=norm)).double().eval()
        other.load_state_dict(model.state_dict())
        model = other
    encoder, tokens = model.encoder, torch.randint(0, 8192, (2, 2, 3, 4))
    place = encoder.positions
    x = encoder.token_embedding(tokens) + place.time[:, None, None] + place.height[:, None]
    cls = (encoder.cls_token + place.cls[0]).expand(2, 1, -1)
    x = torch.cat((cls, (x + place.width).flatten(1, 3)), dim=1)
    for layer in encoder.layers:
        for block in layer.attention:
            y = block.norm(x)
            x = (y if norm == "pre" else x) + block.axial(y, (2, 3, 4))
        mlp = layer.mlp
        x = x + mlp.out(torch.nn.functional.gelu(mlp.up(mlp.norm(x))))
    torch.testing.assert_close(encoder(tokens), encoder.final_norm(x))


@pytest.mark.parametrize("setting", [{"norm": "pre_textbook"}, {"cls": "paper", "layout": "THW"}])
def test_model_that_the_released_code_does_not_know_is_refused(setting):
    with pytest.raises(ValueError, match="the released code computes no such model"):
        export_released(Vimpac.from_preset("tiny", **setting))


def test_textbook_form_is_not_read_from_a_released_checkpoint(arrays):
    with pytest.raises(ValueError, match="norm='pre_textbook': the released code computes no"):
        load_released(_state(arrays), layout="T,H|W", num_heads=4, norm="pre_textbook")


def test_missing_key_is_named(arrays):
    state = _state(arrays)
    del state["backbone.transformer.resblocks.1.mlp.c_proj.bias"]
    with pytest.raises(ValueError, match=r"lacks 'backbone.transformer.resblocks.1.mlp.c_proj"):
        load_released(state, layout="T,H|W", num_heads=4)


def test_unexpected_key_is_named(arrays):
    state = {**_state(arrays), "backbone.extra": torch.zeros(1)}
    with pytest.raises(ValueError, match="unexpected key 'backbone.extra'"):
        load_released(state, layout="T,H|W", num_heads=4)


def test_wrong_layout_is_an_error(arrays):
    with pytest.raises(ValueError, match=r"attention_blocks.1.*is \(32, 64\), expected \(64, 64\)"):
        load_released(_state(arrays), layout="T,H,W", num_heads=4)


def test_untied_output_weight_is_an_error(arrays):
    state = _state(arrays)
    state["mlm_head.decoder.weight"] = state["mlm_head.decoder.weight"] + 1
    with pytest.raises(ValueError, match="ties them"):
        load_released(state, layout="T,H|W", num_heads=4)
