"""Which way do the paper's claims point on synthetic videos? `vimpac pretrain` and linear probes.

    python benchmarks/directions.py [--steps 400] [--videos 4000] [--seeds 3] [--only NAME ...]

The videos are those of learning.py: one moving shape each. For every seed each of `MODELS` is
pre-trained from the same weights on the same videos, and its frozen [CLS] is probed for colour and
shape, which every frame shows, and for direction and speed, which only the motion shows. The paper
fine-tunes on real videos instead, so only the sign of a difference can be compared, not its size.
Writes results/directions.json after every model. The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import learning
import numpy as np
import torch
from report_directions import MODELS, NEVER, direction_tables

from vimpac import Vimpac, extract, save_model
from vimpac.eval.probes import fit_linear

RESULT = common.RESULTS / "directions.json"
# bf16 is autocast, twice as fast as fp32 on a CPU that multiplies bf16 in hardware.
SETTINGS = ["precision=bf16", f"mask.blocks={learning.BLOCKS}", "clips.workers=0"]


def probe(model: Path, videos: Path) -> dict[str, float]:
    """The share of test videos of which a linear probe of [CLS] reads each attribute right.

    Args:
        model: A model directory.
        videos: A folder from `learning.write_videos`.
    """
    store = videos / "store"
    options: dict[str, Any] = dict(clips=learning.CLIPS, frames=learning.T, workers=0, device="cpu")
    names, features = zip(*extract(model, store, precision="fp32", **options), strict=True)
    x, found = torch.stack(features), {}
    for attribute, classes in learning.ATTRIBUTES.items():
        with open(videos / f"{attribute}.csv", newline="") as file:
            rows = {row["video"]: row for row in csv.DictReader(file)}
        numbers = {name: i for i, name in enumerate(sorted({r["class"] for r in rows.values()}))}
        y = torch.tensor([numbers[rows[name]["class"]] for name in names])
        test = torch.tensor([rows[name]["split"] == "test" for name in names])
        weight, bias = fit_linear(x[~test], y[~test], classes, 0.01)
        guess = (x[test].double() @ weight.double().T + bias.double()).argmax(1)
        found[attribute] = (guess == y[test]).double().mean().item()
    return found


def make_model(name: str, words: list[str], seed: int, folder: Path) -> tuple[Path, dict]:
    """Pre-trains one of `MODELS`.

    Args:
        name: Its name.
        words: Its settings.
        seed: Of the weights, the order and the masks.
        folder: Where `train/store` is, and the run goes.

    Returns:
        A model directory, and the last record of the log.
    """
    if name == NEVER:
        torch.manual_seed(seed)
        side = learning.SIDE // 8
        path = folder / "never"
        save_model(Vimpac.from_preset("tiny", grid=(learning.T, side, side), dropout=0.0), path)
        return path, {}
    words = [word.format(ratio=learning.mask_ratio(seed)) for word in words]
    return learning.train(folder / "train" / "store", folder / name, seed, [*SETTINGS, *words])


def run_seed(seed: int, results: dict[str, Any], names: list[str]) -> None:
    """Trains and probes the models of a seed that the results do not have yet."""
    settings, rows = results["settings"], results["rows"]
    done = {row["model"] for row in rows if row["seed"] == seed}
    left = [name for name in names if name not in done]
    if not left:
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, rng = Path(temporary), np.random.default_rng(seed)
        learning.write_videos(folder / "train", settings["videos"], rng)
        learning.write_videos(folder / "probe", learning.PROBED, rng)
        for name in left:
            start = time.process_time()
            words = [*MODELS[name], f"optim.steps={settings['steps']}"]
            model, record = make_model(name, words, seed, folder)
            rows.append(
                {
                    "seed": seed,
                    "model": name,
                    "training": record,
                    "probes": probe(model, folder / "probe"),
                    "cpu_minutes": (time.process_time() - start) / 60,
                    "environment": common.environment("cpu"),
                }
            )
            RESULT.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    """Runs what is left of the seeds and prints the tables."""
    parser = argparse.ArgumentParser(description="Checks which way the paper's claims point.")
    parser.add_argument("--steps", type=int, default=400, help="of each pre-training")
    parser.add_argument("--videos", type=int, default=4000, help="to pre-train on")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions")
    parser.add_argument("--only", nargs="+", default=[*MODELS], choices=[*MODELS], metavar="NAME")
    args = parser.parse_args()
    settings = {"steps": args.steps, "videos": args.videos}
    results: dict[str, Any] = {"settings": settings, "command": "", "rows": []}
    if RESULT.exists() and (was := json.loads(RESULT.read_text()))["settings"] == settings:
        results = was
    results["command"] = shlex.join(["python", *sys.argv])
    common.RESULTS.mkdir(exist_ok=True)
    for seed in range(args.seeds):
        run_seed(seed, results, args.only)
    print("\n".join(direction_tables(results)))


if __name__ == "__main__":
    main()
