"""Nearest neighbours judge features."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vimpac.runs import make_store
from vimpac import Vimpac, cli, load_model, save_model
from vimpac.checkpoints.description import DataFacts
from vimpac.data.store import TokenStore
from vimpac.errors import VimpacError
from vimpac.eval.config import FeatureConfig
from vimpac.eval.knn import judge_model, knn
from vimpac.eval.metrics import top_k, wilson
from vimpac.settings import load_config

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["device=cpu", "precision=fp32", "workers=0"]


def _features(videos: int, classes: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Features around a direction of their class, (videos, 16), and the classes."""
    torch.manual_seed(0)
    labels = torch.randint(classes, (videos,))
    return torch.eye(16)[labels] + spread * torch.randn(videos, 16), labels


def test_separate_classes_are_all_right():
    x, labels = _features(300, 7, spread=0.05)
    scores = knn(x[:200], labels[:200], x[200:], classes=7, k=20)
    assert top_k(scores, labels[200:], 1).all()


def test_shuffled_labels_are_right_by_chance():
    x, labels = _features(2000, 4, spread=0.05)
    shuffled = labels[torch.randperm(2000)]
    scores = knn(x[:1000], shuffled[:1000], x[1000:], classes=4, k=50)
    low, high = wilson(int(top_k(scores, shuffled[1000:], 1).sum()), 1000)
    assert low < 0.25 < high


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (13, 1.0), (500, 0.02)])
def test_equals_a_loop_in_float64(monkeypatch, k, temperature):
    monkeypatch.setattr("vimpac.eval.knn._BLOCK", 7 * 60)  # blocks of seven, and a rest
    x, labels = _features(90, 6, spread=0.5)
    scores = knn(x[:60], labels[:60], x[60:], classes=6, k=k, temperature=temperature)
    y = x.double().numpy()
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    for row, own in zip(scores, y[60:], strict=True):
        cosines = [float(own @ other) for other in y[:60]]
        votes = [0.0] * 6
        for i in sorted(range(60), key=lambda i: -cosines[i])[:k]:
            votes[labels[i]] += math.exp(cosines[i] / temperature)
        np.testing.assert_allclose(row, np.array(votes) / sum(votes), rtol=1e-4, atol=1e-6)


def test_of_equal_neighbours_and_classes_the_first_count():
    train = torch.eye(3)[[0, 1, 1, 1, 0]]
    labels = torch.tensor([4, 2, 3, 1, 0])
    scores = knn(train, labels, torch.eye(3)[:2] * 5, classes=5, k=2)
    torch.testing.assert_close(scores[0], torch.tensor([0.5, 0, 0, 0, 0.5]))
    torch.testing.assert_close(scores[1], torch.tensor([0, 0, 0.5, 0.5, 0]))
    assert [bool(top_k(scores, torch.tensor([c, c]), 1)[0]) for c in (0, 4)] == [True, False]
    assert top_k(scores, torch.tensor([1, 0]), 3).tolist() == [True, True]
    assert top_k(scores, torch.tensor([2, 1]), 3).tolist() == [False, False]


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e300])
def test_any_positive_temperature_weighs_neighbours(temperature):
    train = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    scores = knn(train, torch.tensor([2, 1, 0]), train, classes=3, k=2, temperature=temperature)
    assert scores.sum(1).tolist() == pytest.approx([1, 1, 1])
    nearest = torch.tensor([2, 1, 0])
    expected = 1.0 if temperature < 1 else 0.5
    assert scores.gather(1, nearest[:, None]).flatten().tolist() == pytest.approx(3 * [expected])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"features": torch.ones(2, 3)}, "do not fit"),
        ({"train_labels": torch.zeros(3, dtype=torch.int64)}, "do not fit"),
        ({"train_features": torch.ones(0, 2)}, r"\(N, D\) and \(M, D\)"),
        ({"features": torch.full((1, 2), math.inf)}, "not finite"),
    ],
)
def test_wrong_argument_is_named(change, message):
    arguments = {
        "train_features": torch.ones(4, 2),
        "train_labels": torch.zeros(4, dtype=torch.int64),
        "features": torch.ones(2, 2),
        "classes": 1,
    }
    with pytest.raises(ValueError, match=message):
        knn(**arguments | change)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The store of `make_store`, a model, and labels by the video's parity."""
    path = tmp_path_factory.mktemp("data")
    make_store(path / "store")
    splits = ["train"] * 9 + ["val"] * 3 + ["test"] * 4
    lines = [f"{i},{'ab'[i % 2]},{split}" for i, split in enumerate(splits)]
    (path / "labels.csv").write_text("\n".join(["video,class,split", *lines]) + "\n")
    torch.manual_seed(0)
    model = Vimpac.from_preset("tiny", grid=(2, 4, 4))
    save_model(model, path / "model", data=DataFacts("patch", "", 2.0, 1, 4, 4))
    return path


