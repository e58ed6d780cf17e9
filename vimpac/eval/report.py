"""What a classifier is worth: scores with their intervals, and the files that show them.

report.json        the scores of every number of clips, and of every class by the largest
predictions.csv    video, class, predicted, p, top5 (JSON: [class, p] each)
confusion.png      which classes are taken for which, if they are no more than `MOST_DRAWN`
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vimpac.errors import UsageError
from vimpac.eval.metrics import mean_class_accuracy, top_k, wilson
from vimpac.files import whole_directory
from vimpac.paths import local_path
from vimpac.pictures.confusion import draw_confusion

MOST_DRAWN = 2000  # classes; the matrix of more takes gigabytes, and shows nothing


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of one number of clips of a video, as shares of 1; intervals are Wilson's of 95 %.

    Attributes:
        clips: Of a video and crop.
        videos: How many are judged.
        top1: Videos whose likeliest class is theirs.
        top5: Videos whose class is among the five likeliest, or among all if they are fewer.
        class_accuracy: The mean of the classes' top1; of classes that have a video.
        clip_top1: Views that are right by themselves; None for an ensemble.
        clip_top5: As `top5`, of views.
    """

    clips: int
    videos: int
    top1: float
    top1_interval: tuple[float, float]
    top5: float
    top5_interval: tuple[float, float]
    class_accuracy: float
    clip_top1: float | None = None
    clip_top5: float | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of a test.

    Attributes:
        classes: The names of the classes.
        names: Of the videos.
        labels: (videos,) int64.
        probabilities: (videos, classes) fp32, by the largest number of clips.
        scores: Of every number of clips, rising.
        facts: What was tested on what, and how long it took; JSON can hold it.
    """

    classes: list[str]
    names: list[str]
    labels: Tensor
    probabilities: Tensor
    scores: list[Scores]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def best(self) -> Scores:
        """The scores of the largest number of clips."""
        return self.scores[-1]

    def per_class(self) -> list[dict[str, Any]]:
        """Class, videos, top1 and its interval of every class that has a video."""
        right = self.probabilities.argmax(-1) == self.labels
        rows = []
        for number in self.labels.unique().tolist():
            own = right[self.labels == number]
            hits, videos = int(own.sum()), len(own)
            rows.append(
                {
                    "class": self.classes[number],
                    "videos": videos,
                    "top1": hits / videos,
                    "top1_interval": wilson(hits, videos),
                }
            )
        return rows

    def confusion(self) -> Tensor:
        """(classes, classes) int64: videos of the row's class that are taken for the column's."""
        classes = len(self.classes)
        cells = self.labels * classes + self.probabilities.argmax(-1)
        return torch.bincount(cells, minlength=classes**2).view(classes, classes)

    def to_dict(self) -> dict[str, Any]:
        """What report.json holds."""
        scores = [dataclasses.asdict(one) for one in self.scores]
        return {**self.facts, "scores": scores, "per_class": self.per_class()}

    def write(self, folder: Path) -> None:
        """Writes the files; the directory appears complete or not at all.

        Raises:
            UsageError: The directory exists.
        """
        folder = local_path(folder)
        check_new(folder)
        with whole_directory(folder) as temporary:
            text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
            (temporary / "report.json").write_text(
                text, encoding="utf-8", errors="backslashreplace"
            )
            self._write_predictions(temporary / "predictions.csv")
            if len(self.classes) <= MOST_DRAWN:
                draw_confusion(self.confusion(), self.classes, temporary / "confusion.png")

    def _write_predictions(self, path: Path) -> None:
        p, likeliest = (x[:, :5] for x in self.probabilities.sort(descending=True, stable=True))
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(("video", "class", "predicted", "p", "top5"))
            for i, name in enumerate(self.names):
                best = [
                    (self.classes[number], round(value, 6))
                    for number, value in zip(likeliest[i].tolist(), p[i].tolist(), strict=True)
                ]
                right = self.classes[int(self.labels[i])]
                lines.writerow((name, right, *best[0], json.dumps(best, ensure_ascii=False)))


def check_new(folder: Path) -> None:
    """Raises UsageError if a report cannot be written, or something is in its place."""
    if os.path.lexists(folder):
        raise UsageError(f"--out {folder} exists: remove it or name another directory")
    above = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError(
            f"--out {folder}: nothing can be written into {above}: name another directory"
        )


def score(
    probabilities: Tensor,  # (videos, classes)
    labels: Tensor,  # (videos,)
    clips: int,
    right_clips: Sequence[int] | None = None,
) -> Scores:
    """Judges videos.

    Args:
        probabilities: (videos, classes).
        labels: (videos,) int64.
        clips: Of a video and crop.
        right_clips: How many views are right, are right among five, and are judged.

    Returns:
        The scores.
    """
    videos = len(labels)
    first, five = (int(top_k(probabilities, labels, k).sum()) for k in (1, 5))
    clip_top1, clip_top5 = None, None
    if right_clips is not None:
        clip_top1, clip_top5 = (hits / right_clips[2] for hits in right_clips[:2])
    return Scores(
        clips=clips,
        videos=videos,
        top1=first / videos,
        top1_interval=wilson(first, videos),
        top5=five / videos,
        top5_interval=wilson(five, videos),
        class_accuracy=mean_class_accuracy(probabilities, labels),
        clip_top1=clip_top1,
        clip_top5=clip_top5,
    )
