"""`vimpac visualise samples`: even frames of some videos, with their classes."""

from __future__ import annotations

import argparse

from vimpac.commands.visualise.arguments import add_file_arguments, check, print_table
from vimpac.errors import UsageError
from vimpac.pictures.config import SamplesConfig
from vimpac.settings import load_config

DESCRIPTION = (
    "Draws five even frames of some videos of a store, painted from their tokens, with the class "
    "of each if labels= is given (Fig. 3): one video of every class as far as there is room."
)
MOST = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.epilog = "example: vimpac visualise samples data=store labels=labels.csv --out s.png"
    parser.add_argument(
        "--videos", type=int, default=5, help=f"how many, up to {MOST} (default: %(default)s)"
    )
    add_file_arguments(parser, "samples.png", "data=STORE, labels=LABELS")


def run(args: argparse.Namespace) -> int:
    """Draws the picture."""
    config = load_config(SamplesConfig, None, args.overrides)
    if not 1 <= args.videos <= MOST:
        raise UsageError(f"--videos {args.videos} must lie in [1, {MOST}]")
    check(args)
    from vimpac.data.labels import read_classes
    from vimpac.pictures.clip import in_seconds, open_tokenizer
    from vimpac.pictures.samples import choose_videos, draw_samples, read_sample
    from vimpac.train.batches import open_store

    store = open_store(config.data, cache=config.shard_cache)
    classes = read_classes(config.labels, store) if config.labels else {}
    tokenizer, fps = open_tokenizer(store.meta, args.weights), store.meta.fps
    videos = choose_videos(len(store), classes, args.videos, args.seed)
    samples = [read_sample(store, i, classes.get(i, ""), tokenizer) for i in videos]
    draw_samples(samples, fps, args.out)
    about = f"{len(samples)} of {len(store)} videos"
    if classes:
        about += f", of {len({*classes.values()})} classes"
    print(f"{about}, seed {args.seed}")
    rows = list[tuple[object, ...]]()
    rows.append(("video", "class", "frames", "length"))
    rows += [(s.name, s.class_name or "-", s.length, in_seconds(s.length / fps)) for s in samples]
    print_table(rows)
    print(args.out)
    return 0
