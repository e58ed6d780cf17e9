"""Small runs for the tests, in this process and in others."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from vimpac import Vimpac, save_model
from vimpac.config import FinetuneConfig, PretrainConfig
from vimpac.data.store import TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.settings import load_config
from vimpac.train.log import read_log

SETTINGS = (
    "model.dropout=0.1",
    "clips.frames=2",
    "batch.videos=8",
    "batch.contrastive=4",
    "batch.micro=2",
    "optim.steps=20",
    "run.log_every=1",
    "run.save_every=5",
    "run.tensorboard=false",
    "device=cpu",
)
FINETUNE_SETTINGS = (
    "clips.frames=2",
    "clips.workers=0",
    "precision=fp32",
    "device=cpu",
    "test_clips=2",
    "batch=4",
    "optim.steps=12",
    "run.log_every=1",
    "run.save_every=4",
    "run.tensorboard=false",
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
BY_TORCHRUN = (*TORCHRUN, "--nproc-per-node", "2")
# The same two ranks, where torchrun itself is not tested: it imports torch before it starts them.
ON_TWO_RANKS = (sys.executable, str(Path(__file__).with_name("two_ranks.py")))


def make_store(path: Path, height: int = 4, frames: int = 6) -> Path:
    """Sixteen videos, each with its own ten ids, in two variants."""
    rng = np.random.default_rng(0)
    meta = StoreMeta("patch", 8192, height, 4, fps=2.0, variants=("a", "b"))
    with TokenStoreWriter(path, meta) as writer:
        for video in range(16):
            writer.add(str(video), 100 * video + rng.integers(0, 10, (2, frames, height, 4)))
        writer.finish()
    return path


def make_labelled(path: Path) -> Path:
    """Puts into a directory a store of twelve videos, their labels, and a model with dropout."""
    rng = np.random.default_rng(0)
    with TokenStoreWriter(path / "store", StoreMeta("patch", 8192, 4, 4, 2.0)) as writer:
        for video in range(12):
            writer.add(f"{video}.mp4", 100 * (video % 2) + rng.integers(0, 10, (1, 4, 4, 4)))
        writer.finish()
    lines = [f"{i}.mp4,{'ab'[i % 2]},{'test' if i > 8 else 'train'}" for i in range(12)]
    (path / "labels.csv").write_text("\n".join(["video,class,split", *lines]) + "\n")
    torch.manual_seed(0)
    save_model(Vimpac.from_preset("tiny", grid=(2, 4, 4), dropout=0.1), path / "model")
    return path


def tiny_config(store: Path, out: Path, *more: str) -> PretrainConfig:
    """The configuration of a run of seconds, with `more` settings."""
    return load_config(PretrainConfig, "tiny", [*SETTINGS, f"data={store}", f"out={out}", *more])


def program(store: Path, out: Path, *more: str) -> list[str]:
    """The command that makes the same run in a process of its own."""
    words = ["pretrain", "--config", "tiny", *SETTINGS, f"data={store}", f"out={out}", *more]
    return [sys.executable, "-m", "vimpac", *words]


def finetune_words(folder: Path, out: Path, *more: str) -> list[str]:
    """The settings of a fine-tuning on what `make_labelled` has put into a directory."""
    paths = (f"data={folder / 'store'}", f"labels={folder / 'labels.csv'}", f"out={out}")
    return [*FINETUNE_SETTINGS, *paths, *more]


def finetune_config(folder: Path, out: Path, *more: str) -> FinetuneConfig:
    """The configuration with these settings."""
    return load_config(FinetuneConfig, None, finetune_words(folder, out, *more))


def finetune_program(folder: Path, out: Path, *more: str) -> list[str]:
    """The command that makes the same run in a process of its own."""
    words = ["finetune", str(folder / "model"), *finetune_words(folder, out, *more)]
    return [sys.executable, "-m", "vimpac", *words]


def start_process(*command: str) -> subprocess.Popen:
    """Starts a command with one thread, keeping what it says."""
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def run_process(*command: str) -> None:
    """Runs a command with one thread to its end, which must be a good one."""
    process = start_process(*command)
    said = process.communicate()[1]
    assert process.returncode == 0, said


def wait_for_steps(process: subprocess.Popen, log: Path, steps: int) -> None:
    """Until so many steps stand in the log, or the process has ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(read_log(log)) >= steps:
            break
        time.sleep(0.005)


def find_worker(marker: str, rank: int) -> int:
    """The id of the process of a rank that torchrun started with an environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            if {marker, f"RANK={rank}"} <= {*words}:
                return int(folder.name)
    raise AssertionError("the worker has gone")
