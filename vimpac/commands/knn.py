"""`vimpac knn CKPT data=STORE labels=LABELS`: how good features are, without training anything."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from vimpac.commands.view_arguments import (
    add_feature_arguments,
    add_view_arguments,
    one_checkpoint,
    parse_number_of_clips,
)
from vimpac.eval.config import FeatureConfig
from vimpac.paths import on_one_line
from vimpac.settings import load_config

if TYPE_CHECKING:
    from vimpac.eval.knn import Judgement


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "knn",
        usage="%(prog)s [options] checkpoint [key=value ...]",
        help="test a model by the nearest neighbours of its features",
        description="Classifies the videos of test (and val) by the nearest training videos; "
        "nothing is trained. Start it with torchrun for several devices.",
        epilog="example: vimpac knn runs/a/checkpoints/step-00012000 data=ucf labels=ucf.csv",
    )
    add_feature_arguments(parser)
    parser.add_argument("-k", default=200, type=int, metavar="N", help="neighbours that vote (200)")
    parser.add_argument(
        "--temperature",
        default=0.07,
        type=float,
        metavar="T",
        help="a neighbour's weight is exp(cosine / T) (0.07)",
    )
    add_view_arguments(parser, "10", "data=STORE labels=LABELS, clips.frames, clips.frame_stride")


def run(args: argparse.Namespace) -> int:
    """Prints the accuracies."""
    checkpoint, words = one_checkpoint(args.checkpoint)
    config = load_config(FeatureConfig, None, words + args.overrides)
    clips = parse_number_of_clips(args.clips)
    from vimpac.eval.knn import judge_model  # torch: seconds that --help need not wait
    from vimpac.train.distributed import is_main_process

    found = judge_model(
        checkpoint,
        config,
        k=args.k,
        temperature=args.temperature,
        pool=args.pool,
        clips=clips,
        crops=args.crops,
        say=lambda line: print(on_one_line(f"vimpac: {line}"), file=sys.stderr),
    )
    if is_main_process():
        chance = f"chance {1 / found.classes:.1%}"
        print(f"{found.train} training videos, {found.classes} classes ({chance}), k {found.k}")
        for line in _lines(found):
            print(line)
    return 0


def _lines(found: Judgement) -> list[str]:
    """The accuracies and their 95 % intervals, a line for every split."""
    from vimpac.eval.metrics import in_percent

    most = min(5, found.classes)
    return [
        f"{name:5} top-1 {in_percent(*hits.share(hits.top1))}  "
        f"top-{most} {in_percent(*hits.share(hits.top5))}  of {hits.videos} videos"
        for name, hits in sorted(found.splits.items())
    ]
