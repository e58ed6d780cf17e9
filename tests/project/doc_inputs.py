"""The small inputs on which the commands of the documentation run, a function for each page."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.project.doc_pages import ROOT, name_of
from tests.vimpac.annotation_trees import SSV2, write_files
from tests.vimpac.runs import make_store
from tests.vimpac.videos import write_video
from vimpac import Vimpac, cli, save_model
from vimpac.simvtp.captioned_shapes import CLASSES, caption, draw
from vimpac.simvtp.captioned_shapes import write_video as write_frames
from vimpac.tokenizers import dalle


def prepare(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts into a directory what the commands of a page read, and goes there.

    Args:
        page: The page.
        folder: An empty directory.
        monkeypatch: Makes the DALL-E encoder a narrow one, whose weights are few.
    """
    monkeypatch.setattr(dalle, "WIDTH", 16)
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    make = INPUTS.get(name_of(page))
    if make is not None:
        make(folder)
    monkeypatch.chdir(folder)


def stand_in(checkpoint: Path) -> None:
    """Puts a checkpoint where a command expects that of a long run.

    It is the newest one of the same run, or, where no command of the page made one, an untrained
    model.
    """
    if checkpoint.exists():
        return
    made = sorted(checkpoint.parent.glob("step-*"))
    if made:
        shutil.copytree(made[-1], checkpoint)
    else:
        save_model(Vimpac.from_preset("tiny", grid=(2, 4, 4)), checkpoint)


def _videos(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, range(0, 2000, 125))


def _tokenizing(folder: Path) -> None:
    names = [f"videos/{i}.mp4" for i in range(6)]
    _videos(folder, *names)
    (folder / "paths.txt").write_text("\n".join(names) + "\n")


def _training(folder: Path) -> None:
    _videos(folder, *(f"videos/{i}.mp4" for i in range(6)))
    for name in ("howto", "kinetics", "ucf"):
        make_store(folder / name)
    _annotate_store(folder / "ucfTrainTestlist")


def _annotate_store(folder: Path) -> None:
    """Annotations in the form of UCF101's for the videos of `make_store`."""
    moves = ("Archery", "YoYo")
    videos = [f"{moves[i % 2]}/{i}.avi" for i in range(16)]
    train = "".join(f"{videos[i]} {1 + i % 2}\n" for i in range(12))
    lists = {"classInd.txt": "1 Archery\n2 YoYo\n", "trainlist01.txt": train}
    lists["testlist01.txt"] = "\n".join(videos[12:]) + "\n"
    write_files(folder, lists)


def _visualise(folder: Path) -> None:
    _shapes(folder)
    for out in ("store", "vimpac-demo/videos"):
        words = ["--fps", "10", "--size", "32", "--workers", "0", "--out", str(folder / out)]
        assert cli.main(["tokenize", str(folder / "shapes/videos"), *words]) == 0


def _shapes(folder: Path) -> None:
    names = [f"{i:05}.mp4" for i in range(6)]
    _videos(folder / "shapes/videos", *names)
    rows = [f"{name},{'ab'[i % 2]},{'test' if i > 3 else 'train'}" for i, name in enumerate(names)]
    table = "\n".join(["video,class,split", *rows]) + "\n"
    (folder / "shapes/labels.csv").write_text(table)


def _paper(folder: Path) -> None:
    for name in ("howto100m-128", "ucf101-128"):
        make_store(folder / name)
    make_store(folder / "howto100m-256", height=8)
    _annotate_store(folder / "annotations" / "ucf101")


def _evaluation(folder: Path) -> None:
    moves = ("Archery", "YoYo")
    videos = [f"{move}/v_{move}_g0{i}_c01.avi" for move in moves for i in (1, 2)]
    _videos(folder / "UCF-101", *videos)
    lists = {"classInd.txt": "1 Archery\n2 YoYo\n"}
    for split in (1, 2, 3):
        train, test = videos[split % 2 :: 2], videos[1 - split % 2 :: 2]
        numbered = [f"{video} {1 + moves.index(video.split('/')[0])}" for video in train]
        lists[f"trainlist0{split}.txt"] = "\n".join(numbered) + "\n"
        lists[f"testlist0{split}.txt"] = "\n".join(test) + "\n"
    write_files(folder / "ucfTrainTestlist", lists)
    _videos(folder / "20bn-something-something-v2", "90001.mp4", "90002.mp4", "90003.mp4")
    write_files(folder / "annotations", SSV2)
    torch.manual_seed(0)
    torch.save(dalle.Dvae.encoder().state_dict(), folder / "encoder.pkl")


def _simvtp(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for place in ("videos", "holiday", "vimpac-simvtp-demo/shapes/videos"):
        (folder / place).mkdir(parents=True)
        for i in range(6):
            classes = CLASSES[5 * i % len(CLASSES)]
            write_frames(folder / place / f"video{i}.mkv", draw(classes, rng))
            rows.append((f"video{i}.mkv", caption(classes), "train" if i < 4 else "test"))
    write_frames(folder / "clip.mp4.mkv", draw(CLASSES[0], rng))
    (folder / "clip.mp4.mkv").rename(folder / "clip.mp4")
    tables = {
        "vimpac-simvtp-demo/shapes/captions.csv": [("video", "caption", "split"), *rows[:6]],
        "webvid.csv": [
            ("videoid", "contentUrl", "duration", "page_dir", "name"),
            *((f"video{i}", f"https://x/video{i}.mkv", "", "", rows[i][1]) for i in range(6)),
        ],
        "MSRVTT/MSRVTT_train.9k.csv": [("video_id",), *((f"video{i}",) for i in range(4))],
        "MSRVTT/MSRVTT_JSFUSION_test.csv": [
            ("key", "vid_key", "video_id", "sentence"),
            *((f"ret{i}", "m", f"video{i}", rows[i][1]) for i in (4, 5)),
        ],
    }
    (folder / "MSRVTT").mkdir()
    for name, lines in tables.items():
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows(lines)
    videos = [{"video_id": f"video{i}", "split": "train"} for i in range(6)]
    sentences = [{"video_id": f"video{i}", "caption": rows[i][1]} for i in range(6)]
    text = json.dumps({"videos": videos, "sentences": sentences})
    (folder / "MSRVTT" / "MSRVTT_data.json").write_text(text)


INPUTS: dict[str, Callable[[Path], None]] = {
    "docs/tokenizing.md": _tokenizing,
    "docs/training.md": _training,
    "docs/evaluation.md": _evaluation,
    "docs/paper.md": _paper,
    "docs/visualise.md": _visualise,
    "docs/simvtp.md": _simvtp,
}
