"""Models on a hub, a small server on this machine: what comes back is what was uploaded."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, snapshot_download

from tests.vimpac import fake_hub
from tests.vimpac.runs import finetune_words, make_labelled
from vimpac import VideoClassifier, Vimpac, load_classifier, load_model, save_model
from vimpac.checkpoints.model_dir import DataFacts, read_description
from vimpac.cli import main
from vimpac.errors import UsageError, VimpacError
from vimpac.model.attentive import AttentiveClassifier
from vimpac.simvtp import DualEncoder, SimVTP, load_simvtp
from vimpac.simvtp.description import read_any

SIZES = dict(layers=1, width=16, heads=2, head_dim=8, mlp_width=16, grid=(2, 3, 4))
DATA = DataFacts("patch", "", 2.0, 1, 3, 4)
WRITE = dict(token="may-write")


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[fake_hub.FakeHub]:
    with fake_hub.serve() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


def _model(seed: int = 0) -> Vimpac:
    torch.manual_seed(seed)
    return Vimpac.from_preset("tiny", **SIZES, alpha=0.5)


def _same(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def _files(model: Vimpac, folder: Path) -> dict[str, bytes]:
    """What a model directory holds."""
    model.save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_directory_is_read_as_from_load_model(tmp_path):
    model = _model()
    model.save_pretrained(tmp_path / "model", data=DATA)
    read = Vimpac.from_pretrained(tmp_path / "model")
    assert _same(read, model) and _same(load_model(tmp_path / "model"), model)
    assert (read.config, read.loss_config) == (model.config, model.loss_config)
    assert not read.training and all(p.requires_grad for p in read.parameters())
    assert read_description(tmp_path / "model").data == DATA


def test_facts_are_kept_from_one_directory_to_the_next(tmp_path):
    _model().save_pretrained(tmp_path / "first", data=DATA)
    Vimpac.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    load_model(tmp_path / "second").save_pretrained(tmp_path / "third")
    assert read_description(tmp_path / "third").data == DATA


@pytest.mark.parametrize("kind", [VideoClassifier, AttentiveClassifier])
def test_classifier_keeps_its_classes(tmp_path, kind):
    model = kind(_model().encoder, 2)
    with pytest.raises(ValueError, match="classes must be the names of 2 classes, got None"):
        model.save_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "first", classes=["a", "b"])
    kind.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    read, classes = load_classifier(tmp_path / "second")
    assert classes == ["a", "b"] and _same(read, model) and isinstance(read, kind)
    with pytest.raises(UsageError, match="holds a .*classifier, which is a .*, no Vimpac"):
        Vimpac.from_pretrained(tmp_path / "first")


@pytest.mark.parametrize("dual", [False, True])
def test_simvtp_keeps_what_it_says(tmp_path, dual):
    model: SimVTP | DualEncoder = SimVTP.from_preset("tiny")
    if dual:
        model = DualEncoder.of(model)
    model.save_pretrained(tmp_path / "first", frame_step=4)
    type(model).from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert _same(load_simvtp(tmp_path / "second"), model)
    assert read_any(tmp_path / "second")[1].frame_step == 4
    with pytest.raises(UsageError, match="holds a simvtp.*, a model of another system"):
        Vimpac.from_pretrained(tmp_path / "first")


@pytest.mark.parametrize(
    "name", ["model", "a/b/c", "/absent/model", "./absent", "a b/c", Path("a/b")]
)
def test_name_that_is_neither_is_one_line(name):
    with pytest.raises(UsageError, match="does not exist: give a model directory, or the id"):
        Vimpac.from_pretrained(name)


def test_wrong_arguments_are_one_line(tmp_path):
    _model().save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="is a directory, which has no revision 'v1'"):
        Vimpac.from_pretrained(tmp_path / "model", revision="v1")
    with pytest.raises(UsageError, match="model exists already"):
        _model().save_pretrained(tmp_path / "model")
    for name in ("model", 3, "a/b/c"):
        with pytest.raises(UsageError, match="is no id of a model on the hub: give owner/name"):
            _model().push_to_hub(name)


def test_what_is_uploaded_comes_back(hub):
    model = _model()
    url = model.push_to_hub("me/model", data=DATA, **WRITE)
    there = hub.files("me/model")
    assert b'Vimpac.from_pretrained("me/model")' in there["README.md"]
    assert url.startswith(f"{hub.url}/me/model/commit/") and hub.messages == [
        "Upload a model of vimpac"
    ]
    assert {*there} - {".gitattributes"} == {
        *("model.json", "model.safetensors", "checksums.json", "README.md")
    }
    read = Vimpac.from_pretrained("me/model")
    assert _same(read, model) and read.facts["data"] == DATA
    assert sorted(hub.downloads) == ["checksums.json", "model.json", "model.safetensors"]


def test_nothing_but_a_model_s_files_is_downloaded(hub, tmp_path):
    files = _files(_model(), tmp_path / "model")
    hub.commit(
        "me/model", {**files, "pytorch_model.bin": b"", "training_state.pt": b"", "x.py": b""}
    )
    Vimpac.from_pretrained("me/model")
    assert sorted(hub.downloads) == ["checksums.json", "model.json", "model.safetensors"]
    hub.commit("me/pickled", {"pytorch_model.bin": b"", "config.json": b"{}"})
    with pytest.raises(UsageError, match="me/pickled on the hub: .* is no model"):
        Vimpac.from_pretrained("me/pickled")
    assert len(hub.downloads) == 3


def test_revision_is_a_branch_a_tag_or_a_commit(hub, tmp_path):
    first = hub.commit("me/model", _files(_model(1), tmp_path / "1"))
    hub.commit("me/model", _files(_model(2), tmp_path / "2"))
    hub.commit("me/model", _files(_model(3), tmp_path / "3"), branch="v1")
    for revision, seed in ((None, 2), (first, 1), ("v1", 3)):
        assert _same(Vimpac.from_pretrained("me/model", revision=revision), _model(seed))
    with pytest.raises(VimpacError, match="me/model on the hub: .*Revision Not Found"):
        Vimpac.from_pretrained("me/model", revision="v2")


def test_private_model_needs_its_token(hub):
    _model().push_to_hub("me/model", private=True, **WRITE)
    with pytest.raises(
        VimpacError,
        match="there is no directory me/model, and the model me/model on the .*Repository Not F",
    ):
        Vimpac.from_pretrained("me/model", token=False)
    assert _same(Vimpac.from_pretrained("me/model", **WRITE), _model())
    with pytest.raises(VimpacError, match="me/model on the hub: .*401"):
        _model().push_to_hub("me/model", token="wrong")


def test_cache_is_enough_without_the_hub(hub, tmp_path):
    hub.commit("me/model", _files(_model(), tmp_path / "model"))
    with pytest.raises(VimpacError, match="me/model on the hub: Cannot find .* on the local disk"):
        Vimpac.from_pretrained("me/model", local_files_only=True)
    Vimpac.from_pretrained("me/model")
    del hub.branches["me/model"]
    assert _same(Vimpac.from_pretrained("me/model", local_files_only=True), _model())
    assert len(hub.downloads) == 3


@pytest.mark.parametrize("file", ["model.safetensors", "model.json", "checksums.json"])
def test_damaged_download_is_one_line(hub, tmp_path, file):
    files = _files(_model(), tmp_path / "model")
    hub.commit("me/model", {**files, file: files[file][:-9] + b"123456789"})
    with pytest.raises(VimpacError, match="is damaged .*; force_download=True downloads it again"):
        Vimpac.from_pretrained("me/model")


def test_model_card_that_is_there_stays(hub):
    _model(1).push_to_hub("me/model", **WRITE)
    hub.commit("me/model", {**hub.files("me/model"), "README.md": b"of its owner"})
    _model(2).push_to_hub("me/model", commit_message="better", **WRITE)
    assert hub.files("me/model")["README.md"] == b"of its owner" and hub.messages[1] == "better"
    assert _same(Vimpac.from_pretrained("me/model"), _model(2))


def test_model_card_names_the_model(tmp_path):
    save_model(_model(), tmp_path / "without")
    assert not (tmp_path / "without/README.md").exists()
    VideoClassifier(_model().encoder, 2).save_pretrained(tmp_path / "model", classes=["a", "b"])
    card = (tmp_path / "model/README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: vimpac-kernels\npipeline_tag: video-classification\n"
    )
    assert "| layout | `T,H\\|W` |\n" in card and "| grid | `2 x 3 x 4` |\n" in card
    assert 'VideoClassifier.from_pretrained("owner/name")' in card
    assert "README.md" not in json.loads((tmp_path / "model/checksums.json").read_text())


def test_commands_read_what_is_downloaded(hub, tmp_path):
    """A pre-trained model goes to the hub and is fine-tuned, the classifier goes there and back."""
    make_labelled(tmp_path)
    Vimpac.from_pretrained(tmp_path / "model").push_to_hub("me/model", **WRITE)
    model = snapshot_download("me/model", local_dir=tmp_path / "downloaded")
    words = finetune_words(tmp_path, tmp_path / "run", "optim.steps=2", "run.save_every=2")
    assert main(["finetune", model, *words]) == 0
    run = VideoClassifier.from_pretrained(tmp_path / "run/checkpoints/step-00000002")
    run.push_to_hub("me/classifier", **WRITE)
    classifier = snapshot_download("me/classifier", local_dir=tmp_path / "classifier")
    words = [f"data={tmp_path / 'store'}", f"labels={tmp_path / 'labels.csv'}", "device=cpu"]
    assert main(["evaluate", classifier, *words, "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report/report.json").is_file()


def test_without_the_package_directories_work_and_a_hub_id_says_what_it_needs(tmp_path):
    _model().save_pretrained(tmp_path / "model")
    program = (
        "import sys\nfrom vimpac import Vimpac, load_model, simvtp\nsimvtp.SimVTP\n"
        "print({'huggingface_hub', 'safetensors'} & {*sys.modules})\n"
        "sys.modules['huggingface_hub'] = None\n"
        f"model = Vimpac.from_pretrained({str(tmp_path / 'model')!r})\n"
        "for ask in (Vimpac.from_pretrained, model.push_to_hub):\n"
        "    try:\n        ask('me/model')\n"
        "    except Exception as error:\n        print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "{'safetensors'}",  # load_model brings it
        "VimpacError me/model is no directory, and a model on the hub needs the package "
        "'huggingface_hub': pip install 'vimpac-kernels[hub]'",
        "VimpacError uploading me/model needs the package 'huggingface_hub': "
        "pip install 'vimpac-kernels[hub]'",
    ], done.stderr
