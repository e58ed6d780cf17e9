"""Five even frames of some videos, with their classes (Fig. 3 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from vimpac.data.even_clips import even_starts
from vimpac.data.joined_store import Store
from vimpac.data.random import SAMPLES, words
from vimpac.paths import on_one_line
from vimpac.pictures.clip import central_variant, in_seconds, paint
from vimpac.pictures.sheet import LINE, MARGIN, Row, Sheet, size_of_rows
from vimpac.tokenizers import Tokenizer
from vimpac.tokens import PAD_TOKEN

FRAMES = 5
_LONGEST = 26  # characters of a name on a line


class Sample(NamedTuple):
    """A video.

    Attributes:
        name: Of the video.
        class_name: Of its class; empty if it has none.
        length: Stored frames that it has.
        places: Which of them are shown.
        frames: (`len(places)`, S, S, 3) uint8.
    """

    name: str
    class_name: str
    length: int
    places: list[int]
    frames: np.ndarray


def choose_videos(videos: int, classes: Mapping[int, str], count: int, seed: int = 0) -> list[int]:
    """Draws videos, of as many classes as there can be.

    Args:
        videos: How many there are.
        classes: The class of each that has one; if none has, all videos are drawn from.
        count: How many are drawn at most.
        seed: Of the draw.

    Returns:
        Their numbers; class by class in the order of the names.
    """
    numbers = [*classes] if classes else [*range(videos)]
    order = _shuffled(numbers, seed)
    rounds: dict[str, int] = {}
    turn = {}
    for video in order:  # the first video of every class, then the second, ...
        name = classes.get(video, "")
        turn[video] = rounds.setdefault(name, 0)
        rounds[name] += 1
    chosen = sorted(order, key=lambda video: turn[video])[:count]
    return sorted(chosen, key=lambda video: (classes.get(video, ""), video))


def _shuffled(numbers: Sequence[int], seed: int) -> list[int]:
    keys = words(SAMPLES, seed, 0, len(numbers))
    return [numbers[i] for i in np.argsort(keys, kind="stable")]


def read_sample(store: Store, video: int, class_name: str, tokenizer: Tokenizer) -> Sample:
    """Even frames of a video, the first and the last among them, fewer if it has fewer.

    Args:
        store: The store.
        video: Its number there.
        class_name: Of its class.
        tokenizer: Paints them.
    """
    length = store.num_frames(video)
    places = sorted({*even_starts(length - 1, FRAMES)})
    many, variant = [video] * len(places), central_variant(store.meta)
    tokens = store.read_many(many, places, 1, variants=variant, fill=PAD_TOKEN)[:, 0]
    frames = paint(tokenizer, torch.from_numpy(tokens))
    return Sample(store.name(video), class_name, length, places, frames)


def draw_samples(samples: Sequence[Sample], fps: float, path: Path) -> None:
    """Draws the videos, one below the other.

    Args:
        samples: The videos.
        fps: Stored frames per second.
        path: The PNG file.
    """
    width, one = size_of_rows(1, FRAMES)
    sheet = Sheet(width + 2 * MARGIN, len(samples) * (one + 0.08) + 2 * LINE + 2 * MARGIN)
    title = "Even frames of videos, painted from their tokens"
    sheet.words(MARGIN, MARGIN, title, 12, weight="bold")
    for k, sample in enumerate(samples):
        y = MARGIN + 1.5 * LINE + k * (one + 0.08)
        label = [_cut(sample.class_name)] if sample.class_name else []
        name = "\n".join([*label, _cut(sample.name), in_seconds(sample.length / fps)])
        titles = [in_seconds(place / fps) for place in sample.places]
        sheet.rows(MARGIN, y, [Row(name, sample.frames)], titles)
    sheet.write(path)


def _cut(name: str) -> str:
    """A name that fits beside the frames: its end, which tells videos apart."""
    name = on_one_line(name)
    return name if len(name) <= _LONGEST else f"\u2026{name[1 - _LONGEST :]}"
