"""The arguments that the actions share which apply a model to videos."""

from __future__ import annotations

import argparse
from collections.abc import Container, Mapping
from typing import Any

from vimpac.errors import UsageError
from vimpac.paths import local_path

VIEWS = {"clips": 3, "crops": 3, "workers": 2}  # defaults
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
    for name, what in zip(VIEWS, ("of a video", "of a clip", "processes that decode"), strict=True):
        parser.add_argument(f"--{name}", type=int, help=f"{what} (default: {VIEWS[name]})")


def settle(
    args: argparse.Namespace, defaults: Mapping[str, Any], unused: Container[str], by: str
) -> None:
    """Gives the options that were left out their values.

    Args:
        args: What was parsed; an option that was left out is None.
        defaults: Of these options.
        unused: Those of them that another option makes useless.
        by: This other option.

    Raises:
        UsageError: One of `unused` was given.
    """
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif name in unused:
            raise UsageError(f"--{name.replace('_', '-')} does not apply to {by}")


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
