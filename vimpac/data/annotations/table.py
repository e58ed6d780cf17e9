"""labels.csv: a table with the columns video, class, split and, if its classes are in an order,
label. A line without a video names a class that has none."""

from __future__ import annotations

import csv
from collections.abc import Container
from pathlib import Path

from vimpac.data.annotations.files import read_csv, whole_number
from vimpac.data.annotations.rows import Annotations, Row, order_classes
from vimpac.errors import UsageError
from vimpac.files import whole_file

COLUMNS = ("video", "class", "split")
_OTHER_NAMES = {"validation": "val"}
_GAP = ": labels count from 0; a line with its class and label alone can name it"


def read_table(file: Path, names: Container[str] = ()) -> Annotations:
    """Reads a table of labels.

    Args:
        file: The table.
        names: Of videos of the store, which may begin or end with a space.

    Raises:
        UsageError: There is no such file, it is no such table, or its labels contradict each other.
    """
    rows, labels = [], []
    for place, fields in read_csv(file, COLUMNS, ("label",), names):
        video, name, split = (fields[column] for column in COLUMNS)
        split = _OTHER_NAMES.get(split.lower(), split.lower())
        if video:
            rows.append(Row(video, name, split, file, place))
        if not name or "label" not in fields:
            continue
        label = whole_number(fields["label"])
        if label is None:
            raise UsageError(
                f"{file}, {place}: the label of class '{name}' must be a whole number from 0, not "
                f"'{fields['label']}'"
            )
        labels.append((name, label, place))
    return Annotations(rows, order_classes(labels, file, hint=_GAP) if labels else None)


def write_table(path: Path, annotations: Annotations) -> None:
    """Writes a table of labels, which `read_table` reads to the same rows and classes.

    Args:
        path: The file.
        annotations: Of a data set, with its classes.
    """
    classes = annotations.classes or []
    labels = {name: label for label, name in enumerate(classes)}
    used = {row.class_name for row in annotations.rows}
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*COLUMNS, "label"))
        for row in annotations.rows:
            writer.writerow((row.video, row.class_name, row.split, labels[row.class_name]))
        for name in classes:
            if name not in used:
                writer.writerow(("", name, "", labels[name]))
