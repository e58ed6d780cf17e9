"""Captioned videos and a model of a few steps, made once."""

import csv
from pathlib import Path

import numpy as np
import pytest

from vimpac.settings import load_config
from vimpac.simvtp.captioned_shapes import CLASSES, caption, draw, write_video
from vimpac.simvtp.run_config import SimVTPConfig, SimVTPFinetuneConfig

SETTINGS = (
    "model.width=32",
    "model.layers=1",
    "model.heads=2",
    "model.mlp_width=64",
    "model.decoder_width=16",
    "model.decoder_mlp_width=32",
    "batch.videos=8",
    "batch.contrastive=4",
    "batch.micro=2",
    "text.dropout=0.1",
    "optim.steps=6",
    "run.log_every=1",
    "run.save_every=3",
    "run.tensorboard=false",
    "device=cpu",
)
TUNING = (
    "batch.videos=8",
    "batch.contrastive=4",
    "batch.micro=2",
    "clips.window=10",
    "clips.workers=0",
    "text.length=16",
    "optim.steps=6",
    "run.log_every=1",
    "run.save_every=3",
    "run.tensorboard=false",
    "precision=fp32",
    "device=cpu",
)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A directory with captions.csv and videos/: twelve to train on, four to test with."""
    folder, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    (folder / "videos").mkdir()
    with (folder / "captions.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("video", "caption", "split"))
        for i in range(16):
            classes = CLASSES[5 * i % len(CLASSES)]
            write_video(folder / "videos" / f"{i}.mkv", draw(classes, rng))
            split = "train" if i < 12 else "test"
            lines.writerow((f"{i}.mkv", caption(classes), split))
            if i < 2:
                lines.writerow((f"{i}.mkv", f"another caption, number {i}", split))
    return folder


@pytest.fixture(scope="session")
def make_run(shapes):
    """Makes the configuration of a run of seconds into a directory, with more settings."""

    def make(out: Path, *more: str) -> SimVTPConfig:
        words = [f"data={shapes}/captions.csv", f"videos={shapes}/videos", f"out={out}"]
        return load_config(SimVTPConfig, "tiny", [*SETTINGS, *words, *more])

    return make


@pytest.fixture(scope="session")
def tuning_words(shapes):
    """The settings of a fine-tuning of seconds into a directory, as a command line has them."""

    def words(out: Path, *more: str) -> list[str]:
        files = f"data={shapes}/captions.csv", f"videos={shapes}/videos", f"out={out}"
        return [*TUNING, *files, *more]

    return words


@pytest.fixture(scope="session")
def make_tuning(tuning_words):
    """Makes the configuration of such a run."""

    def make(out: Path, *more: str) -> SimVTPFinetuneConfig:
        return load_config(SimVTPFinetuneConfig, None, tuning_words(out, *more))

    return make


@pytest.fixture(scope="session")
def checkpoint(make_run, tmp_path_factory) -> Path:
    """The last checkpoint of such a run, which nobody may change."""
    from vimpac.simvtp.pretrain import pretrain

    return pretrain(make_run(tmp_path_factory.mktemp("run") / "a"), quiet=True).checkpoint
