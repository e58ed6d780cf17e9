"""A model directory says what it holds; what is wrong in one is one line that names it."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from vimpac import VideoClassifier, Vimpac, load_classifier, load_model, save_model
from vimpac.checkpoints.checksums import CHECKSUMS
from vimpac.checkpoints.model_dir import DataFacts, read_description
from vimpac.errors import UsageError, VimpacError

SIZES = dict(layers=1, width=16, heads=2, head_dim=8, mlp_width=16, grid=(2, 3, 4))


@pytest.fixture
def folder(tmp_path) -> Path:
    save_model(Vimpac.from_preset("tiny", **SIZES, alpha=0.5), tmp_path / "model")
    return tmp_path / "model"


def test_description_is_that_of_the_model(tmp_path):
    data = DataFacts("dalle", "ab" * 32, 2.0, 1, 3, 4)
    model = Vimpac.from_preset("tiny", **SIZES, layout="T,H,W", norm="pre", gamma=0.5)
    save_model(model, tmp_path / "model", data=data)
    description = read_description(tmp_path / "model")
    assert (description.config, description.loss) == (model.config, model.loss_config)
    assert (description.kind, description.data) == ("vimpac", data)


def test_classifier_is_saved_with_its_classes(tmp_path):
    encoder = Vimpac.from_preset("tiny", **SIZES).encoder
    model = VideoClassifier(encoder, 3)
    for classes in (None, ["a", "b"], "abc"):
        with pytest.raises(ValueError, match="classes must be the names of 3 classes"):
            save_model(model, tmp_path / "model", classes=classes)
    with pytest.raises(ValueError, match="two classes have one name"):
        save_model(model, tmp_path / "model", classes=["a", "b", "a"])
    with pytest.raises(TypeError, match="must be a Vimpac or a classifier, got Linear"):
        save_model(nn.Linear(2, 2), tmp_path / "model")
    assert not (tmp_path / "model").exists()
    save_model(model, tmp_path / "model", classes=["a", "b", "c"])
    loaded, classes = load_classifier(tmp_path / "model")
    tokens = torch.randint(0, 8192, (2, 2, 3, 4))
    assert classes == ["a", "b", "c"] and torch.equal(loaded(tokens), model.eval()(tokens))
    with pytest.raises(UsageError, match="holds a classifier, not a pre-trained model"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("layers", value) for value in ("2", 2.5, None, 10**9, -1)),
        *(("width", value) for value in ("16", None, 16.5)),
        *(("grid", value) for value in ([2, 3], [2, 3, "4"], "234", None)),
        *(("dropout", value) for value in ("0", 1.0, float("nan"))),
        ("layout", "W,T"),
        ("norm", None),
        ("colour", 1),
    ],
)
def test_setting_that_is_none_is_one_line(folder, key, value):
    file = folder / "model.json"
    values = json.loads(file.read_text())
    values["config"][key] = value
    file.write_text(json.dumps(values))
    with pytest.raises(VimpacError, match=f"{folder} is damaged"):
        load_model(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("fps", value) for value in ("2", math.inf, math.nan, 0, 1e300)),
        *(("frame_stride", value) for value in (0.5, 0, True, 10**12)),
        ("height", 3.0),
        *(("classes", value) for value in ("ab", {"a": 1, "b": 2}, ["a", "a"], [1, 2])),
    ],
)
def test_fact_or_class_that_is_none_is_one_line(tmp_path, key, value):
    model = VideoClassifier(Vimpac.from_preset("tiny", **SIZES).encoder, 2)
    data = DataFacts("patch", "", 2.0, 1, 3, 4)
    save_model(model, tmp_path / "model", classes=["a", "b"], data=data)
    file = tmp_path / "model" / "model.json"
    values = json.loads(file.read_text())
    (values if key in values else values["data"])[key] = value
    file.write_text(json.dumps(values))
    (tmp_path / "model" / CHECKSUMS).unlink()  # as of an older version
    with pytest.raises(VimpacError, match=f"{tmp_path / 'model'} is damaged"):
        load_classifier(tmp_path / "model")


@pytest.mark.parametrize("key", ["layout", "cls", "heads", "contrastive_dim"])
def test_absent_setting_is_no_default(folder, key):
    file = folder / "model.json"
    values = json.loads(file.read_text())
    del values["config"][key]
    file.write_text(json.dumps(values))
    with pytest.raises(VimpacError, match=f"is damaged .'{key}' is absent or unknown"):
        load_model(folder)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", "{", '{"format": 2}', ""])
def test_text_that_is_no_description_is_one_line(folder, text):
    (folder / "model.json").write_text(text)
    with pytest.raises(VimpacError, match=f"{folder} is damaged"):
        load_model(folder)


@pytest.mark.parametrize(("key", "value"), [("format", 5), ("kind", "of another system")])
def test_directory_of_a_later_version_says_so(folder, key, value):
    file = folder / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UsageError, match="which this version of vimpac does not know: upgrade"):
        load_model(folder)


@pytest.mark.parametrize(("was", "now"), [("pre", "pre_textbook"), ("post", "post")])
def test_pre_norm_of_format_2_is_the_textbook_form(tmp_path, was, now):
    model = Vimpac.from_preset("tiny", **SIZES, norm=now).eval()
    save_model(model, tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    values = json.loads(file.read_text())
    values["format"], values["config"]["norm"] = 2, was
    file.write_text(json.dumps(values))
    (tmp_path / "model" / CHECKSUMS).unlink()
    loaded = load_model(tmp_path / "model").eval()
    tokens = torch.randint(0, 8192, (2, 2, 3, 4))
    assert torch.equal(loaded.encoder(tokens), model.encoder(tokens))
    assert loaded.config == model.config


def test_directory_above_the_checkpoints_is_told_from_them(folder):
    (folder.parent / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match="run is no model: .*; look into .*run/checkpoints"):
        load_model(folder.parent / "run")
