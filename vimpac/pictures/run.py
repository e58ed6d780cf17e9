"""A trained run at a glance: clips that it fills in, its curves, and what they are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vimpac.pictures.sheet import GAP, LINE, MARGIN, NAMES, Row, Sheet, size_of_rows

_PLOT = 2.1  # inches: height of a curve


class Panel(NamedTuple):
    """A clip.

    Attributes:
        heading: What stands over it.
        rows: Of `vimpac.pictures.predictions.prediction_rows`.
        titles: Of the frames.
    """

    heading: str
    rows: Sequence[Row]
    titles: Sequence[str]


class Curve(NamedTuple):
    """A number of every step that was logged.

    Attributes:
        title: What it is.
        steps: When it was logged.
        values: What it was.
        levels: What it is compared with, by name.
        are_shares: Whether the numbers are shown in %.
    """

    title: str
    steps: Sequence[int]
    values: Sequence[float]
    levels: Mapping[str, float]
    are_shares: bool = False


def draw_run(
    panels: Sequence[Panel], curves: Sequence[Curve], notes: Sequence[str], path: Path
) -> None:
    """Draws clips side by side, curves below them, and notes at the end.

    Args:
        panels: The clips, of the same rows.
        curves: The curves.
        notes: A sentence each.
        path: The PNG file.
    """
    widths = [size_of_rows(0, len(panel.titles), named=False)[0] for panel in panels]
    height, apart = size_of_rows(len(panels[0].rows), 1)[1], 6 * GAP
    width = NAMES + sum(widths) + apart * (len(panels) - 1)
    below = MARGIN + 1.2 * LINE + height
    notes_at = below + 3 * LINE + _PLOT + 2.6 * LINE
    sheet = Sheet(width + 2 * MARGIN, notes_at + (len(notes) + 0.5) * LINE + MARGIN)
    x = MARGIN
    for k, panel in enumerate(panels):
        sheet.words(x + NAMES * (not k), MARGIN, panel.heading, 11, weight="bold")
        sheet.rows(x, MARGIN + 1.2 * LINE, panel.rows, panel.titles, named=not k)
        x += NAMES * (not k) + widths[k] + apart
    wide = (width - 0.5 - 0.7 * (len(curves) - 1)) / len(curves)
    for k, curve in enumerate(curves):
        at = MARGIN + 0.5 + k * (wide + 0.7)
        _plot(sheet.axes(at, below + 3 * LINE, wide, _PLOT), curve)
    for k, note in enumerate(notes):
        sheet.words(MARGIN, notes_at + k * LINE, note, 10, color="tab:red")
    sheet.write(path)


def _plot(axes: Any, curve: Curve) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.plot(curve.steps, curve.values, color="tab:blue", linewidth=2, zorder=5)
    top = 1.15 * max(*curve.values, *curve.levels.values())
    at = -top
    for name, level in sorted(curve.levels.items(), key=lambda pair: pair[1]):
        axes.axhline(level, color="tab:red", linestyle="--", linewidth=1)
        at = max(level, at + 0.08 * top)  # over the name below
        axes.annotate(
            name,
            (0.99, at),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            color="tab:red",
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5},
            zorder=6,  # over the curve
        )
    axes.set_title(curve.title, fontsize=11)
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.set_ylim(0, top)
    axes.locator_params("x", integer=True)
    if curve.are_shares:
        axes.yaxis.set_major_formatter(PercentFormatter(1))  # with as many digits as it takes
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
