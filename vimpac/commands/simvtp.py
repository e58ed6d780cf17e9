"""`vimpac simvtp`: the commands of the second system, one action each."""

from __future__ import annotations

import argparse

from vimpac.commands.run_arguments import add_run_arguments
from vimpac.presets import config_help
from vimpac.settings import load_config, to_yaml


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "simvtp",
        help="pre-train on videos and their captions",
        description="SimVTP (arXiv 2212.03490): masked pre-training on videos with captions.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_pretrain(actions)


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    return args.act(args)


def _add_pretrain(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "pretrain",
        help="pre-train on video files and a table of captions",
        description="Pre-trains on captioned videos; start it with torchrun for several devices.",
        epilog="example: vimpac simvtp pretrain --config base data=webvid.csv videos=videos out=a",
    )
    parser.add_argument("--config", metavar="NAME|FILE", help=config_help("simvtp/pretrain"))
    add_run_arguments(parser)
    parser.set_defaults(act=_pretrain)


def _pretrain(args: argparse.Namespace) -> int:
    from vimpac.simvtp.run_config import SimVTPConfig

    config = load_config(SimVTPConfig, args.config, args.overrides)
    if args.show:
        print(to_yaml(config, comments=True), end="")
        return 0
    from vimpac.simvtp.pretrain import pretrain  # torch: seconds that --show need not wait
    from vimpac.train.distributed import is_main_process

    result = pretrain(config, resume=args.resume)
    if is_main_process():
        print(f"step {result.step}: {result.checkpoint}")
    return 0
