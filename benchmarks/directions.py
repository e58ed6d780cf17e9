"""Which way do the paper's claims point on synthetic videos? `vimpac pretrain`, then fine-tuning.

    python benchmarks/directions.py [--steps 300] [--videos 4000] [--seeds 3] [--jobs 2]

The videos are those of learning.py: one moving shape each. For every seed each of `MODELS` is
pre-trained from the same weights on the same videos. It is then fine-tuned for two labels of 16
classes: a spatial one, colour and shape, which every frame shows, and a temporal one, direction and
speed, which only the motion shows. A linear probe of the frozen [CLS] reads the same two labels.
Writes results/directions.json after every model. The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import shlex
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import common
import learning
import numpy as np
import torch
from report_directions import LABELS, MODELS, NEVER, direction_tables

from vimpac import Vimpac, extract, save_model
from vimpac.config import FinetuneConfig
from vimpac.eval.probes import fit_linear
from vimpac.settings import load_config
from vimpac.train.finetune import finetune

# bf16 is autocast, twice as fast as fp32 on a CPU that multiplies bf16 in hardware.
SETTINGS = ["precision=bf16", "clips.workers=0"]
# Of a fine-tuning. Tried on seed 0 after 100 steps of pre-training: after 60 steps, two epochs, no
# model reads the direction, after 120 most do.
FINETUNE = [*SETTINGS, "optim.steps=300", "optim.lr=1e-3", "batch=32", "run.log_every=100"]


def write_labels(folder: Path) -> None:
    """Writes a table for each of `LABELS`, whose classes are pairs of attributes."""
    tables = {}
    for attribute in learning.ATTRIBUTES:
        with open(folder / f"{attribute}.csv", newline="") as file:
            tables[attribute] = [*csv.DictReader(file)]
    for label, attributes in LABELS.items():
        with open(folder / f"{label}.csv", "w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(("video", "class", "split"))
            for rows in zip(*(tables[name] for name in attributes), strict=True):
                pair = " ".join(row["class"] for row in rows)
                lines.writerow((rows[0]["video"], pair, rows[0]["split"]))


def probe(model: Path, videos: Path) -> dict[str, float]:
    """The share of test videos of which a linear probe of [CLS] reads each label right.

    Args:
        model: A model directory.
        videos: A folder with `store` and the tables of `write_labels`.
    """
    store, found = videos / "store", {}
    options: dict[str, Any] = dict(clips=learning.CLIPS, frames=learning.T, workers=0, device="cpu")
    names, features = zip(*extract(model, store, precision="fp32", **options), strict=True)
    x = torch.stack(features)
    for label in LABELS:
        with open(videos / f"{label}.csv", newline="") as file:
            rows = {row["video"]: row for row in csv.DictReader(file)}
        numbers = {name: i for i, name in enumerate(sorted({r["class"] for r in rows.values()}))}
        y = torch.tensor([numbers[rows[name]["class"]] for name in names])
        test = torch.tensor([rows[name]["split"] == "test" for name in names])
        weight, bias = fit_linear(x[~test], y[~test], len(numbers), 0.01)
        guess = (x[test].double() @ weight.double().T + bias.double()).argmax(1)
        found[label] = (guess == y[test]).double().mean().item()
    return found


def tune(model: Path, label: str, seed: int, videos: Path, out: Path) -> float:
    """The share of test videos that a model is right on after it is fine-tuned for a label."""
    words = [f"data={videos / 'store'}", f"labels={videos / label}.csv", f"out={out}"]
    words += [f"clips.frames={learning.T}", f"test_clips={learning.CLIPS}", f"seed={seed}"]
    words += [*FINETUNE, "device=cpu", "run.tensorboard=false"]
    return finetune(load_config(FinetuneConfig, None, words), model, quiet=True).video_accuracy


def make_model(
    name: str, seed: int, steps: int, store: Path, out: Path
) -> tuple[Path, dict[str, float]]:
    """Pre-trains one of `MODELS`; returns its directory and the last record of the log."""
    if name == NEVER:
        torch.manual_seed(seed)
        side = learning.SIDE // 8
        save_model(Vimpac.from_preset("tiny", grid=(learning.T, side, side), dropout=0.0), out)
        return out, {}
    ratio = learning.mask_ratio(seed)
    words = [f"mask.blocks={learning.BLOCKS}", *(word.format(ratio=ratio) for word in MODELS[name])]
    return learning.train(store, out, seed, [*SETTINGS, *words, f"optim.steps={steps}"])


def run_model(name: str, seed: int, steps: int, videos: int) -> dict[str, Any]:
    """Trains and tests one model on one thread; returns its row of the result file."""
    torch.set_num_threads(1)
    start, rng = time.process_time(), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = learning.write_videos(folder / "train", videos, rng)
        labelled = learning.write_videos(folder / "labelled", learning.PROBED, rng).parent
        write_labels(labelled)
        model, record = make_model(name, seed, steps, store, folder / "model")
        return {
            "seed": seed,
            "model": name,
            "training": record,
            "probed": probe(model, labelled),
            "tuned": {
                label: tune(model, label, seed, labelled, folder / label) for label in LABELS
            },
            "cpu_minutes": (time.process_time() - start) / 60,
            "environment": common.environment("cpu"),
        }


def run_all(results: dict[str, Any], seeds: int, names: list[str], jobs: int) -> None:
    """Runs what the results do not have yet, so many models at a time, each in a process."""
    done = {(row["seed"], row["model"]) for row in results["rows"]}
    left = [(seed, name) for seed in range(seeds) for name in names if (seed, name) not in done]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        sizes = results["settings"].values()
        futures = [pool.submit(run_model, name, seed, *sizes) for seed, name in left]
        for future in as_completed(futures):
            results["rows"].append(future.result())
            results["rows"].sort(key=lambda row: (row["seed"], [*MODELS].index(row["model"])))
            text = json.dumps(results, indent=1) + "\n"
            (common.RESULTS / "directions.json").write_text(text)


def main() -> None:
    """Runs what is left of the seeds and prints the tables."""
    parser = argparse.ArgumentParser(description="Checks which way the paper's claims point.")
    parser.add_argument("--steps", type=int, default=300, help="of each pre-training")
    parser.add_argument("--videos", type=int, default=4000, help="to pre-train on")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time, one thread each")
    parser.add_argument("--only", nargs="+", default=[*MODELS], choices=[*MODELS], metavar="NAME")
    args = parser.parse_args()
    settings = {"steps": args.steps, "videos": args.videos}
    results: dict[str, Any] = {"settings": settings, "command": "", "rows": []}
    file = common.RESULTS / "directions.json"
    if file.exists() and (was := json.loads(file.read_text()))["settings"] == settings:
        results = was
    results["command"] = shlex.join(["python", *sys.argv])
    common.RESULTS.mkdir(exist_ok=True)
    run_all(results, args.seeds, args.only, args.jobs)
    print("\n".join(direction_tables(results)))


if __name__ == "__main__":
    main()
