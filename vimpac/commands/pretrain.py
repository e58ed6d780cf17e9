"""`vimpac pretrain`: pre-trains on a token store."""

from __future__ import annotations

import argparse

from vimpac.commands.run_arguments import add_row_argument, add_run_arguments
from vimpac.config import PretrainConfig
from vimpac.paper_rows import find_row
from vimpac.presets import config_help
from vimpac.settings import load_config, to_yaml


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "pretrain",
        help="pre-train on a token store",
        description="Pre-trains on a token store; start it with torchrun for several devices.",
        epilog="example: vimpac pretrain --config small data=store out=runs/a optim.lr=5e-4",
    )
    parser.add_argument("--config", metavar="NAME|FILE", help=config_help("pretrain"))
    add_row_argument(parser)
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    source, words = args.config, []
    if args.row is not None:
        row = find_row(args.row)
        source, words = source or row.config, row.pretrain_words()
    config = load_config(PretrainConfig, source, words + args.overrides)
    if args.show:
        print(to_yaml(config, comments=True), end="")
        return 0
    from vimpac.train.distributed import is_main_process
    from vimpac.train.pretrain import pretrain  # torch: seconds that --show need not wait

    result = pretrain(config, resume=args.resume)
    if is_main_process():
        print(f"step {result.step}: {result.checkpoint}")
    return 0
