"""`vimpac tokenize VIDEOS... --out STORE`: video files to a token store.

Exit codes: 0 the store is whole (videos that could not be read are listed and recorded in it),
1 failure or no readable video, 2 usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from fractions import Fraction
from typing import TYPE_CHECKING

from vimpac.errors import UsageError
from vimpac.paths import local_path, on_one_line

if TYPE_CHECKING:  # optional at run time
    from rich.console import Console
    from rich.progress import Progress

GPU_WORKERS = 2  # one decodes while the other encodes; each holds the weights once more


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "tokenize",
        help="make a token store of video files",
        description="Makes a token store of video files. Killed or failed, the same command "
        "again continues. Videos that cannot be read are listed and recorded in the store.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="files, or directories of them")
    parser.add_argument(
        "--list",
        metavar="FILE",
        help="a file with one path on each line, which names the video; - reads standard input",
    )
    parser.add_argument("--out", required=True, type=local_path, help="where the store is to be")
    parser.add_argument("--fps", default="2", help="frames per second of video time")
    parser.add_argument("--size", default=128, type=int, help="side of the square crop in pixels")
    parser.add_argument("--tokenizer", default="patch", help="patch (built in) or dalle")
    parser.add_argument("--weights", type=local_path, help="the tokenizer's weights")
    parser.add_argument("--device", default="cpu", help="where the tokenizer computes")
    parser.add_argument(
        "--variants",
        default="pretrain",
        help="pretrain (centre crop), finetune (12: 2 scales x 3 crops x flip), "
        "finetune-noflip (6), or names such as 1.25x-topleft-flip,1x-center",
    )
    parser.add_argument(
        "--workers",
        default=argparse.SUPPRESS,  # depends on the device
        type=int,
        help="processes, each with a tokenizer of its own (default: one per CPU, "
        f"but at most {GPU_WORKERS} where the tokenizer computes on a GPU)",
    )


def run(args: argparse.Namespace) -> int:
    """Makes the store and prints what is in it."""
    from rich.console import Console

    from vimpac.data.sources import find_videos
    from vimpac.data.tokenize import TokenizeSettings, tokenize_videos
    from vimpac.data.variants import parse_variants

    try:
        fps = Fraction(args.fps)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--fps {args.fps} is no number: give e.g. 2 or 30000/1001") from None
    settings = TokenizeSettings(
        fps=fps,
        size=args.size,
        variants=parse_variants(args.variants),
        tokenizer=args.tokenizer,
        weights=args.weights,
        device=args.device,
    )
    console = Console(stderr=True, soft_wrap=True, highlight=False)

    def say(line: str) -> None:
        console.print(on_one_line(line), markup=False)

    if not args.videos and args.list is None:
        raise UsageError("no video is given: name files or directories, or give --list FILE")
    videos = find_videos(args.videos, args.list, report=say)
    with _progress(console) as progress:
        task = progress.add_task("tokenizing", total=len(videos))

        def report(done: int, problem: str) -> None:
            if problem:
                say(f"skipped {problem}")
            progress.update(task, completed=done)

        workers = min(_workers(args), len(videos))
        store = tokenize_videos(videos, args.out, settings, workers=workers, report=report)
    frames = int(store.frames.sum())
    print(f"{args.out}: {len(store)} videos, {frames} frames, {frames / store.meta.fps:.0f} s")
    if store.skipped:
        print(f"{len(store.skipped)} of {len(videos)} videos could not be read:", file=sys.stderr)
        for name, reason in store.skipped:
            print(on_one_line(f"  {name}: {reason}"), file=sys.stderr)
    return 0


def _workers(args: argparse.Namespace) -> int:
    """How many processes work."""
    cpus = os.cpu_count() or 1
    default = cpus if args.device == "cpu" else min(cpus, GPU_WORKERS)
    workers = getattr(args, "workers", default)
    if workers < 1:
        raise UsageError(f"--workers {workers} must be positive")
    return workers


def _progress(console: Console) -> Progress:
    """A bar with the count, the time gone and the time left."""
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
        console=console,
    )
