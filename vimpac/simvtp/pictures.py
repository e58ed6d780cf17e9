"""A picture of what a model fills in: frames before, masked and after, and the words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vimpac.files import whole_file
from vimpac.simvtp.predictions import Filled

MOST_FRAMES = 8  # of a clip that are drawn
ROWS = ("original", "masked", "rebuilt*")
FOOTNOTE = "* with the true mean and deviation of each tubelet, which the network does not predict"


def draw_filled(
    video: Tensor,  # (B, T, S, S, 3) uint8
    filled: Filled,
    path: Path,
    notes: Sequence[str] = (),
) -> None:
    """Draws clips one below the other.

    Args:
        video: The clips as they were.
        filled: What became of them.
        path: The PNG file.
        notes: Lines at the end.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    notes = [*notes, FOOTNOTE]
    B, T = video.shape[:2]
    times = range(0, T, -(-T // MOST_FRAMES))
    figure = pyplot.figure(
        figsize=(1.25 * len(times) + 0.9, 4.6 * B + 0.25 * len(notes)), layout="constrained"
    )
    heights = [4.6] * B + [0.25 * len(notes)]
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    for clip in range(B):
        part = parts[clip, 0]
        axes = part.subplots(3, len(times), squeeze=False)
        frames = video[clip], filled.masked_frames[clip], filled.rebuilt_frames[clip]
        for row, name, of in zip(axes, ROWS, frames, strict=True):
            row[0].set_ylabel(name)
            for axis, time in zip(row, times, strict=True):
                axis.imshow(of[time].cpu().numpy(), interpolation="nearest")
                axis.set(xticks=[], yticks=[])
        _write_words(part, filled, clip)
    style = {"va": "center", "fontsize": 9, "family": "monospace"}
    parts[-1, 0].text(0.01, 0.5, "\n".join(notes), **style)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)


def _write_words(part: Any, filled: Filled, clip: int) -> None:
    """The caption as a title: masked words are crossed out, what is predicted stands behind."""
    words, hidden, best = filled.words[clip], filled.hidden[clip], filled.predicted[clip]
    shown = [
        f"{_crossed(word)} [{guess}]" if covered else word
        for word, covered, guess in zip(words, hidden, best, strict=True)
    ]
    pairs = [(w, g) for w, covered, g in zip(words, hidden, best, strict=True) if covered]
    right = sum(word == guess for word, guess in pairs)
    part.suptitle(
        f"{' '.join(shown)}      {right} of {len(pairs)} words right", fontsize=12, parse_math=False
    )


def _crossed(word: str) -> str:
    """A word with a line through every letter."""
    return "".join(f"{letter}\N{COMBINING LONG STROKE OVERLAY}" for letter in word)
