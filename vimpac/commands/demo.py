"""`vimpac demo`: tokenises two real videos, pre-trains a tiny model and paints its predictions."""

from __future__ import annotations

import argparse
import sys

from vimpac.commands.help_text import DefaultsFormatter
from vimpac.paths import local_path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "demo",
        help="see it work on two real videos, in a minute or two",
        description="Tokenises two real videos (or yours), pre-trains a tiny model on the CPU and "
        "paints what it predicts. Exit code 1 if a loss did not fall below chance.",
        formatter_class=DefaultsFormatter,
    )
    parser.add_argument("videos", nargs="*", help="video files instead of the two samples")
    parser.add_argument(
        "--out", default="vimpac-demo", type=local_path, help="directory of the results"
    )
    parser.add_argument("--seconds", default=60.0, type=float, help="time for the training")


def run(args: argparse.Namespace) -> int:
    """Runs the demo and says what came of it."""
    from vimpac.demo import run_demo  # torch: seconds that --help need not wait

    outcome = run_demo(args.out, seconds=args.seconds, videos=args.videos)
    print(
        f"\ntoken loss           {outcome.mask_loss:6.3f}   chance {outcome.mask_chance:.3f}\n"
        f"masked tokens right  {outcome.score.model:6.1%}   {', '.join(outcome.score.baselines)}\n"
        f"contrastive loss     {outcome.cl_loss:6.3f}   "
        f"counting tokens {outcome.cl_counting:.3f}, chance {outcome.cl_chance:.3f}\n"
    )
    for note in outcome.notes:
        print(f"note: {note}")
    print(
        f"picture      {outcome.picture}\n"
        f"run          {outcome.run} (config.yaml, log.jsonl, tensorboard/, checkpoints/)\n"
        f"token store  {args.out / 'videos'}\n"
    )
    if not outcome.learned:
        print("vimpac: a loss did not fall below chance: give it more --seconds", file=sys.stderr)
        return 1
    print(
        "Next, on your videos (docs/start.md goes on to a classifier; small is for GPUs):\n"
        "  vimpac tokenize VIDEOS... --out store --variants finetune\n"
        "  vimpac pretrain --config tiny data=store out=runs/tiny\n"
        f"  tensorboard --logdir {outcome.run}"
    )
    return 0
