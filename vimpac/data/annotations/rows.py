"""What every annotation says: which class and which split a video is of."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vimpac.errors import UsageError

_NO_TEXT = re.compile(r"[\0\r\n\ud800-\udfff]")  # of a line of UTF-8
_FIX = "it must be a line of text without spaces at its ends"

SPLITS = ("train", "val", "test")


class Row(NamedTuple):
    """A video as an annotation names it."""

    video: str
    class_name: str
    split: str  # one that is not in SPLITS: unused
    file: Path
    place: str  # in the file, such as "line 3"

    @property
    def where(self) -> str:
        """The file and the place in it."""
        return f"{self.file}, {self.place}"

    def contradiction(self, other: Row, video: str = "") -> UsageError | None:
        """The error that this row and another one say two things of one video, if they do.

        Args:
            other: The other row.
            video: Its name in the store; empty if the rows have the same name.
        """
        if (self.class_name, self.split) == (other.class_name, other.split):
            return None
        place = other.place if other.file == self.file else other.where
        name = both = ""
        if self.video != other.video:
            name, both = f" '{other.video}'", f"; both may be '{video}' of the store"
        return UsageError(
            f"{self.where}: '{self.video}' is of {self.split or 'no split'} and class "
            f"'{self.class_name}', in {place}{name} of {other.split or 'no split'} and class "
            f"'{other.class_name}'{both}"
        )


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The rows of a source.

    Args:
        rows: In the order of the source.
        classes: All of its classes in its own order; None if it has none.
    """

    rows: Sequence[Row]
    classes: list[str] | None = None


def check_names(annotations: Annotations, source: str) -> None:
    """Checks that a table can hold the names: it is UTF-8, and its fields lose outer spaces.

    Args:
        annotations: Of a data set.
        source: What they are called in messages.

    Raises:
        UsageError: A video or a class has no such name.
    """
    for name in annotations.classes or ():
        if name != name.strip() or not _is_line(name):
            raise UsageError(f"{source}: '{name}' is no name of a class: {_FIX}")
    for row in annotations.rows:
        if not _is_line(row.video):
            raise UsageError(f"{row.where}: '{row.video}' is no name of a video: {_FIX}")


def _is_line(name: str) -> bool:
    return bool(name) and not _NO_TEXT.search(name)


def order_classes(
    labels: Iterable[tuple[str, int, str]], file: Path, first: int = 0, hint: str = ""
) -> list[str]:
    """Sorts classes by their labels.

    Args:
        labels: (class, label, place in the file); the same pair may come again.
        file: Where they stand.
        first: The smallest label.
        hint: What to do about a label that no class has.

    Returns:
        The class of every label.

    Raises:
        UsageError: A class has two labels, a label two classes, or a label none.
    """
    of_class: dict[str, tuple[int, str]] = {}
    of_label: dict[int, tuple[str, str]] = {}
    for name, label, place in labels:
        known, there = of_class.setdefault(name, (label, place))
        if known != label:
            raise UsageError(
                f"{file}, {place}: class '{name}' has the label {label}, in {there} {known}"
            )
        owner, there = of_label.setdefault(label, (name, place))
        if owner != name:
            raise UsageError(
                f"{file}, {place}: label {label} is of class '{name}', in {there} of '{owner}'"
            )
    expected = range(first, first + len(of_label))
    missing = next((label for label in expected if label not in of_label), None)
    if missing is not None:
        raise UsageError(f"{file}: no class has the label {missing}{hint}")
    return [of_label[label][0] for label in expected]
