"""A confusion matrix: which classes are taken for which."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vimpac.paths import on_one_line

MOST_LABELLED = 60  # classes; names of more would not be legible
WORST = 30  # pairs that are listed then
LONGEST = 28  # characters of a name


def draw_confusion(
    counts: Tensor,  # (classes, classes) int64
    classes: Sequence[str],
    path: Path,
) -> None:
    """Draws a confusion matrix whose rows sum to 1.

    Args:
        counts: (classes, classes): videos of the row's class that are taken for the column's.
        classes: Their names.
        path: The PNG file. Beyond `MOST_LABELLED` classes the rows have no names, and the pairs
            that are confused most often stand beside.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    videos, labelled = counts.sum(1, keepdim=True), len(classes) <= MOST_LABELLED
    shares = counts / videos.clamp(min=1)
    side = max(4.5, min(14.0, 0.24 * len(classes) + 3)) if labelled else 9.0
    width = side + (0.8 if labelled else 6.0)
    figure, axes = pyplot.subplots(
        1,
        1 if labelled else 2,
        figsize=(width, side),
        layout="constrained",
        squeeze=False,
        width_ratios=None if labelled else (9.0, 5.0),
    )
    matrix = axes[0, 0]
    image = matrix.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    right = counts.diagonal().sum() / counts.sum()
    matrix.set(xlabel="predicted", ylabel="true")
    matrix.set_title(f"{int(counts.sum())} videos, {len(classes)} classes, {right:.1%} right")
    figure.colorbar(image, ax=matrix, label="share of the true class", shrink=0.7)
    if labelled:
        _name_ticks(matrix, [_short(name) for name in classes])
        if len(classes) <= 12:
            _write_shares(matrix, shares)
    else:
        _list_worst(axes[0, 1], counts, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the font has no such letters: it draws boxes
        figure.savefig(path, dpi=110, format="png")
    pyplot.close(figure)


def worst_pairs(counts: Tensor, most: int = WORST) -> list[tuple[int, int, int]]:
    """The pairs of classes that are confused most often.

    Args:
        counts: As in `draw_confusion`.
        most: How many pairs at most.

    Returns:
        (true, predicted, videos), the most first; ties in the order of the classes.
    """
    wrong = counts.clone().fill_diagonal_(0).flatten()
    order = wrong.argsort(descending=True, stable=True)[:most]
    size = len(counts)
    return [(int(i) // size, int(i) % size, int(wrong[i])) for i in order if wrong[i]]


def _name_ticks(axes: Any, names: list[str]) -> None:
    font = 9 if len(names) <= 25 else 7
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
    axes.set_yticks(range(len(names)), names, fontsize=font)


def _write_shares(axes: Any, shares: Tensor) -> None:
    for row, values in enumerate(shares.tolist()):
        for column, value in enumerate(values):
            colour = "white" if value > 0.5 else "black"
            axes.text(column, row, f"{value:.0%}", ha="center", va="center", color=colour)


def _list_worst(axes: Any, counts: Tensor, classes: Sequence[str]) -> None:
    axes.axis("off")
    videos = counts.sum(1)
    lines = [
        f"{number:4d} of {int(videos[true]):4d}  {true}: {_short(classes[true])} \u2192 "
        f"{predicted}: {_short(classes[predicted])}"
        for true, predicted, number in worst_pairs(counts)
    ]
    title = "most often confused (true \u2192 predicted)" if lines else "no video is confused"
    axes.set_title(title, loc="left", fontsize=10)
    style = {"family": "monospace", "fontsize": 8.5, "va": "top", "linespacing": 1.6}
    axes.text(0, 1, "\n".join(lines), transform=axes.transAxes, **style)


def _short(name: str) -> str:
    name = on_one_line(name)
    name = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\u2026"
    return name.replace("$", r"\$")  # which would begin a formula
