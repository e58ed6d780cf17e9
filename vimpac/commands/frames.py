"""`vimpac frames VIDEOS... --out STORE`: video files to a store of their frames, for SimVTP.

A clip of a store is read without decoding, but a frame takes 3 * size * size bytes. Exit codes are
those of `vimpac tokenize`.
"""

from __future__ import annotations

import argparse

from vimpac.commands.help_text import DefaultsFormatter
from vimpac.commands.tokenize import add_video_arguments, make_store, read_fps


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "frames",
        help="make a store of the frames of video files",
        description="Makes a store of the frames of video files: the shorter side is resized and "
        "the middle cut out. Killed or failed, the same command again continues. Videos that "
        "cannot be read are listed and recorded in the store.",
        formatter_class=DefaultsFormatter,
    )
    add_video_arguments(parser, fps=6, size=224)


def run(args: argparse.Namespace) -> int:
    """Makes the store and prints what is in it."""
    from vimpac.data.tokenize import TokenizeSettings

    settings = TokenizeSettings(fps=read_fps(args), size=args.size, tokenizer="pixels")
    return make_store(args, settings, "storing frames")
