"""`vimpac demo` learns on the real clips and shows it; on bad input it says why."""

import math
from pathlib import Path

import pytest
import torch
from matplotlib import image

from vimpac import cli, demo
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta


def test_demo_falls_below_chance_and_paints_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SIZE", 64)
    assert cli.main(["demo", "--out", str(tmp_path), "--seconds", "15"]) == 0
    out = capsys.readouterr().out
    assert f"chance {math.log(8197):.3f}" in out
    assert f"picture      {tmp_path / 'demo.png'}" in out
    assert "vimpac pretrain --config small" in out
    pixels = image.imread(tmp_path / "demo.png")
    assert pixels.shape[0] > 500 and pixels.std() > 0.1
    made = [".vimpac-demo", "demo.png", "pieces", "run", "videos"]
    assert sorted(p.name for p in tmp_path.iterdir()) == made


def test_loss_above_chance_is_a_failure(tmp_path, monkeypatch, capsys):
    outcome = demo.Outcome(Path("p"), Path("r"), 9.5, math.log(8197), 0.5, 1.0)
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: outcome)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 1
    assert "did not fall below chance" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--seconds", "0"], 2, "--seconds 0 must be positive"),
        (["--seconds", "inf"], 2, "--seconds inf must be positive and finite"),
        (["--seconds", "nan"], 2, "--seconds nan must be positive and finite"),
        (["/nonexistent.mp4"], 1, "/nonexistent.mp4"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, words, code, message):
    assert cli.main(["demo", "--out", str(tmp_path / "demo"), *words]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "demo").exists()


def test_directory_of_another_kind_is_left_alone(tmp_path, capsys):
    video = tmp_path / "videos" / "mine.mp4"
    video.parent.mkdir()
    video.touch()
    assert cli.main(["demo", str(video), "--out", str(tmp_path)]) == 2
    assert f"--out {tmp_path} holds other files" in capsys.readouterr().err
    assert video.exists()


def test_pieces_are_parts_of_the_videos(tmp_path):
    tokens = torch.arange(30)[:, None, None].expand(30, 2, 2).numpy()
    with TokenStoreWriter(tmp_path / "whole", StoreMeta("patch", 8192, 2, 2, 8.0)) as writer:
        writer.add("a", tokens[None])
        writer.finish()
    pieces = demo.cut(TokenStore(tmp_path / "whole"), tmp_path / "pieces")
    assert [pieces.name(i) for i in range(len(pieces))] == ["a@0s", "a@1.5s"]
    assert (pieces.read(1, 0, 12, 0)[:, 0, 0] == range(12, 24)).all()
