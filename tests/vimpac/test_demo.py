"""`vimpac demo` learns on the real clips and shows it; on bad input it says why."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image
from matplotlib.figure import Figure

from vimpac import cli, demo
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.pictures.predictions import Score
from vimpac.pictures.run import Curve, _plot


def test_demo_falls_below_chance_and_paints_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SIZE", 64)
    assert cli.main(["demo", "--out", str(tmp_path), "--seconds", "15"]) == 0
    out = capsys.readouterr().out
    assert f"chance {math.log(8197):.3f}" in out
    shares = (
        r"^masked tokens right +[\d.]+%   nearest visible token [\d.]+%, commonest of the clip "
    )
    shares += r"[\d.]+%, commonest of all [\d.]+%, chance 0\.01%$"
    assert re.search(shares, out, flags=re.M)
    assert "note: The model sees the 2 videos of its training" in out
    assert f"picture      {tmp_path / 'demo.png'}" in out
    assert "vimpac pretrain --config tiny" in out
    pixels = image.imread(tmp_path / "demo.png")
    assert pixels.shape[0] > 500 and pixels.std() > 0.1
    made = [".vimpac-demo", "demo.png", "pieces", "run", "videos"]
    assert sorted(p.name for p in tmp_path.iterdir()) == made


def _outcome(**changes) -> demo.Outcome:
    """What a run could have come to."""
    facts = {
        "picture": Path("p"),
        "run": Path("r"),
        "mask_loss": 5.0,
        "mask_chance": math.log(8197),
        "cl_loss": 0.5,
        "cl_chance": 1.0,
        "cl_counting": 0.3,
        "score": Score(100, 0.6, 0.4, 0.3, 0.2),
        "videos": 2,
    }
    return demo.Outcome(**facts | changes)


def test_notes_say_what_the_numbers_are_not_worth():
    seen = (
        "The model sees the 2 videos of its training: this shows that it learns, not what it is "
        "worth on others."
    )
    easy = (
        "The contrastive loss is easy to lower here, as two clips of a piece look alike: counting "
        "their tokens, without a model, brings it to 0.30."
    )
    copied = "The model is no better than copying the nearest visible token."
    assert _outcome().notes == [easy, seen]
    assert _outcome(videos=1).notes[-1].startswith("The model sees the video of its training: ")
    assert _outcome(cl_counting=1.1, score=Score(9, 0.3, 0.4, 0.3, 0.2)).notes == [copied, seen]


def test_counting_tells_pieces_apart_that_have_tokens_of_their_own(tmp_path):
    losses = []
    for name, step in (("apart", 10), ("alike", 0)):
        with TokenStoreWriter(tmp_path / name, StoreMeta("patch", 8192, 2, 2, 8.0)) as writer:
            for piece in range(4):
                writer.add(str(piece), np.full((1, 12, 2, 2), piece * step))
            writer.finish()
        losses.append(demo.counting_loss(TokenStore(tmp_path / name), frames=5))
    assert losses[0] == pytest.approx(0.4 * math.log(1 + 6 * math.exp(-1 / 0.2)), rel=1e-5)
    assert losses[1] == pytest.approx(0.4 * math.log(7), rel=1e-5)


def test_loss_above_chance_is_a_failure(tmp_path, monkeypatch, capsys):
    outcome = _outcome(mask_loss=9.5)
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


def test_video_that_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "a.mp4").write_text("no video")
    out = tmp_path / "demo"
    out.mkdir()
    for name in (".vimpac-demo", "demo.png"):  # of an earlier demo
        (out / name).touch()
    assert cli.main(["demo", str(tmp_path / "a.mp4"), "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert said.out.endswith("   skipped a.mp4: Invalid data found when processing input\n")
    assert said.err == f"vimpac: {out}/videos would hold no video: no input could be read\n"
    assert [file.name for file in out.iterdir()] == [".vimpac-demo"]
    assert cli.main(["demo", "--out", str(tmp_path / "a.mp4")]) == 2
    assert "a.mp4 is a file: name a directory for the demo alone" in capsys.readouterr().err


@pytest.mark.parametrize("most", [0.004, 0.5])
def test_shares_of_a_curve_are_told_apart(most):
    axes = Figure().add_subplot()
    _plot(axes, Curve("shares", [1, 2], [0.0, most], {"chance": 0.0001}, are_shares=True))
    axes.figure.draw_without_rendering()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len({*labels}) == len(labels) and all(label.endswith("%") for label in labels)


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
