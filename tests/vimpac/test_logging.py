"""The log of a run holds every step once, whatever stops the run, and says what is odd in it."""

import json
import time
from pathlib import Path

import pytest

from tests.vimpac.runs import make_store, tiny_config
from vimpac.checkpoints.training_state import save_checkpoint
from vimpac.data.store import TokenStore
from vimpac.train.batches import padding_warning
from vimpac.train.log import LOG, RunLog, read_log
from vimpac.train.pretrain import pretrain


def _log(out: Path, done: int) -> RunLog:
    return RunLog(out, steps=9, done=done, active=True, tensorboard=False, quiet=True)


def test_resumed_log_holds_every_step_once(tmp_path):
    for done, last in ((0, 4), (2, 3)):  # the second run continues at the second step's checkpoint
        with _log(tmp_path, done) as log:
            for step in range(done + 1, last + 1):
                log.record({"step": step, "loss": done})
    records = [(record["step"], record["loss"]) for record in read_log(tmp_path / LOG)]
    assert records == [(1, 0), (2, 0), (3, 2)]
    assert [path.name for path in tmp_path.iterdir()] == [LOG]


def test_kill_while_resuming_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    with _log(tmp_path, 0) as log:
        for step in range(1, 4):
            log.record({"step": step})
    before, written = (tmp_path / LOG).read_bytes(), []

    def dumps(record: dict) -> str:
        written.append(record)
        if len(written) == 2:
            raise KeyboardInterrupt
        return "{}"

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(json, "dumps", dumps)
        _log(tmp_path, 3)
    assert (tmp_path / LOG).read_bytes() == before


def test_line_cut_off_by_a_kill_is_dropped(tmp_path):
    (tmp_path / LOG).write_text('{"step": 1}\n{"ste')
    assert read_log(tmp_path / LOG) == [{"step": 1}]


@pytest.mark.parametrize(
    ("contrastive", "alpha", "warns"), [(16, 1, False), (32, 1, True), (32, 0, False)]
)
def test_videos_that_meet_themselves_as_negatives_are_said(
    tmp_path, capsys, contrastive, alpha, warns
):
    words = ("optim.steps=1", f"loss.alpha={alpha}", "batch.micro=16")
    words += ("batch.videos=32", f"batch.contrastive={contrastive}")
    pretrain(tiny_config(make_store(tmp_path / "store"), tmp_path / "run", *words))
    said = "warning: batch.contrastive=32 of 16 videos" in capsys.readouterr().err
    assert said == warns


@pytest.mark.parametrize(("frames", "stride", "warns"), [(6, 1, False), (7, 1, True), (3, 3, True)])
def test_clips_longer_than_most_videos_are_said(tmp_path, frames, stride, warns):
    store, words = make_store(tmp_path / "store", frames=6), ("loss.alpha=0",)
    words += (f"clips.frames={frames}", f"clips.frame_stride={stride}")
    clips = tiny_config(store, tmp_path / "run", *words).clips
    said = list(padding_warning(TokenStore(store), clips))
    assert len(said) == warns
    if warns:
        assert said[0].startswith("16 of 16 videos have fewer than the 7 frames of a clip")


def test_rate_is_of_the_steps_and_not_of_the_checkpoints(tmp_path, monkeypatch):
    def save_slowly(*arguments: object, **options: object) -> Path:
        clock[0] += 100
        return save_checkpoint(*arguments, **options)

    def lr_at(step: int, *_: object) -> float:
        clock[0] += 2  # seconds of a step
        return 0.0

    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr("vimpac.train.loop.save_checkpoint", save_slowly)
    monkeypatch.setattr("vimpac.train.loop.lr_at", lr_at)
    words = ("optim.steps=4", "run.save_every=2")  # of 8 videos
    pretrain(tiny_config(make_store(tmp_path / "store"), tmp_path, *words), quiet=True)
    assert [record["videos_per_s"] for record in read_log(tmp_path / LOG)] == 4 * [4.0]


def test_line_about_a_name_stays_one_line(tmp_path, capsys):
    with RunLog(tmp_path, steps=1, done=0, active=True, tensorboard=False) as log:
        log.say("a\nb \x1b[31m \udcff [red]")
    assert capsys.readouterr().err == "a\\nb \\x1b[31m \\udcff [red]\n"
