"""The arguments of the commands that apply a trained model to the videos of a store."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from vimpac.errors import UsageError
from vimpac.settings import MOST_CLIPS


def add_view_arguments(parser: argparse.ArgumentParser, clips: str, settings: str) -> None:
    """Declares --clips, --crops and the settings.

    Args:
        parser: Of the command.
        clips: The default of --clips, and what it is.
        settings: Names of the settings that the command needs.
    """
    parser.add_argument(
        "--clips", default=clips, metavar="N", help=f"evenly spaced clips of a video ({clips})"
    )
    parser.add_argument(
        "--crops",
        default="all",
        metavar="all|center|NAMES",
        help="all unflipped ones at scale 1, the central one, or variants of the store (all)",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help=f"{settings}; also batch, workers, device, precision=bf16|fp32",
    )


def add_feature_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the checkpoint and --pool, of the commands that use a model's features."""
    parser.add_argument(
        "checkpoint", nargs="+", help="of `vimpac pretrain`, `finetune` or `convert`"
    )
    parser.add_argument(
        "--pool", default="cls", choices=("cls", "mean"), help="[CLS], or the mean of the tokens"
    )


def parse_clips(text: str) -> tuple[int, ...]:
    """Reads --clips: numbers of clips, rising.

    Raises:
        UsageError: One is no positive number.
    """
    try:
        clips = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        clips = (0,)
    if not 1 <= clips[0] <= clips[-1] <= MOST_CLIPS:
        raise UsageError(
            f"--clips {text}: give a positive number of clips, such as 10, up to {MOST_CLIPS:,}"
        )
    return clips


def parse_number_of_clips(text: str) -> int:
    """Reads --clips where it is a single number.

    Raises:
        UsageError: It is no positive number.
    """
    clips = parse_clips(text)
    if len(clips) > 1:
        raise UsageError(f"--clips {text}: give one number")
    return clips[0]


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tells paths from settings key=value, where a command takes several of both."""
    settings = [word for word in words if "=" in word and not os.path.lexists(word)]
    return [word for word in words if word not in settings], settings


def one_checkpoint(words: Sequence[str]) -> tuple[str, list[str]]:
    """The checkpoint, and the settings that stand beside it.

    Raises:
        UsageError: There is none, or more than one.
    """
    paths, settings = split_words(words)
    if not paths:
        raise UsageError("the checkpoint is missing: name it before the settings")
    if len(paths) > 1:
        raise UsageError(f"'{paths[1]}' is a second checkpoint, or not of the form key=value")
    return paths[0], settings
