"""A checkpoint is whole or absent, whenever the process dies and whatever the disk does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vimpac import LossConfig, preset
from vimpac.checkpoints import training_state as ckpt
from vimpac.checkpoints.checksums import CHECKSUMS
from vimpac.checkpoints.model_dir import DataFacts, ModelDescription, read_model
from vimpac.checkpoints.model_files import DESCRIPTION as DESCRIPTION_FILE
from vimpac.checkpoints.model_files import WEIGHTS
from vimpac.errors import UsageError, VimpacError

DESCRIPTION = ModelDescription(
    "vimpac",
    preset("tiny", grid=(2, 3, 4)),
    LossConfig(alpha=0.5),
    data=DataFacts("dalle", "ab" * 32, 2.0, 1, 3, 4),
)


def _save(folder: Path, step: int, keep: int = 3) -> Path:
    tensors = {"weight": torch.full((2, 3), float(step))}
    checkpoint = ckpt.Checkpoint(DESCRIPTION, tensors, {"step": step})
    return ckpt.save_checkpoint(folder, step, checkpoint, config="seed: 0\n", keep=keep)


def test_what_is_saved_is_loaded(tmp_path):
    description, tensors, state, averaged = ckpt.load_checkpoint(_save(tmp_path, 7))
    assert description == DESCRIPTION
    assert torch.equal(tensors["weight"], torch.full((2, 3), 7.0))
    assert (state, averaged) == ({"step": 7}, None)
    assert (tmp_path / "step-00000007" / ckpt.CONFIG).read_text() == "seed: 0\n"


def test_the_newest_are_kept(tmp_path):
    for step in (5, 10, 200):
        _save(tmp_path, step, keep=2)
    assert [p.name for p in ckpt.list_checkpoints(tmp_path)] == ["step-00000010", "step-00000200"]
    assert ckpt.find_checkpoint("auto", tmp_path) == tmp_path / "step-00000200"


def test_a_renamed_one_is_the_users(tmp_path):
    _save(tmp_path, 10).rename(tmp_path / "step-00000010-best")
    newest = _save(tmp_path, 20, keep=1)
    assert ckpt.list_checkpoints(tmp_path) == [newest]
    assert (tmp_path / "step-00000010-best").is_dir()


def test_saving_a_step_again_replaces_it(tmp_path):
    _save(tmp_path, 5)
    path = _save(tmp_path, 5)
    assert ckpt.list_checkpoints(tmp_path) == [path]


def test_half_written_one_is_never_chosen_and_cleaned_up(tmp_path):
    good = _save(tmp_path, 5)
    half = tmp_path / ".tmp-step-00000009"
    half.mkdir()
    (half / WEIGHTS).write_bytes(b"half")
    assert ckpt.find_checkpoint("auto", tmp_path) == good
    _save(tmp_path, 10)
    assert not half.exists()


def test_kill_while_writing_leaves_the_one_before(tmp_path):
    good = _save(tmp_path, 5)
    code = f"""
import os, signal, torch
from pathlib import Path
from vimpac.checkpoints.training_state import Checkpoint, save_checkpoint
from vimpac.checkpoints.model_dir import ModelDescription
from vimpac import ModelConfig
torch.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # the model's file is there by then
checkpoint = Checkpoint(ModelDescription("vimpac", ModelConfig()), {{"w": torch.zeros(9)}}, {{}})
save_checkpoint(Path({str(tmp_path)!r}), 9, checkpoint, config="", keep=1)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    assert (tmp_path / ".tmp-step-00000009" / WEIGHTS).is_file()
    assert ckpt.find_checkpoint("auto", tmp_path) == good
    assert ckpt.load_checkpoint(good).state == {"step": 5}


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("write failed")])
def test_full_disk_leaves_the_one_before_and_nothing_else(tmp_path, monkeypatch, error):
    good = _save(tmp_path, 5)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises((OSError, VimpacError), match="No space|write failed.*intact"):
        _save(tmp_path, 10)
    assert os.listdir(tmp_path) == [good.name]


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION_FILE, ckpt.STATE])
def test_damaged_file_is_named_with_a_way_out(tmp_path, name):
    path = _save(tmp_path, 5)
    (path / name).write_bytes((path / name).read_bytes()[:20])
    with pytest.raises(VimpacError, match="step-00000005\\S* is damaged.*use an"):
        ckpt.load_checkpoint(path)


@pytest.mark.parametrize("where", [0, 0.3, 0.5, 0.7, -1])
@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION_FILE, ckpt.STATE])
def test_flipped_bit_is_found(tmp_path, name, where):
    path = _save(tmp_path, 5)
    data = bytearray((path / name).read_bytes())
    data[int(where * len(data))] ^= 4
    (path / name).write_bytes(data)
    with pytest.raises(VimpacError, match="step-00000005 is damaged"):
        ckpt.load_checkpoint(path)
    assert "is damaged" in str(ckpt.find_damage(path))