def _data(folder: Path) -> list[str]:
    return [f"data={folder / 'store'}", f"labels={folder / 'labels.csv'}"]


def _run(folder: Path, *more: str) -> int:
    return cli.main(["knn", str(folder / "model"), *_data(folder), *WORDS, *more])


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_feature_of_a_video_is_the_mean_over_its_views(folder, pool):
    config = load_config(FeatureConfig, None, [*_data(folder), *WORDS, "batch=5"])
    found = judge_model(folder / "model", config, k=3, clips=2, crops="a,b", pool=pool)
    encoder, store = load_model(folder / "model").encoder.eval(), TokenStore(folder / "store")
    features = []
    for video in range(16):
        clips = [store.read(video, at, at + 2, crop) for crop in (0, 1) for at in (0, 4)]
        with torch.no_grad():
            states = encoder(torch.from_numpy(np.stack(clips).astype(np.int64)))
        features.append((states[:, 0] if pool == "cls" else states[:, 1:].mean(1)).mean(0))
    x, labels = torch.stack(features), torch.arange(16) % 2
    for name, part in (("val", slice(9, 12)), ("test", slice(12, 16))):
        scores = knn(x[:9], labels[:9], x[part], classes=2, k=3)
        right = int(top_k(scores, labels[part], 1).sum())
        assert found.splits[name] == (right, len(x[part]), len(x[part]))
    assert (found.train, found.classes, found.k) == (9, 2, 3)


def test_command_prints_every_split_with_its_interval(folder, capsys):
    assert _run(folder, "--clips", "2") == 0
    said = capsys.readouterr()
    head, test, val = said.out.splitlines()
    assert head == "9 training videos, 2 classes (chance 50.0%), k 9"
    assert said.err == "vimpac: k is 9, so all training videos vote: a smaller -k is often better\n"
    assert test.startswith("test  top-1 ") and test.endswith(
        "top-2 100.0% (51.0-100.0)  of 4 videos"
    )
    assert val.startswith("val   top-1 ") and val.endswith("of 3 videos")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-k", "0"], "-k 0 and --temperature 0.07 must be positive"),
        (["--temperature", "nan"], "--temperature nan must be positive"),
        (["--temperature", "-1"], "--temperature -1 must be positive"),
        (["--clips", "0"], "--clips 0: give a positive number"),
        (["--crops", "c"], "--crops=c: the store has no variant 'c'"),
        (["labels="], "labels= is missing"),
        (["labels=none.csv"], "labels=none.csv: no such file"),
    ],
)
def test_wrong_word_is_one_line(folder, capsys, words, message):
    assert _run(folder, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_without_a_split_are_refused(folder, tmp_path, capsys, split):
    text = (folder / "labels.csv").read_text().replace(f",{split}\n", ",other\n")
    (tmp_path / "labels.csv").write_text(text)
    assert _run(folder, f"labels={tmp_path / 'labels.csv'}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and split in error


def test_damaged_videos_are_left_out_if_asked_for(folder, tmp_path, capsys):
    store = make_store(tmp_path / "store")
    shard = store / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    data[-10] ^= 1  # in the last video
    shard.write_bytes(data)
    words = [f"data={store}", "--crops", "b"]
    assert _run(folder, *words) == 1
    assert "in '15'" in capsys.readouterr().err
    assert _run(folder, *words, "clips.skip_damaged=true") == 0
    said = capsys.readouterr()
    assert "1 of 16 videos are damaged and left out: '15'" in said.err
    assert "of 3 videos" in said.out.splitlines()[1]
    data[:] = bytes(len(data))
    shard.write_bytes(data)
    assert _run(folder, *words, "clips.skip_damaged=true") == 2
    assert "are damaged: copy the store again" in capsys.readouterr().err


def test_training_videos_of_one_class_are_said(folder, tmp_path, capsys):
    lines = [f"{i},a,{'test' if i > 2 else 'train'}" for i in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join(["video,class,split", *lines]))
    assert _run(folder, f"labels={tmp_path / 'labels.csv'}", "-k", "2") == 0
    said = capsys.readouterr().err
    assert "all training videos are of one class, so the accuracy says nothing" in said


def test_features_that_are_not_finite_are_refused(folder, tmp_path):
    model = load_model(folder / "model")
    torch.nn.init.constant_(model.encoder.cls_token, math.nan)
    save_model(model, tmp_path / "model")
    config = load_config(FeatureConfig, None, [*_data(folder), *WORDS])
    with pytest.raises(VimpacError, match="features of the split .* are not finite"):
        judge_model(tmp_path / "model", config)
