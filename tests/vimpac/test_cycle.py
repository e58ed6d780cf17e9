"""From video files to predictions, every step by its command."""

import csv
import json
import os
import signal
from pathlib import Path

import av
import numpy as np
import pytest

from tests.vimpac.runs import (
    BY_TORCHRUN,
    ENVIRONMENT,
    find_worker,
    run_process,
    start_process,
    wait_for_steps,
)
from vimpac import cli
from vimpac.checkpoints.training_state import list_checkpoints
from vimpac.train.log import read_log

pytestmark = pytest.mark.usefixtures("one_thread")

COLOURS = {"blue": (40, 50, 220), "green": (40, 200, 60), "red": (220, 40, 40)}
VIDEOS = 18  # of which every third is tested
CPU = ("device=cpu", "precision=fp32")
PRETRAIN = ("--config", "tiny", "clips.frames=3", "optim.steps=10", "run.tensorboard=false")
FINETUNE = (
    *("clips.frames=3", "clips.workers=0", "test_clips=2", "batch=6", "optim.steps=40"),
    *("optim.lr=1e-3", "run.log_every=1", "run.save_every=8", "run.tensorboard=false"),
)


def _write_videos(folder: Path) -> None:
    """A square of a colour, its class, that moves over noise; and annotations as UCF101's."""
    rng, names = np.random.default_rng(0), sorted(COLOURS)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for i in range(VIDEOS):
        name = names[i % 3]
        file = folder / "videos" / name / f"v_{name}_{i:02}.avi"
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_video(file, COLOURS[name], rng)
        number = "" if i % 3 == i // 3 % 3 else f" {names.index(name) + 1}"
        lists["train" if number else "test"].append(f"{name}/{file.name}{number}")
    (folder / "annotations").mkdir()
    for split, lines in lists.items():
        (folder / "annotations" / f"{split}list01.txt").write_text("\n".join(lines) + "\n")
    index = "".join(f"{number} {name}\n" for number, name in enumerate(names, start=1))
    (folder / "annotations" / "classInd.txt").write_text(index)


def _write_video(path: Path, colour: tuple[int, int, int], rng: np.random.Generator) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 2_000_000
        y, x = rng.integers(0, 16, 2)
        for i in range(16):
            image = rng.integers(70, 110, (48, 64, 3), np.uint8)
            image[y : y + 28, x + i : x + i + 28] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def vimpac(capsys):
    """Runs a command, which must succeed, and returns the lines that it prints."""

    def run(*words: str) -> list[str]:
        code = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out.splitlines()

    return run


def test_cycle_from_videos_to_predictions(vimpac, tmp_path, monkeypatch):
    _write_videos(tmp_path)
    videos, store, labels = tmp_path / "videos", tmp_path / "store", tmp_path / "labels.csv"
    three = "1x-topleft,1x-center,1x-bottomright,1.25x-center-flip"
    vimpac("tokenize", videos, "--out", store, "--size", "32", "--fps", "5", "--workers", "0",
           "--variants", three)  # fmt: skip
    annotations = tmp_path / "annotations"
    said = vimpac("labels", "ucf101", annotations, "--split", "1", "--out", labels, "--data", store)
    assert said[0].endswith("12 train, 6 test, 3 classes")

    watch = ("run.knn_every=5", f"run.knn_labels={labels}")
    run = tmp_path / "pretrain"
    vimpac("pretrain", *PRETRAIN, *CPU, *watch, f"data={store}", f"out={run}")
    (pretrained,) = list_checkpoints(run / "checkpoints")
    records = read_log(run / "log.jsonl")
    assert "knn_accuracy" in records[-1]
    known = vimpac("knn", pretrained, f"data={store}", f"labels={labels}", *CPU)
    assert (
        known[0] == "12 training videos, 3 classes (chance 33.3%), k 12"
        and "of 6 videos" in known[1]
    )

    direct = f"labels=ucf101:{annotations}:1"
    out = tmp_path / "finetune"
    words = ("-m", "vimpac", "finetune", str(pretrained), f"data={store}", direct, f"out={out}")
    command = (*BY_TORCHRUN, *words, *FINETUNE, *CPU)
    monkeypatch.setitem(ENVIRONMENT, "VIMPAC_TEST", str(tmp_path))
    process = start_process(*command)
    wait_for_steps(process, out / "log.jsonl", 12)
    os.kill(find_worker(f"VIMPAC_TEST={tmp_path}", rank=1), signal.SIGKILL)
    assert "lost contact with another one" in process.communicate(timeout=60)[1]
    killed = list_checkpoints(out / "checkpoints")[-1].name
    assert "step-00000000" < killed < "step-00000040"
    run_process(*command, "--resume", "auto")
    (classifier,) = list_checkpoints(out / "checkpoints")[-1:]
    assert classifier.name == "step-00000040"
    tested = read_log(out / "log.jsonl")[-1]
    assert tested["test_video_accuracy"] > 0.8  # of three colours

    report = tmp_path / "report"
    vimpac("evaluate", classifier, f"data={store}", f"labels={labels}", *CPU, "--clips", "1,2",
           "--out", report)  # fmt: skip
    best = json.loads((report / "report.json").read_text())["scores"][-1]
    assert best["top1"] == pytest.approx(tested["test_video_accuracy"])
    assert best["clip_top1"] == pytest.approx(tested["test_clip_accuracy"])
    assert (report / "confusion.png").read_bytes().startswith(b"\x89PNG")

    with (report / "predictions.csv").open(newline="") as file:
        expected = {row["video"]: row for row in csv.DictReader(file)}
    files = [videos / name for name in expected]
    text = vimpac("predict", classifier, *files, "--json", "--clips", "2", "--workers", "0",
                  "--device", "cpu", "--precision", "fp32")  # fmt: skip
    rows = json.loads("\n".join(text))
    assert len(rows) == 6
    for row in rows:
        (same,) = (value for name, value in expected.items() if name.endswith(row["video"]))
        assert row["classes"][0]["class"] == same["predicted"]
        assert row["classes"][0]["p"] == pytest.approx(float(same["p"]), abs=1e-4)

    vimpac("extract", classifier, f"data={store}", *CPU, "--out", tmp_path / "features.npz")
    with np.load(tmp_path / "features.npz") as features:
        assert features["features"].shape == (VIDEOS, 128)
        assert len({*features["names"].tolist()}) == VIDEOS
