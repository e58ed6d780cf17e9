"""What every command that makes a store prints of it, and when it counts as a failure."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vimpac.errors import UsageError, VimpacError
from vimpac.paths import on_one_line

if TYPE_CHECKING:
    from vimpac.data.store import TokenStore

MAX_SKIPPED = 5.0  # percent
MOST_LISTED = 100


def add_max_skipped_argument(parser: argparse.ArgumentParser) -> None:
    """Declares --max-skipped."""
    parser.add_argument(
        "--max-skipped",
        default=argparse.SUPPRESS,
        type=float,
        metavar="PERCENT",
        help="exit with 1 if more of the videos could not be read "
        f"(default: {MAX_SKIPPED:g}, but one video at least)",
    )


def check_max_skipped(args: argparse.Namespace) -> None:
    """Raises UsageError unless --max-skipped is a percentage."""
    share = getattr(args, "max_skipped", MAX_SKIPPED)
    if not 0 <= share <= 100:
        raise UsageError(f"--max-skipped {share:g} must lie in [0, 100] percent")


def report_store(
    args: argparse.Namespace, out: Path, store: TokenStore, *, part: bool = False
) -> None:
    """Prints what is in a store that was made.

    Args:
        args: With what `add_max_skipped_argument` declares.
        out: Where the store is.
        store: The same.
        part: Whether it is one of many, which are judged together when they are merged: then any
            number of videos may be skipped, unless --max-skipped is given.

    Raises:
        VimpacError: Too many videos could not be read.
    """
    frames, videos = int(store.frames.sum()), len(store) + len(store.skipped)
    count = "1 video" if len(store) == 1 else f"{len(store)} videos"
    seconds = frames / store.meta.fps
    print(on_one_line(f"{out}: {count}, {frames} frames, {seconds:.0f} s"))
    if store.notes:
        _list(f"{len(store.notes)} videos are damaged in part:", store.notes, out)
    if not store.skipped:
        return
    unread = f"{len(store.skipped)} of {videos} videos could not be read"
    _list(f"{unread}:", store.skipped, out)
    allowed = float(videos) if part else max(1.0, MAX_SKIPPED / 100 * videos)
    if hasattr(args, "max_skipped"):
        allowed = args.max_skipped / 100 * videos
    if len(store.skipped) > allowed:
        raise VimpacError(
            f"{unread}: {out} holds the others; if they are enough, raise --max-skipped"
        )


def _list(title: str, lines: list[tuple[str, str]], out: Path) -> None:
    """Prints what is to be said of some videos, to the standard error."""
    print(title, file=sys.stderr)
    for name, text in lines[:MOST_LISTED]:
        print(on_one_line(f"  {name}: {text}"), file=sys.stderr)
    if len(lines) > MOST_LISTED:
        more = f"  and {len(lines) - MOST_LISTED} more: see `vimpac store info {out}`"
        print(on_one_line(more), file=sys.stderr)
