"""`vimpac extract CKPT data=STORE --out FILE`: the features of videos, in a file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack

from vimpac.commands.view_arguments import (
    add_feature_arguments,
    add_view_arguments,
    one_checkpoint,
    parse_number_of_clips,
)
from vimpac.eval.config import FeatureConfig
from vimpac.paths import local_path, on_one_line
from vimpac.settings import load_config


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "extract",
        usage="%(prog)s [options] checkpoint [key=value ...]",
        help="write the features of videos into a file",
        description="Writes names and features (N, D) of the videos of a store into a file, in the "
        "order of the store. Start it with torchrun for several devices.",
        epilog="example: vimpac extract runs/a/checkpoints/step-00012000 data=store --out f.npz",
    )
    add_feature_arguments(parser)
    parser.add_argument(
        "--out",
        required=True,
        type=local_path,
        metavar="FILE",
        help="what is written: .npz, .safetensors or .parquet",
    )
    parser.add_argument(
        "--per-clip",
        action="store_true",
        help="write features (N, crops * clips, D), and which clips they are, not the mean",
    )
    add_view_arguments(parser, "10", "data=STORE, clips.frames, clips.frame_stride")


def run(args: argparse.Namespace) -> int:
    """Writes the file."""
    checkpoint, words = one_checkpoint(args.checkpoint)
    config = load_config(FeatureConfig, None, words + args.overrides)
    clips = parse_number_of_clips(args.clips)
    from rich.console import Console

    from vimpac.eval.extract import extract_to_file  # torch: seconds that --help need not wait
    from vimpac.progress import progress_bar, terminated_as_interrupted
    from vimpac.train.distributed import is_main_process

    console = Console(stderr=True, soft_wrap=True, highlight=False)

    def say(line: str) -> None:
        console.print(on_one_line(f"vimpac: {line}"), markup=False)

    with ExitStack() as stack, terminated_as_interrupted():

        def begin(videos: int) -> Callable[[], object]:
            progress = stack.enter_context(progress_bar(console))
            task = progress.add_task("extracting", total=videos)
            return lambda: progress.advance(task)

        table = extract_to_file(
            checkpoint,
            config,
            args.out,
            pool=args.pool,
            per_clip=args.per_clip,
            clips=clips,
            crops=args.crops,
            say=say,
            begin=begin,
        )
    if is_main_process():
        print(on_one_line(f"{args.out}: {' x '.join(map(str, table.shape))}"))
    return 0
