"""`vimpac simvtp pretrain`: pre-trains on captioned videos."""

from __future__ import annotations

import argparse

from vimpac.commands.run_arguments import add_run_arguments
from vimpac.presets import config_help
from vimpac.settings import load_config, to_yaml

DESCRIPTION = "Pre-trains on captioned videos; start it with torchrun for several devices."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.epilog = (
        "example: vimpac simvtp pretrain --config base data=webvid.csv videos=videos/ out=runs/a"
    )
    parser.add_argument("--config", metavar="NAME|FILE", help=config_help("simvtp/pretrain"))
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
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
