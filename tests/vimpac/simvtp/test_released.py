"""Our model computes what the released classes computed, in fp64, and names map back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vimpac.simvtp import SimVTP, TextConfig, export_released, load_released
from vimpac.simvtp.config import NetworkConfig
from vimpac.simvtp.released import load_videomae

FIXTURE = Path(__file__).parents[1] / "data" / "simvtp_tiny.npz"
LOSSES = {
    "loss": "loss",
    "loss_pixels": "pixel_loss",
    "loss_text": "word_loss",
    "loss_vtc": "contrastive_loss",
    "loss_vtm": "match_loss",
}


@pytest.fixture(scope="module")
def arrays() -> dict[str, torch.Tensor]:
    with np.load(FIXTURE, allow_pickle=False) as file:
        numbers = [name for name in file.files if file[name].dtype.kind != "U"]
        return {name: torch.from_numpy(np.array(file[name])) for name in numbers}


@pytest.fixture(scope="module")
def config() -> dict:
    with np.load(FIXTURE, allow_pickle=False) as file:
        return json.loads(str(file["config"]))


@pytest.fixture(scope="module")
def names() -> list[str]:
    with np.load(FIXTURE, allow_pickle=False) as file:
        return [str(name) for name in file["parameters"]]


def _state(arrays):
    return {k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")}


def _inputs(arrays):
    inputs = {k.removeprefix("input."): v for k, v in arrays.items() if k.startswith("input.")}
    inputs["text_labels"] = inputs["text_labels"].long()
    return inputs


@pytest.fixture(scope="module")
def loaded(arrays, config) -> SimVTP:
    return load_released(_state(arrays), config).double()


@pytest.fixture(scope="module")
def output(arrays, loaded):
    """What the loaded model returns; its backward has run."""
    output = loaded(**_inputs(arrays))
    output.loss.backward(retain_graph=True)
    return output


def _assert_close(ours, theirs, name=""):
    ours, theirs = ours.detach().double(), theirs.double()
    assert ours.shape == theirs.shape, name
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm(), name


@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_that_of_the_released_code(arrays, output, name):
    ours = getattr(output, LOSSES[name])
    torch.testing.assert_close(ours.detach(), arrays[f"out.{name}"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["predicted_pixels", "target_pixels"])
def test_pixels_equal_those_of_the_released_code(arrays, output, name):
    _assert_close(getattr(output, name), arrays[f"out.{name}"])


def test_every_gradient_equals_that_of_the_released_code(arrays, loaded, output):
    exported = export_released(loaded)
    checked = 0
    for name, parameter in loaded.named_parameters():
        (theirs,) = [k for k, v in exported.items() if v.data_ptr() == parameter.data_ptr()]
        expected = arrays[f"grad.{theirs}"]
        _assert_close(parameter.grad.view(expected.shape), expected, name)
        checked += 1
    assert checked == sum(key.startswith("grad.") for key in arrays)
    assert not loaded.encoder.words.words.weight.grad[0].any()  # of padding


@pytest.mark.parametrize("loss", ["pixels", "text", "vtc", "vtm"])
def test_every_loss_reaches_the_same_parameters(arrays, loaded, output, names, loss):
    exported = export_released(loaded)
    by_address = {p.data_ptr(): p for p in loaded.parameters()}
    parameters = [by_address[exported[name].data_ptr()] for name in names]
    one = getattr(output, LOSSES[f"loss_{loss}"])
    gradients = torch.autograd.grad(one, parameters, allow_unused=True, retain_graph=True)
    norms = torch.stack([torch.zeros(()) if g is None else g.norm().float() for g in gradients])
    expected = arrays[f"out.gradnorm_{loss}"]
    assert torch.equal(norms == 0, expected == 0)
    torch.testing.assert_close(norms, expected, rtol=1e-5, atol=0)


def test_passes_equal_those_of_the_released_code(arrays, loaded):
    inputs = _inputs(arrays)
    attention = inputs["text_attention"].bool()
    with torch.no_grad():
        everything = torch.arange(loaded.config.tubelets, dtype=torch.int32).expand(3, -1)
        embedding = loaded.encoder.tubelets
        patches = embedding(inputs["video"], everything.contiguous()) - embedding.table
        _assert_close(patches, arrays["out.patch_embed_all"])
        visible = (~inputs["mask"]).nonzero()[:, 1].view(3, -1).int()
        video = embedding(inputs["video"], visible)
        text = loaded.encoder.words(inputs["text_masked_ids"])
        _assert_close(text, arrays["out.text_embedding"])
        joint = loaded.encoder(video, text, attention)[0]
        _assert_close(joint, arrays["out.joint"])
        _assert_close(loaded.encoder(video, None)[0], arrays["out.video_only"])
        _assert_close(loaded.encoder(None, text, attention)[0], arrays["out.text_only"])
        _assert_close(
            F.linear(joint[:, visible.shape[1] :], loaded.word_weight, loaded.word_head.bias),
            arrays["out.mlm_logits"],
        )


def test_features_equal_those_of_the_released_fine_tuning_code(arrays, loaded):
    inputs = _inputs(arrays)
    with torch.no_grad():
        video = loaded.embed_video(inputs["video"])
        text = loaded.embed_text(inputs["text_ids"], inputs["text_attention"])
    _assert_close(video, F.normalize(arrays["out.finetune_video"].double(), dim=-1))
    _assert_close(text, F.normalize(arrays["out.finetune_text"].double(), dim=-1))
    _assert_close(text @ video.T, arrays["out.finetune_similarity"])


def test_single_precision_is_close(arrays, config, output):
    ours = load_released(_state(arrays), config)(**_inputs(arrays)).loss
    torch.testing.assert_close(ours.detach().double(), output.loss.detach(), rtol=1e-6, atol=0)


def test_released_names_map_back_bit_for_bit(arrays, config):
    state = _state(arrays)
    back = export_released(load_released({f"module.{k}": v for k, v in state.items()}, config))
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name


def test_videomae_fills_the_video_part_only(arrays, config):
    state = _state(arrays)
    video = {k: v for k, v in state.items() if not k.startswith(("text_", "vtm_head"))}
    torch.manual_seed(0)
    model = SimVTP(load_released(state, config).config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_videomae(model, video)
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert not [n for n in changed if n.startswith(("encoder.words", "word_head", "match_head"))]
    exported = export_released(model)
    assert all(torch.equal(exported[name], tensor) for name, tensor in video.items())


def test_rejects_what_does_not_fit_by_name(arrays, config):
    state = _state(arrays)
    with pytest.raises(ValueError, match=r"lacks 'vtm_head\.bias'"):
        load_released({k: v for k, v in state.items() if k != "vtm_head.bias"}, config)
    with pytest.raises(ValueError, match=r"unexpected key 'more'"):
        load_released({**state, "more": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match=r"is \(97, 32\), the settings say \(98, 32\)"):
        load_released(state, {**config, "vocab": 98})
    tied = SimVTP(NetworkConfig().named("tiny"), TextConfig(tied=True))
    with pytest.raises(ValueError, match=r"text\.tied=true"):
        export_released(tied)


def test_base_model_has_the_published_parameters():
    with torch.device("meta"):
        model = SimVTP.from_preset("base")
        tied = SimVTP(model.config, TextConfig(tied=True))

    def count(*prefixes: str) -> int:
        named = model.named_parameters()
        return sum(p.numel() for name, p in named if name.startswith(prefixes))

    assert count("encoder.tubelets", "encoder.transformer") == 86_227_200
    assert count("encoder.tubelets") == 1_180_416
    assert count("encoder.transformer") == 85_045_248 + 1_536  # layers and the last norm
    assert count("decoder.transformer", "decoder.head") == 7_688_448
    assert count("decoder.project") == 294_912
    assert count("decoder.mask_token") == 384
    assert count("encoder.words") == 23_837_184
    assert count("word_head") == 23_471_418
    assert count("match_head") == 1_538
    assert count("") == 141_521_084
    assert count("") - count("encoder.words", "word_head", "match_head") == 94_210_944  # VideoMAE
    assert sum(p.numel() for p in tied.parameters()) == 118_080_188
