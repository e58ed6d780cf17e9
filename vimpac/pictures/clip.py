"""A clip of a store, and what it looks like: painted by the tokenizer, or decoded from its file."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vimpac.data.annotations.rows import Row
from vimpac.data.even_clips import even_starts
from vimpac.data.joined_store import Store
from vimpac.data.match_names import match_names
from vimpac.data.store_format import StoreMeta
from vimpac.errors import UsageError, VimpacError
from vimpac.tokenizers import TOKENIZERS, Tokenizer, get_tokenizer
from vimpac.tokens import PAD_TOKEN
from vimpac.train_config import clip_span

CHEQUERS = (205, 255)  # grey levels of what is hidden
RIGHT, WRONG = (60, 170, 80), (225, 50, 50)  # colours of guesses
LEAST_SAME = 0.5  # share of tokens by which a file is taken for the video of the store


@dataclasses.dataclass(frozen=True)
class Clip:
    """Some frames of a video of a store.

    Attributes:
        name: Of the video.
        tokens: (T, H, W) ids, int32, PAD where the video has no more frames.
        start: The stored frame with which it begins.
        stride: Stored frames from one to the next.
        fps: Stored frames per second.
    """

    name: str
    tokens: Tensor
    start: int
    stride: int
    fps: float

    @property
    def real(self) -> int:
        """Frames that are not PAD."""
        return int((self.tokens[:, 0, 0] != PAD_TOKEN).sum())

    @property
    def titles(self) -> list[str]:
        """When each of the frames that are not PAD is, in the video."""
        return [f"{(self.start + i * self.stride) / self.fps:.2f} s" for i in range(self.real)]

    def __str__(self) -> str:
        frames, *grid = self.tokens.shape
        padded = "" if self.real == frames else f" ({self.real} there are, the others are PAD)"
        return (
            f"video '{self.name}' from {in_seconds(self.start / self.fps)}: {frames} frames"
            f"{padded} {in_seconds(self.stride / self.fps)} apart, {grid[0]} x {grid[1]} tokens"
        )


def in_seconds(time: float) -> str:
    """A time in words, with three digits or in whole seconds: 12.3 s, 4567 s."""
    return f"{time:.3g} s" if time < 999.5 else f"{time:.0f} s"


def find_video(store: Store, name: str) -> int:
    """The number of a video by its name, directories and suffix apart.

    Args:
        store: The videos.
        name: As `labels.csv` could have it, or the path of its file.

    Raises:
        UsageError: No video or more than one has that name.
    """
    names = [store.name(i) for i in range(len(store))]
    if names.count(name) > 1:
        raise UsageError(f"{store.path} has {names.count(name)} videos '{name}': give one store")
    row = Row(name, "", "", Path(str(store.path)), "video")
    found = match_names([*dict.fromkeys(names)], [row], f"'{name}'")
    (video,) = found
    return names.index([*dict.fromkeys(names)][video])


def central_variant(meta: StoreMeta) -> int:
    """The variant that is shown: the central crop at scale 1, or the first."""
    return meta.variants.index("1x-center") if "1x-center" in meta.variants else 0


def read_clip(
    store: Store, video: int, *, frames: int, stride: int = 1, start: int | None = None
) -> Clip:
    """Reads a clip of the central crop.

    Args:
        store: The store.
        video: Its number there.
        frames: Frames T of the clip.
        stride: Stored frames from one to the next.
        start: The stored frame with which it begins; None: the clip is in the middle.

    Raises:
        UsageError: The video ends before `start`.
        VimpacError: The store is damaged there.
    """
    length = store.num_frames(video)
    if start is None:
        (start,) = even_starts(max(length - clip_span(frames, stride), 0), 1)
    if not 0 <= start < length:
        raise UsageError(
            f"no frame is {start / store.meta.fps:g} s into '{store.name(video)}', which has "
            f"{length} at {store.meta.fps:g} per second"
        )
    variant = central_variant(store.meta)
    tokens = store.read_many(
        [video], [start], frames, stride=stride, variants=variant, fill=PAD_TOKEN
    )
    return Clip(store.name(video), torch.from_numpy(tokens[0]), start, stride, store.meta.fps)


def even_clips(store: Store, *, frames: int, stride: int = 1, most: int) -> Tensor:
    """At most so many clips of the central crop, spread evenly over the videos and over time.

    Args:
        store: The store.
        frames: Frames T of a clip.
        stride: Stored frames from one to the next.
        most: Number of clips; a video gives several only if there are fewer videos.

    Returns:
        (N, T, H, W) ids, int32, PAD where a video has no more frames.
    """
    videos, starts = list[int](), list[int]()
    for video in sorted({*even_starts(len(store) - 1, min(most, len(store)))}):
        last = max(store.num_frames(video) - clip_span(frames, stride), 0)
        own = sorted({*even_starts(last, max(1, most // len(store)))})
        videos += [video] * len(own)
        starts += own
    variant = central_variant(store.meta)
    return torch.from_numpy(
        store.read_many(videos, starts, frames, stride=stride, variants=variant, fill=PAD_TOKEN)
    )


def open_tokenizer(meta: StoreMeta, weights: Path | None = None) -> Tokenizer:
    """The tokenizer of a store, which can decode.

    Args:
        meta: Of the store.
        weights: File or directory of its weights, if it has any.

    Raises:
        UsageError: It needs weights that are not given, or has no decoder, or they are not those
            of the store.
        VimpacError: They are damaged.
    """
    if meta.tokenizer not in TOKENIZERS:
        raise UsageError(
            f"the tokens are of '{meta.tokenizer}', which vimpac cannot decode, only "
            f"{' and '.join(TOKENIZERS)}"
        )
    tokenizer = get_tokenizer(meta.tokenizer, weights=weights)
    if meta.digest and tokenizer.digest != meta.digest:
        raise UsageError(
            f"the tokens are of weights {meta.digest[:12]}, --weights has {tokenizer.digest[:12]}: "
            "name those with which they were made"
        )
    tokenizer.decode(np.zeros((1, 1, 1), np.int32))  # says at once if it has no decoder
    return tokenizer


def paint(
    tokenizer: Tokenizer,
    ids: Tensor,  # (T, H, W)
) -> np.ndarray:  # (T, S, S, 3) uint8
    """The frames that tokens stand for, chequered where an id is not of the tokenizer."""
    known = ids < tokenizer.vocab_size
    frames = tokenizer.decode(torch.where(known, ids, 0).cpu().numpy()).transpose(0, 2, 3, 1)
    return cover(frames, ~known)


def cover(
    frames: np.ndarray,  # (T, S, S, 3) uint8
    mask: Tensor,  # (T, H, W) bool
) -> np.ndarray:  # (T, S, S, 3) uint8
    """The frames, chequered where a token is hidden."""
    patch = frames.shape[1] // mask.shape[1]
    y, x = np.indices(frames.shape[1:3]) // max(1, patch // 2)
    chequers = np.array(CHEQUERS, np.uint8)[(y + x) % 2]  # (S, S)
    return np.where(_pixels(mask, patch)[..., None], chequers[..., None], frames)


def mark(
    frames: np.ndarray,  # (T, S, S, 3) uint8
    right: Tensor,  # (T, H, W) bool
    wrong: Tensor,  # (T, H, W) bool
) -> np.ndarray:  # (T, S, S, 3) uint8
    """The frames, faded, with right guesses in green and wrong ones in red."""
    patch = frames.shape[1] // right.shape[1]
    marked = (frames // 3 + 170).astype(np.uint8)
    for cells, colour in ((right, RIGHT), (wrong, WRONG)):
        marked = np.where(_pixels(cells, patch)[..., None], np.array(colour, np.uint8), marked)
    return marked


def _pixels(cells: Tensor, patch: int) -> np.ndarray:
    """What is true of a token, for each of its pixels: (T, H, W) to (T, H * patch, W * patch)."""
    return cells.cpu().numpy().repeat(patch, 1).repeat(patch, 2)


def decode_frames(
    file: Path, meta: StoreMeta, places: Sequence[int], patch: int
) -> np.ndarray:  # (len(places), S, S, 3) uint8
    """Frames of a video file as they were when it was tokenised: the same moments, size and crop.

    Args:
        file: The video.
        meta: Of the store.
        places: The numbers of stored frames, rising.
        patch: Pixels of a token's side.

    Raises:
        UsageError: The store does not say how its frames were cut, or the video is too short.
        VimpacError: The file cannot be decoded.
    """
    from vimpac.data.frames import frames_at
    from vimpac.data.variants import make_variants, parse_variants
    from vimpac.data.video import UnreadableVideo

    name = meta.variants[central_variant(meta)]
    try:
        variants = parse_variants(name)
    except UsageError:  # a store of LMDBs has names of its own
        raise UsageError(f"the store does not say how its frames '{name}' were cut") from None
    if meta.height != meta.width:
        raise UsageError(f"maps of {meta.height} x {meta.width} tokens come of no square crop")
    fps, size = Fraction(meta.fps).limit_denominator(100_000), meta.height * patch
    wanted = {*places}
    shown = itertools.islice(frames_at(file, fps), places[-1] + 1)
    try:
        frames = [
            make_variants(frame, size, variants)[0].transpose(1, 2, 0)
            for i, frame in enumerate(shown)
            if i in wanted
        ]
    except UnreadableVideo as error:  # which is the reason alone
        raise VimpacError(f"{file} cannot be read: {error}") from error
    if len(frames) < len(places):
        raise UsageError(f"{file} ends before {places[-1] / meta.fps:g} s: it is another video")
    return np.stack(frames)


def original_frames(
    file: Path, clip: Clip, meta: StoreMeta, tokenizer: Tokenizer
) -> tuple[np.ndarray, float]:
    """The pixels of a clip, decoded from the file of its video.

    Args:
        file: The video.
        clip: The clip.
        meta: Of its store.
        tokenizer: Of the store.

    Returns:
        The frames (`clip.real`, S, S, 3) uint8, and the share of their tokens that are the clip's.

    Raises:
        UsageError: The file is of another video.
        VimpacError: It cannot be decoded.
    """
    places = [clip.start + i * clip.stride for i in range(clip.real)]
    frames = decode_frames(file, meta, places, tokenizer.patch)
    ids = tokenizer.encode(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
    same = float((ids == clip.tokens[: clip.real].numpy()).mean())
    if same < LEAST_SAME:
        raise UsageError(
            f"{file} is not '{clip.name}' of the store: {same:.0%} of its tokens are the same"
        )
    return frames, same
