"""`vimpac predict CLASSIFIER VIDEO...`: which class a video file shows.

Exit codes: 0 every video was classified, 1 some could not be read, 2 usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from vimpac.commands.help_text import DefaultsFormatter
from vimpac.commands.view_arguments import parse_number_of_clips
from vimpac.cpus import usable_cpus
from vimpac.errors import UsageError, VimpacError
from vimpac.paths import local_path, on_one_line

if TYPE_CHECKING:
    from vimpac.eval.predict import Prediction


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "predict",
        help="classify video files",
        description="Classifies video files, tokenised as those that the classifier was trained "
        "on. Videos that cannot be read are listed; the others are classified all the same.",
        formatter_class=DefaultsFormatter,
    )
    parser.add_argument("classifier", help="a checkpoint of `vimpac finetune`")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="files, or directories of them")
    parser.add_argument("--top", default=5, type=int, help="classes that are printed of a video")
    parser.add_argument("--json", action="store_true", help="print one JSON list of all videos")
    parser.add_argument("--clips", default="10", metavar="N", help="evenly spaced, of a video")
    parser.add_argument(
        "--crops",
        default="all",
        metavar="all|center|NAMES",
        help="all unflipped ones at scale 1 that it was trained on, or variants by name",
    )
    parser.add_argument("--weights", type=local_path, help="the tokenizer's weights, if it has any")
    parser.add_argument("--batch", default=32, type=int, help="views at once")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument(
        "--workers",
        default=argparse.SUPPRESS,  # depends on the number of videos
        type=int,
        help="processes that decode and tokenise; 0: this one (default: 0 for a single video, else "
        "one per CPU)",
    )
    parser.add_argument(
        "--video-timeout",
        default=300.0,
        type=float,
        metavar="SECONDS",
        help="end a worker whose video makes no progress for so long",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the predictions."""
    clips = parse_number_of_clips(args.clips)
    if args.top < 1:
        raise UsageError(f"--top {args.top} must be positive")
    from rich.console import Console

    from vimpac.data.sources import find_videos
    from vimpac.eval.predict import Predictor
    from vimpac.progress import progress_bar

    console = Console(stderr=True, soft_wrap=True, highlight=False)

    def say(line: str) -> None:
        console.print(on_one_line(line), markup=False)

    predictor = Predictor(
        args.classifier,
        clips=clips,
        crops=args.crops,
        weights=args.weights,
        batch=args.batch,
        device=args.device,
        precision=args.precision,
    )
    videos = find_videos(args.videos, report=say)
    workers = _workers(args, len(videos))
    rows, unread = list[dict[str, Any]](), 0
    with progress_bar(console) as progress:
        task = progress.add_task("predicting", total=len(videos))
        for found in predictor.predict(videos, workers=workers, timeout=args.video_timeout):
            progress.advance(task)
            unread += not found.classes
            if found.note:
                say(f"{found.name}: {found.note}")
            if args.json:
                rows.append(_row(found, args.top))
            elif found.classes:
                print(on_one_line(_line(found, args.top)), flush=True)
    if args.json:
        json.dump(rows, sys.stdout, indent=1)
        print()
    if unread:
        raise VimpacError(f"{unread} of {len(videos)} videos could not be read")
    return 0


def _line(found: Prediction, top: int) -> str:
    classes = ", ".join(f"{name} {p:.1%}" for name, p in found.classes[:top])
    return f"{found.name}: {classes}"


def _row(found: Prediction, top: int) -> dict[str, Any]:
    classes = [{"class": name, "p": round(p, 6)} for name, p in found.classes[:top]]
    return {"video": found.name, "classes": classes, "note": found.note}


def _workers(args: argparse.Namespace, videos: int) -> int:
    """How many processes decode and tokenise."""
    workers = getattr(args, "workers", 0 if videos == 1 else usable_cpus())
    if workers < 0:
        raise UsageError(f"--workers {workers} must not be negative")
    if not args.video_timeout > 0:
        raise UsageError(f"--video-timeout {args.video_timeout:g} must be positive")
    return min(workers, videos)
