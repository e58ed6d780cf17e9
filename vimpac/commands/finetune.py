"""`vimpac finetune`: trains and tests a classifier of videos."""

from __future__ import annotations

import argparse
import os

from vimpac.commands.run_arguments import add_run_arguments
from vimpac.config import FinetuneConfig
from vimpac.errors import UsageError
from vimpac.presets import config_help
from vimpac.settings import load_config, to_yaml


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
        "checkpoint", nargs="?", help="of `vimpac pretrain`, this or `vimpac convert`"
    )
    parser.add_argument("--config", metavar="NAME|FILE", help=config_help("finetune"))
    parser.add_argument(
        "--linear-probe", action="store_true", help="train the classifier only, on frozen features"
    )
    add_run_arguments(parser, "; labels= is a CSV file with the columns video,class,split")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.checkpoint and "=" in args.checkpoint and not os.path.exists(args.checkpoint):
        args.overrides.insert(0, args.checkpoint)
        args.checkpoint = None
    config = load_config(FinetuneConfig, args.config, args.overrides)
    if args.show:
        print(to_yaml(config, comments=True), end="")
        return 0
    if args.checkpoint is None:
        raise UsageError("the checkpoint is missing: name it before the settings")
    from vimpac.train.distributed import is_main_process
    from vimpac.train.finetune import finetune  # torch: seconds that --show need not wait

    result = finetune(config, args.checkpoint, probe=args.linear_probe, resume=args.resume)
    if is_main_process():
        print(f"clips {result.clip_accuracy:.4f} videos {result.video_accuracy:.4f}")
        print(result.checkpoint)
    return 0
