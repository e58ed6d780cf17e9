"""A trained model made ready for the videos of a store: the same clock, tokens and precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vimpac.checkpoints.description import DataFacts, ModelDescription, check_tokenizer
from vimpac.data.store_format import StoreMeta
from vimpac.errors import UsageError
from vimpac.model.encoder import VideoTokenEncoder


@dataclasses.dataclass(frozen=True)
class Reading:
    """How clips are read for a model.

    Attributes:
        frames: Of a clip, T.
        stride: Stored frames from one frame of a clip to the next.
        notes: What is not as it was in training, a line each.
    """

    frames: int
    stride: int
    notes: list[str]


def fit_to_store(
    encoder: VideoTokenEncoder,
    path: Path,
    description: ModelDescription,
    meta: StoreMeta,
    *,
    frames: int | None = None,
    stride: int | None = None,
) -> Reading:
    """Finds how clips are read for a model, and interpolates its positions to them.

    Args:
        encoder: Of the model.
        path: Its directory, for messages.
        description: What it says of the model.
        meta: Of the store.
        frames: Of a clip; None: as many as in training.
        stride: Stored frames from one of a clip to the next; None: as far apart as in training.

    Returns:
        How clips are read.

    Raises:
        UsageError: The tokens are another tokenizer's, or no frames are as far apart as in
            training.
    """
    was, notes = description.data, list[str]()
    frames = frames or encoder.grid[0]
    if was is not None:
        now = DataFacts.of(meta, stride or 1)
        check_tokenizer(path, was, now)
        if stride is not None and not was.same_interval(now):
            notes.append(
                f"{path} was trained on frames {was.interval:g} s apart ({was.clock}), these are "
                f"{now.interval:g} s apart ({now.clock})"
            )
        stride = stride or find_stride(path, was, meta.fps)
    elif stride is None:
        notes.append(f"{path} does not say what it was trained on: every stored frame is taken")
    grid = (frames, meta.height, meta.width)
    if frames != encoder.grid[0]:
        notes.append(
            f"clips have {frames} frames, {path} has {encoder.grid[0]}: positions are interpolated"
        )
    if grid[1:] != encoder.grid[1:]:
        here, there = (f"{height} x {width}" for _, height, width in (grid, encoder.grid))
        notes.append(f"the token map is {here}, {path} has {there}: positions are interpolated")
    encoder.positions.resize_(grid, None)
    return Reading(frames, stride or 1, notes)


def find_stride(model: str | Path, was: DataFacts, fps: float) -> int:
    """Stored frames between those that are as far apart as a model's were.

    Args:
        model: What messages call it.
        was: What it was trained on.
        fps: Stored frames per second.

    Raises:
        UsageError: No number of them is.
    """
    stride = round(was.interval * fps)
    if stride < 1 or abs(stride / fps / was.interval - 1) > 1e-3:
        raise UsageError(
            f"{model} was trained on frames {was.interval:g} s apart, of which a store at {fps:g} "
            f"frames per second has none: tokenise at {1 / was.interval:g} frames per second"
        )
    return stride
