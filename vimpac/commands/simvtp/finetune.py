"""`vimpac simvtp finetune`: two encoders from a pre-trained one, to search videos by text."""

from __future__ import annotations

import argparse

from vimpac.commands.run_arguments import add_run_arguments
from vimpac.errors import UsageError
from vimpac.paths import local_path
from vimpac.presets import config_help
from vimpac.settings import load_config, to_yaml

DESCRIPTION = "Trains a video and a text encoder to search videos by text."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.epilog = (
        "example: vimpac simvtp finetune CHECKPOINT --config msrvtt data=MSRVTT split=1k-A "
        "videos=videos/ out=runs/msrvtt"
    )
    parser.add_argument(
        "checkpoint", type=local_path, nargs="?", help="a pre-trained model (not with --show)"
    )
    parser.add_argument("--config", metavar="NAME|FILE", help=config_help("simvtp/finetune"))
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    from vimpac.simvtp.run_config import SimVTPFinetuneConfig

    overrides = args.overrides
    if args.checkpoint is not None and "=" in str(args.checkpoint) and not args.checkpoint.exists():
        overrides, args.checkpoint = [str(args.checkpoint), *overrides], None
    config = load_config(SimVTPFinetuneConfig, args.config, overrides)
    if args.show:
        print(to_yaml(config, comments=True), end="")
        return 0
    if args.checkpoint is None:
        raise UsageError("give the pre-trained model: a checkpoint of `vimpac simvtp pretrain`")
    from vimpac.simvtp.finetune import finetune  # torch: seconds that --show need not wait
    from vimpac.train.distributed import is_main_process

    result = finetune(config, args.checkpoint, resume=args.resume)
    if is_main_process():
        print(f"step {result.step}: {result.checkpoint}")
    return 0
