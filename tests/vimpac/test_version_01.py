"""Checkpoints, models and stores of version 0.1 are read.

data/version-0.1.tar.xz was written by version 0.1: a store of four videos; the checkpoint of a
pre-training on it after two of three steps, a classifier and a model directory, whose values were
then made few so that the archive is small; and, in expected.npz and resumed.json, what version 0.1
computed with them.
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from vimpac import load_classifier, load_model
from vimpac.checkpoints.model_dir import load_encoder, read_description
from vimpac.config import FinetuneConfig, PretrainConfig
from vimpac.data.store import TokenStore
from vimpac.errors import UsageError
from vimpac.settings import load_config
from vimpac.train.finetune import finetune
from vimpac.train.pretrain import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")

ARCHIVE = Path(__file__).parent / "data/version-0.1.tar.xz"
RUN = ("clips.frames=3", "clips.workers=0", "device=cpu", "precision=fp32", "run.tensorboard=false")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The unpacked archive."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "version-0.1"


@pytest.fixture(scope="module")
def expected(files) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(x) for name, x in np.load(files / "expected.npz").items()}


@pytest.mark.parametrize("name", ["model", "pretraining/step-00000002"])
def test_pretrained_model_is_read(files, expected, name):
    model, tokens = load_model(files / name).eval(), expected["tokens"].long()
    hidden = model.encoder(tokens)
    features = model.contrastive_head(hidden[:, 0])
    logits = model.token_head.logits(hidden[:, :2])[..., :70]
    for ours, theirs in (
        (hidden[:, :3], "hidden"),
        (features, "features"),
        (logits, "token_logits"),
    ):
        torch.testing.assert_close(ours, expected[theirs], rtol=1e-4, atol=1e-5)
    assert model.config.name == "tiny" and model.config.grid == (3, 4, 4)


def test_classifier_is_read(files, expected):
    path = files / "classifier/step-00000001"
    model, classes = load_classifier(path)
    torch.testing.assert_close(model(expected["tokens"].long()), expected["logits"])
    assert classes == ["class0", "class1"]
    encoder, description = load_encoder(path)
    assert encoder.config == model.encoder.config and description.kind == "classifier"
    with pytest.raises(UsageError, match="holds a classifier, not a pre-trained model"):
        load_model(path)


@pytest.mark.parametrize("name", ["model", "classifier/step-00000001"])
def test_pre_norm_was_the_textbook_form(files, tmp_path, name):
    folder = shutil.copytree(files / name, tmp_path / "copy")
    if name == "model":
        values = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps(values | {"norm": "pre"}))
    else:
        state = torch.load(folder / "state.pt", weights_only=True)
        state["encoder"]["norm"] = "pre"
        torch.save(state, folder / "state.pt")
    assert read_description(folder).config.norm == "pre_textbook"


def test_pretraining_goes_on(files, tmp_path):
    words = [*RUN, f"data={files / 'store'}", f"out={tmp_path}", "optim.steps=3"]
    words += [f"batch.{name}=4" for name in ("videos", "contrastive", "micro")]
    config = load_config(PretrainConfig, "tiny", words)
    result = pretrain(config, resume=str(files / "pretraining/step-00000002"), quiet=True)
    theirs = json.loads((files / "resumed.json").read_text())
    for name in ("step", "epoch", "loss", "mask_loss", "cl_loss", "grad_norm", "lr"):
        assert result.record[name] == pytest.approx(theirs[name], rel=1e-4), name


@pytest.mark.parametrize(
    "start", ["model", "pretraining/step-00000002", "classifier/step-00000001"]
)
def test_finetuning_starts_from_it(files, tmp_path, start):
    words = [*RUN, f"data={files / 'store'}", f"labels={files / 'labels.csv'}", f"out={tmp_path}"]
    config = load_config(FinetuneConfig, None, [*words, "batch=2", "optim.steps=1", "test_clips=1"])
    assert finetune(config, files / start, quiet=True).checkpoint.is_dir()
    config.out = str(tmp_path / "other")
    with pytest.raises(UsageError, match="holds a model but no run that could be continued"):
        finetune(config, files / start, resume=str(files / "classifier/step-00000001"))


def test_store_is_read(files):
    store = TokenStore(files / "store")
    assert [store.name(i) for i in range(len(store))] == [f"video{i}.mp4" for i in range(4)]
    assert not any(store.verify())
