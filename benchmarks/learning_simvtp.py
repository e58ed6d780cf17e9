"""Does SimVTP learn? Captioned moving shapes: search by text, masked words, masked pixels.

    python benchmarks/learning_simvtp.py [--steps 1000] [--seeds 3] [--only REGEX --out FILE]

"a red square moves left": 64 captions of four colours, shapes and directions, each video drawn
anew (vimpac/simvtp/captioned_shapes.py). The trainer's own step trains the tiny model; then 64 new
videos, one of every caption, are searched by text and the reverse, and the three words of each
caption are masked and filled in beside the right video and beside one of other words. A model that
reads the text alone fills in as much beside either. Rows leave out a loss, or change a mask.
Writes results/learning_simvtp.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import report_learning
import torch
from torch import Tensor

from vimpac.settings import load_config
from vimpac.simvtp.captioned_shapes import CLASSES, FRAMES, SLOTS, caption, draw, other_classes
from vimpac.simvtp.model import SimVTP
from vimpac.simvtp.predictions import accuracy_by_place, fill_in
from vimpac.simvtp.ranks import judge
from vimpac.simvtp.run_config import SimVTPConfig
from vimpac.simvtp.step import METRICS, PairStep
from vimpac.simvtp.text import WordVocabulary, split_words
from vimpac.train.distributed import World
from vimpac.train.optim import lr_at, make_optimizer, update

PLACES = [1, 2, 4]  # of colour, shape and direction among the words of a caption
TRAINING = 4096  # videos
LAST = 50  # steps whose losses are averaged
ROWS: dict[str, list[str]] = {
    "all losses": [],
    "contrast on masked text": ["text.contrast=masked"],
    "without VTC": ["loss.contrast=0"],
    "without VTM": ["loss.match=0"],
    "text mask 15 %": ["text.ratio=0.15"],
    "video mask 50 %": ["mask.ratio=0.5"],
    "video mask 90 %": ["mask.ratio=0.9"],
    "without pixels": ["loss.pixels=0"],
    "without words": ["loss.words=0"],
    "hard mismatches": ["vtm.negatives=hard"],
}


def draw_videos(rng: np.random.Generator, classes: list[int]) -> Tensor:
    """(videos, FRAMES, SIDE, SIDE, 3) uint8, one of each class given."""
    return torch.from_numpy(np.stack([draw(CLASSES[i], rng) for i in classes]))


def clips_of(videos: Tensor, starts: Tensor, frames: int) -> Tensor:
    """A clip of each video, (videos, frames, S, S, 3)."""
    times = starts[:, None] + torch.arange(frames)
    return videos[torch.arange(len(videos))[:, None], times]


def train(
    config: SimVTPConfig, model: SimVTP, words: WordVocabulary, videos: Tensor, classes: list[int]
) -> dict[str, float]:
    """Trains as `vimpac simvtp pretrain` does, on videos in memory; returns the last losses."""
    steps, size = config.optim.steps, config.batch.videos
    assert steps is not None
    texts = [caption(CLASSES[i]) for i in classes]
    ids, _ = words.encode(texts, config.text.length)
    step = PairStep(model, config, words.special, World(torch.device("cpu")))
    optimizer = make_optimizer(model, config.optim)
    generator = torch.Generator().manual_seed(config.seed)
    last = torch.zeros(len(METRICS))
    for done in range(steps):
        chosen = torch.randperm(len(videos), generator=generator)[:size]
        starts = torch.randint(FRAMES - config.model.frames + 1, (size,), generator=generator)
        clips = clips_of(videos[chosen], starts, config.model.frames)
        metrics = step.gradients([[(clips, ids[chosen])]], done * size)
        update(model, optimizer, config.optim, torch.tensor(lr_at(done, steps, config.optim)))
        if done >= steps - LAST:
            last += metrics / min(LAST, steps)
    return dict(zip(METRICS, last.tolist(), strict=True))


@torch.no_grad()
def test(
    config: SimVTPConfig, model: SimVTP, words: WordVocabulary, videos: Tensor
) -> dict[str, float]:
    """Searches the videos of all classes, and fills in the words of their captions."""
    model.eval()
    texts = [caption(classes) for classes in CLASSES]
    middle = torch.full((len(videos),), (FRAMES - config.model.frames) // 2)
    clips = clips_of(videos, middle, config.model.frames)
    similarity = (
        model.embed_text(*words.encode(texts, config.text.length)) @ model.embed_video(clips).T
    )
    found = judge(similarity, torch.arange(len(clips)))
    results = {"text to video": found.text_to_video.r1, "video to text": found.video_to_text.r1}
    cells = config.mask.masked_cells(config.model.cells)
    for name, beside in (("right", clips), ("other", clips[other_classes()])):
        hidden = [PLACES] * len(texts)
        filled = fill_in(model, words, beside, texts, hidden, masked_cells=cells, seed=1)
        shares = accuracy_by_place(filled, [split_words(text) for text in texts])
        results |= {f"{slot}, {name}": shares[p] for slot, p in zip(SLOTS, PLACES, strict=True)}
    return results


def run_row(settings: list[str], seed: int, steps: int) -> dict[str, Any]:
    """Trains and tests one model."""
    start, rng = time.process_time(), np.random.default_rng(seed)
    classes = rng.integers(len(CLASSES), size=TRAINING).tolist()
    videos = draw_videos(rng, classes)
    words = WordVocabulary.of([caption(one) for one in CLASSES])
    config = load_config(
        SimVTPConfig,
        "tiny",
        ["device=cpu", f"seed={seed}", f"optim.steps={steps}", *settings],
    )
    config.check()
    torch.manual_seed(seed)
    network = dataclasses.replace(config.model, vocabulary=words.size)
    model = SimVTP(network, config.text, config.loss)
    model.freeze_unused()
    gallery = draw_videos(rng, list(range(len(CLASSES))))
    before = test(config, model, words, gallery)
    model.train()
    losses = train(config, model, words, videos, classes)
    after = test(config, model, words, gallery)
    minutes = (time.process_time() - start) / 60
    return {"seed": seed, "losses": losses, "never": before, "test": after, "cpu_minutes": minutes}


def main() -> None:
    """Runs the rows seed by seed, writes the result file after each and prints its tables."""
    parser = argparse.ArgumentParser(description="Pre-trains SimVTP on captioned moving shapes.")
    parser.add_argument("--steps", type=int, default=1000, help="of each pre-training")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions")
    parser.add_argument("--only", default="", metavar="REGEX", help="names of rows")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="result file (default: that of the documentation)"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="settings")
    args = parser.parse_args()
    if args.out is None and (args.only or args.set):
        parser.error(
            "--only and --set make another table than that of the documentation: give --out"
        )
    results: dict[str, Any] = {
        "environment": common.environment("cpu"),
        "command": shlex.join(["python", *sys.argv]),
        "settings": {name: value for name, value in vars(args).items() if name != "out"},
        "chance": 1 / len(CLASSES),
        "rows": {},
    }
    path = args.out or common.RESULTS / "learning_simvtp.json"
    path.parent.mkdir(exist_ok=True)
    for seed in range(args.seeds):
        for name, settings in ROWS.items():
            if re.search(args.only, name):
                row = run_row([*settings, *args.set], seed, args.steps)
                results["rows"].setdefault(name, []).append(row)
                print(f"{name}, seed {seed}: {row['cpu_minutes']:.1f} CPU minutes", flush=True)
                path.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(report_learning.simvtp_tables(results)))


if __name__ == "__main__":
    main()
