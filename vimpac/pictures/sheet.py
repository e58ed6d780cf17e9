"""A sheet of paper on which frames and words are placed by inches, written as a PNG file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vimpac.files import whole_file
from vimpac.paths import on_one_line

DPI = 120
CELL, GAP = 1.2, 0.06  # inches: of a frame, between two
NAMES = 1.75  # inches: of the names of rows
LINE = 0.22  # inches: of a line of words
MARGIN = 0.15  # inches: around everything


class Row(NamedTuple):
    """Frames side by side.

    Attributes:
        name: What they are, of one or more lines.
        frames: (T, S, S, 3) uint8.
        heat: (T, h, w), laid over the frames; None: nothing is.
    """

    name: str
    frames: np.ndarray
    heat: np.ndarray | None = None


class Sheet:
    """A picture that is drawn from the upper left corner.

    Args:
        width: Inches, with the margins.
        height: Inches, with the margins.
    """

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure  # not pyplot, which keeps figures and may open windows

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        """Axes whose upper left corner is at (x, y)."""
        box = x / self.width, 1 - (y + height) / self.height
        return self.figure.add_axes((*box, width / self.width, height / self.height))

    def words(self, x: float, y: float, text: str, size: float = 10, **style: Any) -> None:
        """Writes lines of words, whose first one begins at (x, y) unless `style` says otherwise."""
        lines = "\n".join(on_one_line(line) for line in text.split("\n"))
        style = {"va": "top", "ha": "left", "linespacing": 1.25, "fontsize": size} | style
        written = self.figure.text(x / self.width, 1 - y / self.height, lines, None, **style)
        written.set_parse_math(False)  # a $ is one

    def rows(
        self,
        x: float,
        y: float,
        rows: Sequence[Row],
        titles: Sequence[str],
        *,
        named: bool = True,
        most_heat: float = 1.0,
    ) -> None:
        """Draws rows of frames, one below the other; `size_of_rows` is what they take.

        Args:
            x: Where they begin, the names of the rows included.
            y: Where they begin, the titles of the columns included.
            rows: The rows.
            titles: Of the columns.
            named: Whether the names of the rows are written.
            most_heat: The heat with the brightest colour.
        """
        left, top = x + NAMES * named, y + LINE
        for t, title in enumerate(titles):
            middle = left + t * (CELL + GAP) + CELL / 2
            self.words(middle, y + LINE - 0.05, title, 9, ha="center", va="bottom")
        for k, row in enumerate(rows):
            at = top + k * (CELL + GAP)
            if named:
                self.words(left - 0.12, at + CELL / 2, row.name, 9.5, ha="right", va="center")
            for t, frame in enumerate(row.frames):
                axes = self.axes(left + t * (CELL + GAP), at, CELL, CELL)
                height, width = frame.shape[:2]
                place: dict[str, Any] = {"extent": (0, width, 0, height)}
                smooth = height > CELL * DPI  # else every pixel is shown as it is
                axes.imshow(frame, interpolation="antialiased" if smooth else "nearest", **place)
                if row.heat is not None:
                    colours = {"cmap": "inferno", "vmin": 0, "vmax": most_heat, "alpha": 0.7}
                    axes.imshow(row.heat[t], interpolation="nearest", **place, **colours)
                axes.set(xticks=[], yticks=[])

    def write(self, path: Path) -> None:
        """Writes the PNG file, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        with whole_file(path) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the font has no such letters: boxes
            self.figure.savefig(os.fspath(temporary), format="png", dpi=DPI)


def size_of_rows(rows: int, columns: int, *, named: bool = True) -> tuple[float, float]:
    """The width and height, in inches, that `Sheet.rows` takes."""
    return NAMES * named + columns * (CELL + GAP) - GAP, LINE + rows * (CELL + GAP) - GAP
