"""`vimpac finetune`: trains and tests a classifier of videos."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vimpac.commands.run_arguments import add_row_argument, add_run_arguments
from vimpac.config import FinetuneConfig
from vimpac.data.annotations.datasets import parse_source, read_source
from vimpac.errors import UsageError
from vimpac.model.config import PRESETS
from vimpac.paper_rows import Row, find_row
from vimpac.presets import config_help, config_names
from vimpac.settings import load_config, to_yaml

if TYPE_CHECKING:
    from vimpac.train.finetune import FinetuneResult


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "finetune",
        help="train a video classifier on a pre-trained encoder",
        description="Trains and tests a video classifier on a pre-trained encoder; start it with "
        "torchrun for several devices.",
        epilog="example: vimpac finetune runs/a/checkpoints/step-00012000 data=ucf labels=ucf.csv",
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="of `vimpac pretrain`, this or `vimpac convert`; or the name of a network (small), to "
        "train it from scratch",
    )
    parser.add_argument("--config", metavar="NAME|FILE", help=config_help("finetune"))
    parser.add_argument(
        "--probe",
        default="none",
        choices=("none", "linear", "attentive"),
        help="leave the encoder as it is: fit a linear classifier to its features, or train a "
        "cross-attention over all its tokens",
    )
    parser.add_argument(
        "--splits",
        metavar="1,2,3",
        help="train on each of these splits of labels=ucf101:DIR or hmdb51:DIR, into out/split-1 "
        "and so on, and print the mean",
    )
    add_row_argument(parser)
    add_run_arguments(
        parser, "; labels= is a CSV file with the columns video,class,split or ucf101:DIRECTORY:1"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.checkpoint and "=" in args.checkpoint and not os.path.exists(args.checkpoint):
        args.overrides.insert(0, args.checkpoint)
        args.checkpoint = None
    source, words = args.config, []
    if args.row is not None:
        row = find_row(args.row)
        source, words = source or _config_of(row, args.overrides), row.finetune_words()
    config = load_config(FinetuneConfig, source, words + args.overrides)
    if args.show:
        print(to_yaml(config, comments=True), end="")
        return 0
    if args.checkpoint is None:
        raise UsageError("the checkpoint is missing: name it before the settings")
    if args.row is not None:
        _check_start(row, args.checkpoint, args.probe)
    runs = [config] if args.splits is None else _of_splits(config, args.splits)
    if args.splits is not None and args.resume not in ("none", "auto"):
        raise UsageError("--splits makes several runs: continue them with --resume auto")
    from vimpac.checkpoints.training_state import find_checkpoint
    from vimpac.train.distributed import is_main_process
    from vimpac.train.finetune import finetune  # torch: seconds that --show need not wait

    if args.splits is not None and args.resume == "none":
        for run in runs:
            find_checkpoint("none", Path(run.out) / "checkpoints")
    results = []
    for run in runs:
        result = finetune(run, args.checkpoint, probe=args.probe, resume=args.resume)
        results.append(result)
        if is_main_process():
            print(_line([result]))
            print(result.checkpoint)
    if args.splits is not None and is_main_process():
        print(f"mean of {len(results)} splits: {_line(results)}")
    return 0


def _config_of(row: Row, words: Sequence[str]) -> str:
    """The configuration of a row for the data set that `labels=` names."""
    given = [word.removeprefix("labels=") for word in words if word.startswith("labels=")]
    labels = given[-1] if given else ""  # the last one counts
    source = parse_source(labels)
    config = row.finetune_config(source.dataset if source else "")
    if config not in config_names("finetune"):
        raise UsageError(
            f"--row {row.name}: labels={labels} names no data set of the paper, so give --config, "
            f"too, such as --config {row.finetune_config('ucf101')}"
        )
    return config


def _check_start(row: Row, checkpoint: str, probe: str) -> None:
    """Raises UsageError for a run that would be counted for a row without being one of it."""
    from_scratch = checkpoint in PRESETS and not os.path.exists(checkpoint)
    if row.pretrain is None and not from_scratch:
        raise UsageError(
            f"--row {row.name} is trained from scratch: name a network, such as small, not "
            f"{checkpoint}"
        )
    if row.pretrain is not None and from_scratch:
        raise UsageError(
            f"--row {row.name} is fine-tuned, not trained from scratch: name a checkpoint of its "
            f"pre-training, not {checkpoint}"
        )
    if probe != "none":
        raise UsageError(f"--row {row.name} trains all weights: leave --probe {probe} out")


def _of_splits(config: FinetuneConfig, text: str) -> list[FinetuneConfig]:
    """The run of every split, all of which are there: the first one may take days."""
    splits = [word.strip() for word in text.split(",")]
    if not all(map(str.isdecimal, splits)) or len({*map(int, splits)}) < len(splits):
        raise UsageError(f"--splits {text}: give numbers of splits, such as 1,2,3")
    runs = []
    for split in splits:
        labels = f"{config.labels}:{split}"
        source = parse_source(labels)
        if source is not None and source.split is not None:
            read_source(source)
        elif not os.path.isfile(labels):
            raise UsageError(
                f"--splits {text}: give labels=ucf101:DIR or hmdb51:DIR, not labels={config.labels}"
            )
        runs.append(dataclasses.replace(config, labels=labels, out=f"{config.out}/split-{split}"))
    return runs


def _line(results: Sequence[FinetuneResult]) -> str:
    """The means of the accuracies of runs."""
    names = {
        "clips": "clip_accuracy",
        "videos": "video_accuracy",
        "top-5": "top5_accuracy",
        "mean of classes": "class_accuracy",
    }
    means = {
        title: sum(getattr(result, name) for result in results) / len(results)
        for title, name in names.items()
    }
    return " ".join(f"{title} {mean:.4f}" for title, mean in means.items())
