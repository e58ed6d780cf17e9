"""`vimpac simvtp demo`: pre-trains a tiny model on moving shapes, and shows what it learned."""

from __future__ import annotations

import argparse
import sys

from vimpac.paths import local_path

DESCRIPTION = (
    "Draws videos of moving shapes with captions, pre-trains a tiny model on the CPU, searches "
    "videos by text and fills in what is masked. Exit code 1 if it learned too little."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--out",
        default="vimpac-simvtp-demo",
        type=local_path,
        help="directory of the results (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", default=90.0, type=float, help="time for the training (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the demo and says what came of it."""
    from vimpac.simvtp.demo import lines, run_demo  # torch: seconds that --help need not wait

    outcome = run_demo(args.out, seconds=args.seconds)
    print(
        "\n" + "\n".join(lines(outcome)) + f"\n\npicture  {outcome.picture}\nrun      {outcome.run}"
    )
    if not outcome.learned:
        print("vimpac: it learned too little: give it more --seconds", file=sys.stderr)
        return 1
    print(
        "\nNext:\n"
        f"  vimpac simvtp retrieve {outcome.checkpoint} --videos {args.out / 'shapes' / 'videos'} "
        '--query "a red square moves left"\n'
        "  vimpac simvtp pretrain --config base data=captions.csv videos=VIDEOS out=runs/simvtp"
    )
    return 0
