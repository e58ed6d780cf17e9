"""`vimpac simvtp visualise`: a picture of what a model fills in."""

from __future__ import annotations

import argparse
import sys

from vimpac.commands.new_file import check_new
from vimpac.commands.simvtp.arguments import add_model_arguments
from vimpac.errors import UsageError, VimpacError
from vimpac.paths import local_path

DESCRIPTION = (
    "Masks a video and its caption, and draws the frames before, masked and rebuilt, with masked "
    "words crossed out and what is predicted behind them."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.epilog = (
        'example: vimpac simvtp visualise CHECKPOINT clip.mp4 --caption "a man cooks" --out a.png'
    )
    add_model_arguments(parser)
    parser.add_argument("video", help="a video file")
    parser.add_argument("--caption", required=True, help="what it shows")
    parser.add_argument("--out", type=local_path, default="filled.png", help="the PNG file")
    parser.add_argument("--seed", type=int, default=0, help="of what is masked")


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    if not 0 <= args.seed < 2**31:
        raise UsageError(f"--seed {args.seed} must lie in [0, 2^31)")
    check_new("--out", args.out, ".png")
    if local_path(args.video).is_dir():
        raise UsageError(f"{args.video} is a directory: name one video file")
    import random

    from vimpac.simvtp.frames import VideoFiles
    from vimpac.simvtp.pictures import draw_filled
    from vimpac.simvtp.predictions import fill_in
    from vimpac.simvtp.search import open_retriever

    retriever = open_retriever(args)
    files = VideoFiles.find(args.video)
    video, reason = retriever.views(files, [0])[0]
    if reason:
        raise VimpacError(f"{args.video}: {reason}")
    ids = retriever.words.word_ids([args.caption])[0]
    if not ids:
        raise UsageError(f"--caption '{args.caption}' has no word")
    ratio, draw = retriever.model.text_config.ratio, random.Random(args.seed)
    most = min(retriever.model.text_config.length, retriever.model.config.text_positions) - 2
    places = [place for place in range(min(len(ids), most)) if draw.random() < ratio] or [0]
    unknown = ids.count(retriever.words.special.unk)
    if unknown:
        print(f"warning: the model does not know {unknown} of {len(ids)} words", file=sys.stderr)
    if len(ids) > most:
        print(f"warning: the caption is cut after {most} of {len(ids)} words", file=sys.stderr)
    video = video.to(retriever.world.device)
    filled = fill_in(
        retriever.joint_model,
        retriever.words,
        video,
        [args.caption],
        [places],
        masked_cells=retriever.masked_cells,
        seed=args.seed,
    )
    draw_filled(video, filled, args.out)
    (words,), (hidden,), (best,) = filled.words, filled.hidden, filled.predicted
    for word, covered, guess in zip(words, hidden, best, strict=True):
        print(f"{word} -> {guess}" if covered else word)
    print(args.out)
    return 0
