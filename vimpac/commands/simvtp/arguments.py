"""The arguments that the actions share which apply a model to videos."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path

from vimpac.errors import UsageError
from vimpac.files import temporary_path
from vimpac.paths import local_path

MOST_VIEWS = 100  # of a video, whose frames are all in memory at once


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the checkpoint and where it runs."""
    parser.add_argument("checkpoint", type=local_path, help="a checkpoint of a run")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), default="fp32", help="(default: %(default)s)"
    )


def add_video_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the videos, and by which views they are judged."""
    parser.add_argument(
        "--videos", default="", help="directory of video files, or a store of `vimpac frames`"
    )
    parser.add_argument("--clips", type=int, default=3, help="of a video (default: %(default)s)")
    parser.add_argument("--crops", type=int, default=3, help="of a clip (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=2, help="processes that decode (default: %(default)s)"
    )


def check_range(args: argparse.Namespace) -> None:
    """Raises UsageError for numbers out of range, or without videos."""
    for name, least in (("clips", 1), ("crops", 1), ("workers", 0), ("top", 1), ("rerank", 0)):
        value = getattr(args, name, least)
        if not least <= value <= 10_000:
            raise UsageError(f"--{name} {value} must lie in [{least}, 10,000]")
    views = args.clips * args.crops
    if views > MOST_VIEWS:
        raise UsageError(
            f"--clips {args.clips} x --crops {args.crops} are {views:,} views of a video, which "
            f"must be at most {MOST_VIEWS}"
        )
    if not args.videos:
        raise UsageError("--videos is missing: give the directory of the video files")


def check_new(option: str, file: Path, suffix: str = "") -> None:
    """Raises UsageError for a file that is there, or could not be written after all the work."""
    if suffix and file.suffix != suffix:
        raise UsageError(f"{option} {file} must end in {suffix}")
    if not os.path.isdir(file.parent):
        raise UsageError(f"{option} {file} needs the directory {file.parent}: name another file")
    if os.path.lexists(file):
        raise UsageError(f"{option} {file} exists already: remove it or name another file")
    temporary = temporary_path(file)
    try:
        with suppress(FileExistsError):  # it is being written, or a process was killed meanwhile
            temporary.open("xb").close()
            temporary.unlink()
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise UsageError(f"{option} {file} {reason}: name another file") from None
