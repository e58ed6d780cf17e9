"""The mean of a fine-tuning's weights: what it is, where it is saved, and that it is tested."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.vimpac.runs import finetune_config, make_labelled
from vimpac import load_classifier
from vimpac.checkpoints.training_state import find_checkpoint, load_checkpoint
from vimpac.config import FinetuneConfig
from vimpac.errors import UsageError, VimpacError
from vimpac.eval.evaluate import Verdicts, classify
from vimpac.files import move_files
from vimpac.settings import load_config
from vimpac.train.averaged_weights import AveragedWeights
from vimpac.train.finetune import finetune

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = ("optim.steps=6", "run.save_every=2", "ema=0.5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store of twelve videos, their labels, and a model with dropout."""
    return make_labelled(tmp_path_factory.mktemp("data"))


def _config(folder: Path, out: Path, *more: str) -> FinetuneConfig:
    return finetune_config(folder, out, *SETTINGS, *more)


@pytest.fixture(scope="module")
def whole_run(folder, tmp_path_factory) -> Path:
    """The run that nothing interrupts."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    finetune(_config(folder, out), folder / "model", quiet=True)
    return out


def _end(out: Path) -> Path:
    return out / "checkpoints/step-00000006"


def test_average_is_that_of_its_definition_over_three_steps():
    model = nn.BatchNorm1d(2)  # floating parameters and buffers, and a number that is none
    averaged, values = AveragedWeights(model, 0.2), []
    expected = {name: x.clone() for name, x in model.state_dict().items()}
    for step in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(step + 1.0)
        model(torch.randn(4, 2))
        averaged.update(step)
        decay = (0.1, 2 / 11, 0.2)[step]  # it warms up
        for name, x in model.state_dict().items():
            mean = decay * expected[name] + (1 - decay) * x
            expected[name] = mean if x.is_floating_point() else x.clone()
        values.append(averaged.whole()["weight"].clone())
    torch.testing.assert_close(averaged.whole(), expected)
    first = 0.1 + 0.9 * 2
    second = 2 / 11 * first + 9 / 11 * 4
    expected_values = [first, second, 0.2 * second + 0.8 * 7]
    assert [x[0].item() for x in values] == pytest.approx(expected_values)
    assert averaged.whole()["num_batches_tracked"] == 3


def test_model_has_the_average_inside_and_its_own_bits_afterwards():
    model = nn.Linear(3, 2)
    averaged = AveragedWeights(model, 0.5)
    began = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.weight.mul_(3)
    averaged.update(100)
    own, addresses = copy.deepcopy(model.state_dict()), [p.data_ptr() for p in model.parameters()]
    with pytest.raises(KeyError), averaged.applied():
        torch.testing.assert_close(model.weight.data, 2 * began["weight"])
        raise KeyError  # as a test may end
    for name, x in model.state_dict().items():
        assert torch.equal(x, own[name])
    assert [p.data_ptr() for p in model.parameters()] == addresses
    torch.testing.assert_close(averaged.whole()["weight"], 2 * began["weight"])


def test_average_stands_beside_the_weights_and_is_what_is_tested(folder, tmp_path, monkeypatch):
    tested = []

    def note(logits, *others, **more) -> Verdicts:
        tested.append(logits(clips))
        return classify(logits, *others, **more)

    monkeypatch.setattr("vimpac.train.finetune_system.classify", note)
    clips = torch.randint(200, (3, 2, 4, 4))
    result = finetune(_config(folder, tmp_path), folder / "model", quiet=True)
    assert result.checkpoint == _end(tmp_path) / "averaged"
    raw, classes = load_classifier(_end(tmp_path))
    mean, same = load_classifier(result.checkpoint)
    assert classes == same
    assert torch.equal(tested[-1], mean(clips))
    assert not torch.equal(tested[-1], raw(clips))


def test_average_changes_nothing_in_the_training(folder, whole_run, tmp_path):
    result = finetune(_config(folder, tmp_path, "ema=null"), folder / "model", quiet=True)
    plain, averaged = load_checkpoint(result.checkpoint), load_checkpoint(_end(whole_run))
    assert result.checkpoint == _end(tmp_path) and plain.averaged is None
    torch.testing.assert_close(plain[1:3], averaged[1:3], rtol=0, atol=0)


def test_average_that_begins_late_begins_with_the_weights_and_says_so(folder, tmp_path, capsys):
    finetune(_config(folder, tmp_path, "ema=null", "optim.steps=4"), folder / "model", quiet=True)
    config = _config(folder, tmp_path, "ema=0.25", "optim.steps=5")
    finetune(config, folder / "model", resume="auto")
    said = " ".join(capsys.readouterr().err.split())
    assert "the mean of the weights begins here: " in said
    before, after = (load_checkpoint(tmp_path / f"checkpoints/step-0000000{n}") for n in (4, 5))
    name = "encoder.cls_token"
    expected = 0.25 * before.tensors[name] + 0.75 * after.tensors[name]
    torch.testing.assert_close(after.averaged[name], expected)


def test_average_that_ends_early_is_said(folder, whole_run, tmp_path, capsys):
    path = str(whole_run / "checkpoints/step-00000004")
    config = _config(folder, tmp_path, "ema=null", "optim.steps=5")
    result = finetune(config, folder / "model", resume=path)
    said = " ".join(capsys.readouterr().err.split())
    assert f"the mean of the weights in {path} is dropped: ema is not set" in said
    assert load_checkpoint(result.checkpoint).averaged is None


def test_average_goes_on_at_another_grid(folder, whole_run, tmp_path):
    path = str(whole_run / "checkpoints/step-00000004")
    words = ("clips.frames=3", "optim.lr=1e-9", "optim.steps=5")
    result = finetune(_config(folder, tmp_path, *words), folder / "model", resume=path, quiet=True)
    before, after = (load_classifier(f)[0].encoder for f in (f"{path}/averaged", result.checkpoint))
    assert after.grid == (3, 4, 4)
    before.positions.resize_((3, 4, 4))
    raw = load_classifier(path)[0].encoder
    raw.positions.resize_((3, 4, 4))
    decay = (1 + 4) / (10 + 4)  # of the fifth update
    expected = decay * before.positions.time + (1 - decay) * raw.positions.time
    torch.testing.assert_close(after.positions.time, expected, rtol=0, atol=1e-6)


def test_damaged_average_is_a_damaged_checkpoint(whole_run, tmp_path):
    shutil.copytree(whole_run / "checkpoints", tmp_path / "checkpoints")
    weights = _end(tmp_path) / "averaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(VimpacError, match=r"averaged is damaged \(model.safetensors has another"):
        load_checkpoint(_end(tmp_path))
    found = find_checkpoint("auto", tmp_path / "checkpoints")
    assert found == tmp_path / "checkpoints/step-00000004"
    weights.unlink()
    assert find_checkpoint("auto", tmp_path / "checkpoints") == found


def test_checkpoint_is_written_where_directories_cannot_be_renamed(whole_run, tmp_path):
    checkpoint = shutil.copytree(_end(whole_run), tmp_path / "checkpoint")
    move_files(checkpoint, tmp_path / "moved")
    found, expected = (
        sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))
        for folder in (tmp_path / "moved", _end(whole_run))
    )
    assert found == expected
    assert not checkpoint.exists() and load_classifier(tmp_path / "moved" / "averaged")


@pytest.mark.parametrize("value", ["1", "-0.1"])
def test_decay_out_of_range_is_refused(value):
    with pytest.raises(UsageError, match=r"ema=.* must lie in \[0, 1\)"):
        load_config(FinetuneConfig, None, [f"ema={value}"])
