"""What a model computes is finite, or a command says that it is not: no score would show it."""

import math
from pathlib import Path

import pytest
import torch

from tests.vimpac.runs import finetune_words, make_labelled
from tests.vimpac.videos import write_video
from vimpac import VideoClassifier, Vimpac, cli, load_model, save_model
from vimpac.checkpoints.description import DataFacts
from vimpac.data.store import TokenStore
from vimpac.eval.probes import fit_linear

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = ("device=cpu", "precision=fp32", "workers=0", "--clips", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The videos of `make_labelled`, two classifiers and an encoder, of which two have a NaN."""
    path = make_labelled(tmp_path_factory.mktemp("data"))
    data = DataFacts.of(TokenStore(path / "store").meta, 1)
    for name, value in (("good", 0.0), ("bad", math.nan)):
        model = VideoClassifier(Vimpac.from_preset("tiny", grid=(2, 4, 4)).encoder, 2)
        torch.nn.init.constant_(model.classifier.bias, value)
        save_model(model, path / name, classes=["a", "b"], data=data)
    encoder = load_model(path / "model")
    torch.nn.init.constant_(encoder.encoder.cls_token, math.nan)
    save_model(encoder, path / "encoder", data=data)
    return path


@pytest.mark.parametrize("classifiers", [["bad"], ["good", "bad"]])
def test_classifier_that_computes_nan_is_not_scored(folder, tmp_path, capsys, classifiers):
    words = [f"data={folder / 'store'}", f"labels={folder / 'labels.csv'}", *CPU]
    paths = [str(folder / name) for name in classifiers]
    assert cli.main(["evaluate", *paths, *words, "--out", str(tmp_path / "report")]) == 1
    said = capsys.readouterr()
    assert said.err.endswith(
        f"vimpac: probabilities of {folder / 'bad'} are not finite: use precision=fp32, or another "
        "checkpoint\n"
    )
    assert said.out == "" and not (tmp_path / "report").exists()


def test_classifier_that_computes_nan_predicts_nothing(folder, tmp_path, capsys):
    video = write_video(tmp_path / "a.mp4", [0, 500, 1000])
    options = ["--device", "cpu", "--clips", "1", "--json"]
    assert cli.main(["predict", str(folder / "bad"), str(video), *options]) == 1
    said = capsys.readouterr()
    assert "bad are not finite" in said.err and said.out == ""


@pytest.mark.parametrize(
    ("action", "words", "what"),
    [
        ("predictions", [], "predictions"),
        ("predictions", ["--sample", "1"], "predictions"),
        ("attention", [], "attention weights"),
    ],
)
def test_model_that_computes_nan_is_not_drawn(folder, tmp_path, capsys, action, words, what):
    store, out = f"data={folder / 'store'}", str(tmp_path / "a.png")
    command = ["visualise", action, str(folder / "encoder"), store, "--out", out, *words]
    assert cli.main([*command, "device=cpu"]) == 1
    error = f"vimpac: {what} of the model are not finite: use another checkpoint\n"
    assert capsys.readouterr().err == error and not [*tmp_path.iterdir()]


def test_features_that_are_nan_are_not_written(folder, tmp_path, capsys):
    out = tmp_path / "f.npz"
    words = ["extract", str(folder / "encoder"), f"data={folder / 'store'}", *CPU]
    assert cli.main([*words, "--out", str(out)]) == 1
    assert "features of '0.mp4' are not finite" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_linear_probe_of_nan_saves_no_classifier(folder, tmp_path, capsys):
    words = finetune_words(folder, tmp_path / "run")
    assert cli.main(["finetune", str(folder / "encoder"), "--probe", "linear", *words]) == 1
    assert "features of the training videos are not finite" in capsys.readouterr().err
    assert [*(tmp_path / "run" / "checkpoints").iterdir()] == []


def test_linear_fit_to_a_single_clip_is_finite():
    weight, bias = fit_linear(torch.ones(1, 4), torch.tensor([1]), 2, 0.1)
    assert weight.isfinite().all() and bias.argmax() == 1


def test_run_does_not_start_from_nan(folder, tmp_path, capsys):
    out = tmp_path / "run"
    words = finetune_words(folder, out, "optim.steps=1")
    assert cli.main(["finetune", str(folder / "encoder"), *words]) == 1
    assert "the weights that the run starts from are not finite" in capsys.readouterr().err
    assert not out.exists()
