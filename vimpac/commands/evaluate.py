"""`vimpac evaluate`: tests classifiers of videos, and writes what they are worth."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from vimpac.commands.view_arguments import add_view_arguments, parse_clips, split_words
from vimpac.errors import UsageError
from vimpac.eval.config import InferenceConfig
from vimpac.paths import local_path, on_one_line
from vimpac.settings import load_config

if TYPE_CHECKING:
    from vimpac.eval.report import Report, Scores


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "evaluate",
        help="test a video classifier",
        description="Tests a video classifier; the probabilities of several are averaged. Start "
        "it with torchrun for several devices.",
        epilog="example: vimpac evaluate runs/ucf/checkpoints/step-00003700 data=ucf "
        "labels=ucf.csv --clips 1,2,5,10 --out report",
    )
    parser.add_argument("classifier", nargs="+", help="a checkpoint of `vimpac finetune`")
    parser.add_argument("--split", default="test", choices=("test", "val", "train"))
    parser.add_argument(
        "--out", type=local_path, help="a directory for report.json, predictions.csv, confusion.png"
    )
    add_view_arguments(parser, "10", "data=STORE labels=LABELS")


def run(args: argparse.Namespace) -> int:
    """Tests the classifiers and prints a table."""
    classifiers, words = split_words(args.classifier)
    config = load_config(InferenceConfig, None, words + args.overrides)
    if not classifiers:
        raise UsageError("the classifier is missing: name it before the settings")
    clips = parse_clips(args.clips)
    from vimpac.eval.evaluate import evaluate  # torch: seconds that --help need not wait
    from vimpac.eval.report import check_new
    from vimpac.train.distributed import is_main_process

    if args.out is not None:
        check_new(args.out)
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    skip_damaged = settings.pop("clips").skip_damaged
    report = evaluate(
        classifiers,
        **settings,
        skip_damaged=skip_damaged,
        clips=clips,
        crops=args.crops,
        split=args.split,
        say=_say,
    )
    if is_main_process():
        try:
            for line in table(report):
                print(on_one_line(line))
        finally:  # also where nobody reads what is printed
            if args.out is not None:
                report.write(args.out)
        if args.out is not None:
            print(on_one_line(str(args.out)))
    return 0


def table(report: Report) -> list[str]:
    """The scores, a line for every number of clips."""
    facts, best = report.facts, report.best
    views_per_s = facts["views"] / facts["seconds"]
    lines = [
        f"{best.videos} videos, {len(report.classes)} classes, crops {', '.join(facts['crops'])}, "
        f"{facts['views']} views in {facts['seconds']:.1f} s ({views_per_s:.1f}/s)",
        f"{'clips':>5}  {'top-1 of videos':22}  {'top-5':22}  {'mean of classes':>15}  of views",
    ]
    return lines + [_line(scores) for scores in report.scores]


def _line(scores: Scores) -> str:
    from vimpac.eval.metrics import in_percent

    top1 = in_percent(scores.top1, scores.top1_interval)
    top5 = in_percent(scores.top5, scores.top5_interval)
    views = "" if scores.clip_top1 is None else f"{scores.clip_top1:.1%}"
    return f"{scores.clips:5}  {top1:22}  {top5:22}  {scores.class_accuracy:15.1%}  {views:>8}"


def _say(line: str) -> None:
    print(on_one_line(f"vimpac: {line}"), file=sys.stderr)