def test_checkpoint_without_checksums_is_read(tmp_path):
    """Those of before, and models that were published without the file."""
    path = _save(tmp_path, 5)
    (path / CHECKSUMS).unlink()
    assert ckpt.load_checkpoint(path).state == {"step": 5}
    assert ckpt.find_damage(path) is None


def test_files_that_a_published_model_lacks_have_no_checksum_to_fail(tmp_path):
    path = _save(tmp_path, 5)
    for name in (ckpt.STATE, ckpt.CONFIG):
        (path / name).unlink()
    read_model(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"model.json": 7}'])
def test_damaged_checksums_are_one_line(tmp_path, text):
    path = _save(tmp_path, 5)
    (path / CHECKSUMS).write_text(text)
    with pytest.raises(VimpacError, match="step-00000005 is damaged .*checksums.json"):
        ckpt.load_checkpoint(path)


DAMAGES = {
    "cut": lambda path: os.truncate(path / WEIGHTS, 60),
    "flipped": lambda path: (path / ckpt.STATE).write_bytes(b"garbage"),
    "described": lambda path: (path / DESCRIPTION_FILE).write_text("{}"),
    "no weights": lambda path: (path / WEIGHTS).unlink(),
    "no state": lambda path: (path / ckpt.STATE).unlink(),
    "empty": shutil.rmtree,
}


@pytest.mark.parametrize("with_checksums", [True, False])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_last_whole_one_is_found(tmp_path, damage, with_checksums):
    first, second, third = (_save(tmp_path, step) for step in (5, 10, 15))
    for path in (first, second, third):
        if not with_checksums:
            (path / CHECKSUMS).unlink()
    for path, expected in ((third, second), (second, first)):
        damage(path)
        path.mkdir(exist_ok=True)
        assert ckpt.find_checkpoint("auto", tmp_path) == expected
    damage(first)
    first.mkdir(exist_ok=True)
    with pytest.raises(VimpacError, match="no checkpoint in .* is whole; the newest: .*-00000015"):
        ckpt.find_checkpoint("auto", tmp_path)


def test_checkpoint_of_a_later_version_is_no_damage(tmp_path):
    """An older one in its place would set the run back without need."""
    _save(tmp_path, 5)
    path = _save(tmp_path, 10)
    text = (path / DESCRIPTION_FILE).read_text()
    (path / DESCRIPTION_FILE).write_text(text.replace('"format": ', '"format": 9'))
    with pytest.raises(UsageError, match="upgrade it"):
        ckpt.find_checkpoint("auto", tmp_path)


def test_state_that_would_run_code_is_refused(tmp_path):
    path = _save(tmp_path, 5)
    (path / CHECKSUMS).unlink()
    torch.save({"step": Path}, path / ckpt.STATE)
    with pytest.raises(VimpacError, match=r"training_state.pt holds more than .* \(pathlib"):
        ckpt.load_checkpoint(path)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x80", b"\x80\x04.", b"PK\x03\x04"])
def test_state_of_any_bytes_is_refused(tmp_path, data):
    path = _save(tmp_path, 5)
    (path / CHECKSUMS).unlink()
    (path / ckpt.STATE).write_bytes(data)
    with pytest.raises(VimpacError, match="training_state.pt is damaged"):
        ckpt.load_checkpoint(path)


def test_model_without_a_state_cannot_be_continued(tmp_path):
    path = _save(tmp_path, 5)
    (path / ckpt.STATE).unlink()
    with pytest.raises(UsageError, match="has no training_state.pt, so it cannot be continued"):
        ckpt.load_checkpoint(path)


def test_checkpoint_of_another_run_would_delete_those_of_this_one(tmp_path):
    other = _save(tmp_path / "other", 5)
    assert ckpt.find_checkpoint(str(other), tmp_path / "run") == other
    mine = _save(tmp_path / "run", 3)
    assert ckpt.find_checkpoint(str(mine), tmp_path / "run") == mine
    with pytest.raises(UsageError, match="is of another run than the checkpoints in"):
        ckpt.find_checkpoint(str(other), tmp_path / "run")


def test_every_file_has_the_rights_that_the_user_gives(tmp_path):
    """safetensors writes files that nobody else can read."""
    modes = {file.stat().st_mode for file in _save(tmp_path, 5).iterdir()}
    assert len(modes) == 1


def test_starting_over_checkpoints_is_refused(tmp_path):
    assert ckpt.find_checkpoint("none", tmp_path) is None
    assert ckpt.find_checkpoint("auto", tmp_path) is None
    _save(tmp_path, 5)
    with pytest.raises(UsageError, match="--resume auto"):
        ckpt.find_checkpoint("none", tmp_path)
    with pytest.raises(UsageError, match="no checkpoint of a run: it has no training_state.pt"):
        ckpt.find_checkpoint(str(tmp_path), tmp_path)
