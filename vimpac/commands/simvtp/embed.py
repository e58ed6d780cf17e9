"""`vimpac simvtp embed`: writes features into a .npz file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vimpac.commands.new_file import check_new
from vimpac.commands.simvtp.arguments import (
    VIEWS,
    add_model_arguments,
    add_video_arguments,
    check_range,
    settle,
)
from vimpac.data.annotations.files import read_lines
from vimpac.errors import UsageError
from vimpac.files import whole_file
from vimpac.paths import local_path, on_one_line

DESCRIPTION = "Writes L2-normalised features of videos or of texts: their product is the cosine."

LONGEST = 2000  # characters of a text: in an array of texts each takes as much as the longest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.epilog = "example: vimpac simvtp embed CHECKPOINT --videos videos/ --out features.npz"
    add_model_arguments(parser)
    add_video_arguments(parser)
    parser.add_argument(
        "--texts",
        type=local_path,
        metavar="FILE",
        help=f"a text on every line, of up to {LONGEST:,} characters",
    )
    parser.add_argument(
        "--out", type=local_path, required=True, help="the .npz file: names, features"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    if bool(args.videos) == bool(args.texts):
        raise UsageError("give one of --videos and --texts")
    settle(args, VIEWS, VIEWS if args.texts else (), "--texts")
    check_new("--out", args.out, ".npz")
    import numpy as np

    from vimpac.simvtp.frames import open_frames
    from vimpac.simvtp.search import embed_videos, notes_on, open_retriever

    if args.texts:
        names = read_texts(args.texts)
        retriever = open_retriever(args)
        for note in notes_on(retriever, names):
            print(on_one_line(note), file=sys.stderr)
        features = retriever.embed_captions(names)
    else:
        check_range(args)
        gallery = embed_videos(args, open_retriever(args), open_frames(args.videos))
        names, features = gallery.names, gallery.features
    with whole_file(args.out) as temporary, temporary.open("wb") as file:
        np.savez(file, names=np.array(names), features=features.numpy())
    print(f"{args.out}: {features.shape[0]} x {features.shape[1]}")
    return 0


def read_texts(file: Path) -> list[str]:
    """The lines of a file that are not empty.

    Raises:
        UsageError: There is no such file, it has no text, or one that is too long.
    """
    texts = []
    for place, text in read_lines(file):
        if len(text) > LONGEST:
            raise UsageError(
                f"{file}, {place} has {len(text):,} characters: shorten it to {LONGEST:,}"
            )
        texts.append(text)
    if not texts:
        raise UsageError(f"{file} has no text")
    return texts
