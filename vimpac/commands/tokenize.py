"""`vimpac tokenize VIDEOS... --out STORE`: video files to a token store.

Exit codes: 0 the store is whole (videos that could not be read are listed and recorded in it),
1 failure, or more than --max-skipped of the videos could not be read, 2 usage.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from typing import TYPE_CHECKING

from vimpac.commands.help_text import DefaultsFormatter
from vimpac.commands.made_store import (
    add_max_skipped_argument,
    check_max_skipped,
    report_store,
)
from vimpac.commands.part_arguments import (
    add_part_arguments,
    make_parts,
    plan_of,
    which_part,
)
from vimpac.cpus import usable_cpus
from vimpac.errors import UsageError
from vimpac.paths import local_path, on_one_line

if TYPE_CHECKING:
    from vimpac.data.tokenize import TokenizeSettings


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "tokenize",
        help="make a token store of video files",
        description="Makes a token store of video files. Killed or failed, the same command "
        "again continues. Videos that cannot be read are listed and recorded in the store.",
        formatter_class=DefaultsFormatter,
    )
    add_video_arguments(parser, fps=2, size=128)
    parser.add_argument("--tokenizer", default="patch", help="patch (built in) or dalle")
    parser.add_argument("--weights", type=local_path, help="the tokenizer's weights")
    parser.add_argument("--device", default="cpu", help="where the tokenizer dalle computes")
    parser.add_argument(
        "--dtype",
        default="float32",
        help="of its arithmetic: float32, or faster on a GPU float16 (as in the published code) or "
        "bfloat16; other dtypes give other ids, so the store notes it",
    )
    parser.add_argument(
        "--variants",
        default="pretrain",
        help="pretrain (centre crop), finetune (12: 2 scales x 3 crops x flip), "
        "finetune-noflip (6), or names such as 1.25x-topleft-flip,1x-center",
    )


def add_video_arguments(parser: argparse.ArgumentParser, *, fps: int, size: int) -> None:
    """Declares what every store of videos needs, with the defaults of the command."""
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="files, or directories of them")
    parser.add_argument(
        "--list",
        metavar="FILE",
        help="a file with one path on each line, which names the video; - reads standard input",
    )
    parser.add_argument("--out", required=True, type=local_path, help="where the store is to be")
    add_part_arguments(parser)
    parser.add_argument("--fps", default=str(fps), help="frames per second of video time")
    parser.add_argument("--size", default=size, type=int, help="side of the square crop in pixels")
    parser.add_argument(
        "--workers",
        default=argparse.SUPPRESS,
        type=int,
        help="processes that decode, and encode unless the tokenizer computes on a GPU; 0 works in "
        "this one, which a video that crashes or hangs then ends (default: one per CPU)",
    )
    add_max_skipped_argument(parser)
    parser.add_argument(
        "--video-timeout",
        default=300.0,
        type=float,
        metavar="SECONDS",
        help="end a worker whose video makes no progress for so long; with --workers 0 there is no "
        "such limit",
    )


def run(args: argparse.Namespace) -> int:
    """Makes the store and prints what is in it."""
    from vimpac.data.tokenize import TokenizeSettings
    from vimpac.data.variants import parse_variants

    settings = TokenizeSettings(
        fps=read_fps(args),
        size=args.size,
        variants=parse_variants(args.variants),
        tokenizer=args.tokenizer,
        weights=args.weights,
        device=args.device,
        dtype=args.dtype,
    )
    return make_store(args, settings, "tokenizing")


def read_fps(args: argparse.Namespace) -> Fraction:
    """The frame rate that was given."""
    try:
        return Fraction(args.fps)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--fps {args.fps} is no number: give e.g. 2 or 30000/1001") from None


def make_store(args: argparse.Namespace, settings: TokenizeSettings, doing: str) -> int:
    """Makes a store of the videos of a command line and prints what is in it.

    Args:
        args: With what `add_video_arguments` declares.
        settings: How.
        doing: What the progress bar says.

    Returns:
        The exit code.
    """
    from rich.console import Console

    from vimpac.data.sources import find_videos
    from vimpac.data.tokenize import tokenize_videos
    from vimpac.data.writer import is_complete
    from vimpac.progress import progress_bar, terminated_as_interrupted

    console = Console(stderr=True, soft_wrap=True, highlight=False)

    def say(line: str) -> None:
        console.print(on_one_line(line), markup=False)

    if not args.videos and args.list is None:
        raise UsageError("no video is given: name files or directories, or give --list FILE")
    if not args.video_timeout > 0:
        raise UsageError(f"--video-timeout {args.video_timeout:g} must be positive")
    check_max_skipped(args)
    if hasattr(args, "parts") and args.dask is None:
        raise UsageError(f"--parts {args.parts} needs --dask; for one part give --part I/N")
    part, out = getattr(args, "part", None), args.out
    if part is not None:
        if args.dask is not None:
            raise UsageError("--part makes one part, --dask all of them: give one of the two")
        number, parts = which_part(part)
        plan = plan_of(args, parts, say)
        videos, out = plan.videos(number), plan.store(number)
    else:
        videos = find_videos(args.videos, args.list, report=say)
    with progress_bar(console) as progress, terminated_as_interrupted():
        task = progress.add_task(doing, total=len(videos))

        def report(done: int, line: str) -> None:
            if line:
                say(line)
            progress.update(task, completed=done)

        if args.dask is not None and not is_complete(out):
            store = make_parts(args, videos, settings, report)
        else:
            store = tokenize_videos(
                videos,
                out,
                settings,
                workers=min(_workers(args), len(videos)),
                timeout=args.video_timeout,
                may_be_empty=part is not None,
                report=report,
                speed=say,
            )
    report_store(args, out, store, part=part is not None)
    return 0


def _workers(args: argparse.Namespace) -> int:
    """How many processes work."""
    workers = getattr(args, "workers", usable_cpus())
    if workers < 0:
        raise UsageError(f"--workers {workers} must not be negative")
    return workers
