"""What the actions of `vimpac visualise` share: the clip that is drawn, the file, the words."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vimpac.commands.new_file import check_new
from vimpac.errors import UsageError
from vimpac.paths import local_path, on_one_line
from vimpac.settings import LARGEST

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vimpac.data.joined_store import Store
    from vimpac.pictures.clip import Clip
    from vimpac.tokenizers import Tokenizer

FRAMES = 5  # of a clip, where no checkpoint says it
MOST_FRAMES = 32
MOST_CLIPS, MOST_TOKENS = 64, 163_840  # over which shares are taken: fewer large clips


def add_file_arguments(parser: argparse.ArgumentParser, out: str, settings: str) -> None:
    """Declares what every action has.

    Args:
        parser: Of the action.
        out: The default of --out.
        settings: Names of the settings.
    """
    parser.add_argument(
        "--out",
        type=local_path,
        default=out,
        metavar="FILE",
        help="the PNG file (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of what is drawn by chance (default: %(default)s)"
    )
    parser.add_argument(
        "--weights",
        type=local_path,
        metavar="PATH",
        help="the tokenizer's weights, if it has any: the directory of encoder and decoder",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=settings)


def add_clip_arguments(parser: argparse.ArgumentParser, out: str, settings: str = "") -> None:
    """Declares which clip is drawn, and what every action has."""
    parser.add_argument(
        "--name", help="of a video of the store (default: that of --video, or the first)"
    )
    parser.add_argument(
        "--start",
        type=float,
        metavar="SECONDS",
        help="where in the video the clip begins (default: it is in the middle)",
    )
    parser.add_argument(
        "--video",
        type=local_path,
        metavar="FILE",
        help="the file of that video, for its pixels as they were before the tokenizer",
    )
    add_file_arguments(parser, out, f"data=STORE, clips.frames, clips.frame_stride{settings}")


def check(args: argparse.Namespace) -> None:
    """Raises UsageError for a value that is not legal, and for a file that cannot be written."""
    if not 0 <= args.seed < 2**63:
        raise UsageError(f"--seed {args.seed} must lie in [0, 2^63)")
    if getattr(args, "name", None) == "":
        raise UsageError("--name is empty: give the name of a video of the store")
    start = getattr(args, "start", None)
    if start is not None and not 0 <= start <= LARGEST:
        raise UsageError(f"--start {start:g} must be a time of the video, in seconds")
    check_new("--out", args.out, ".png")


@dataclasses.dataclass(frozen=True)
class Scene:
    """The clip that is drawn.

    Attributes:
        store: Where it is from.
        tokenizer: Of the store.
        clip: The clip.
        pixels: (`clip.real`, S, S, 3) uint8, if its file is given.
        seed: Of what is drawn by chance.
    """

    store: Store
    tokenizer: Tokenizer
    clip: Clip
    pixels: np.ndarray | None
    seed: int

    @property
    def tokens(self) -> Tensor:
        """Of the frames that are not PAD, (`clip.real`, H, W)."""
        return self.clip.tokens[: self.clip.real]

    @property
    def frames(self) -> np.ndarray:
        """The pixels or, where they are not known, what the tokens stand for."""
        from vimpac.pictures.clip import paint

        return paint(self.tokenizer, self.tokens) if self.pixels is None else self.pixels

    def others(self) -> Tensor:
        """Clips like this one, spread evenly over the store, at most `MOST_CLIPS`, (N, T, H, W)."""
        from vimpac.pictures.clip import even_clips

        most = max(1, min(MOST_CLIPS, MOST_TOKENS // self.clip.tokens.numel()))
        T, stride = len(self.clip.tokens), self.clip.stride
        return even_clips(self.store, frames=T, stride=stride, most=most)


def open_scene(
    args: argparse.Namespace, store: Store, frames: int | None, stride: int | None
) -> Scene:
    """Reads the clip that the arguments name, and says which it is.

    Args:
        args: With what `add_clip_arguments` declares.
        store: The videos.
        frames: Of the clip; None: `FRAMES`.
        stride: Stored frames from one to the next; None: 1.
    """
    from vimpac.pictures.clip import find_video, open_tokenizer, original_frames, read_clip

    frames = frames or FRAMES
    if frames > MOST_FRAMES:
        raise UsageError(
            f"a clip of {frames} frames is too long for a picture: clips.frames={MOST_FRAMES}"
        )
    tokenizer = open_tokenizer(store.meta, args.weights)
    name = args.name or (args.video.as_posix() if args.video else None)
    video = find_video(store, name) if name else 0
    start = None if args.start is None else round(args.start * store.meta.fps)
    clip = read_clip(store, video, frames=frames, stride=stride or 1, start=start)
    print(on_one_line(f"{clip} of '{store.meta.tokenizer}', seed {args.seed}"))
    pixels = None
    if args.video is not None:
        pixels, same = original_frames(args.video, clip, store.meta, tokenizer)
        if same < 1:
            say(f"{same:.1%} of the tokens of {args.video} are those of the store")
    return Scene(store, tokenizer, clip, pixels, args.seed)


def say(line: str) -> None:
    """Prints a line beside the numbers."""
    print(on_one_line(f"vimpac: {line}"), file=sys.stderr)


def print_table(rows: Sequence[Sequence[Any]]) -> None:
    """Prints rows of words, the first column to the left, the others to the right."""
    texts = [[on_one_line(str(word)) for word in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for name, *rest in texts:
        others = (word.rjust(width) for word, width in zip(rest, widths[1:], strict=True))
        print("  ".join((name.ljust(widths[0]), *others)).rstrip())


def percent(share: float) -> str:
    """A share for a table."""
    return "-" if math.isnan(share) else f"{share:.1%}"
