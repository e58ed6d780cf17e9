"""Videos of one moving shape each, with captions: something to learn in a minute.

"a red square moves left": four colours, shapes and directions make 64 captions. Colour and shape
show in any frame, the direction only over time. The background is smooth and stands still, and the
files are lossless: noise would be what the pixels of flat tubelets, once normalised, consist of.
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import av
import numpy as np

SIDE, FRAMES = 48, 12  # pixels, frames of a video
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
}
SHAPES = ("square", "disk", "triangle", "cross")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (row, column)
SLOTS = {"colour": tuple(COLOURS), "shape": SHAPES, "direction": tuple(DIRECTIONS)}
CLASSES = [*itertools.product(*SLOTS.values())]
_SIZE, _STEP = 13, 2  # of a shape, and its way from frame to frame, pixels


def caption(classes: tuple[str, str, str]) -> str:
    """The caption of a (colour, shape, direction)."""
    colour, shape, direction = classes
    return f"a {colour} {shape} moves {direction}"


def other_classes() -> list[int]:
    """For every caption the place of one whose words are all other ones."""
    slots = [*SLOTS.values()]
    found = []
    for classes in CLASSES:
        colour, shape, direction = (
            words[(words.index(word) + 1) % len(words)]
            for words, word in zip(slots, classes, strict=True)
        )
        found.append(CLASSES.index((colour, shape, direction)))
    return found


def draw(classes: tuple[str, str, str], rng: np.random.Generator) -> np.ndarray:
    """Draws a video.

    Args:
        classes: Its (colour, shape, direction).
        rng: Of where it moves, and of the background.

    Returns:
        RGB (FRAMES, SIDE, SIDE, 3) uint8.
    """
    colour, shape, direction = classes
    row, column = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    waves = rng.uniform(2, 5, (3, 2)), rng.uniform(0, 2 * np.pi, (3, 2))
    planes = [
        105 + 30 * np.sin(w[0] * row + p[0]) + 30 * np.cos(w[1] * column + p[1])
        for w, p in zip(*waves, strict=True)
    ]
    background = np.stack(planes, -1)
    middle = np.array([SIDE, SIDE]) / 2 + rng.uniform(-6, 6, 2)
    frames = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    for i in range(FRAMES):
        away = (i - (FRAMES - 1) / 2) * _STEP
        centre = middle + away * np.array(DIRECTIONS[direction])
        covered = _mask(shape, np.round(centre))
        frames[i] = np.where(covered[..., None], COLOURS[colour], background).round()
    return frames


def _mask(shape: str, centre: np.ndarray) -> np.ndarray:
    """Where a shape is, (SIDE, SIDE) bool."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(float) - centre[:, None, None]
    half = _SIZE / 2
    inside = (abs(y) <= half) & (abs(x) <= half)
    if shape == "disk":
        return x**2 + y**2 <= half**2
    if shape == "triangle":
        return inside & (abs(x) <= (y + half) / 2)
    if shape == "cross":
        return inside & ((abs(x) <= half / 3) | (abs(y) <= half / 3))
    return inside


def write_video(path: Path, frames: np.ndarray) -> None:
    """Writes RGB (T, H, W, 3) uint8, losslessly."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FRAMES)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


def write_videos(folder: Path, train: int, *, seed: int = 0) -> Path:
    """Writes `train` videos to train on, and one of every caption to test with.

    Args:
        folder: Gets `videos/` and `captions.csv`.
        train: How many; their captions are drawn.
        seed: Of everything in them.

    Returns:
        The table of captions.
    """
    rng = np.random.default_rng(seed)
    (folder / "videos").mkdir(parents=True)
    table = folder / "captions.csv"
    drawn = [CLASSES[i] for i in rng.integers(len(CLASSES), size=train)]
    named = [("train", classes) for classes in drawn] + [("test", classes) for classes in CLASSES]
    with table.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(("video", "caption", "split"))
        for number, (split, classes) in enumerate(named):
            name = f"{number:05}.mkv"
            write_video(folder / "videos" / name, draw(classes, rng))
            lines.writerow((name, caption(classes), split))
    return table
