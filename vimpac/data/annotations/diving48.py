"""Diving48: `Diving48_V2_train.json`, `Diving48_V2_test.json` and `Diving48_vocab.json`.

The vocabulary lists the four parts of every class. The files of version 1, whose labels are of
lower quality, have no V2 in their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vimpac.data.annotations.files import read_entries, read_json
from vimpac.data.annotations.rows import Annotations, Row, order_classes
from vimpac.errors import UsageError


def read_diving48(folder: Path) -> Annotations:
    """Reads version 2, or version 1 where it is alone.

    Args:
        folder: Where the files are.

    Raises:
        UsageError: A file is absent or an entry wrong.
    """
    index = folder / "Diving48_vocab.json"
    classes = order_classes(_classes(index), index)
    first = not (folder / "Diving48_V2_train.json").is_file()
    first = first and (folder / "Diving48_train.json").is_file()
    rows = []
    for split in ("train", "test"):
        file = folder / f"Diving48_{'' if first else 'V2_'}{split}.json"
        for place, entry in read_entries(file):
            video, label = entry.get("vid_name"), entry.get("label")
            if not isinstance(video, str) or type(label) is not int:
                raise UsageError(f"{file}, {place}: it needs a 'vid_name' and a 'label'")
            if not 0 <= label < len(classes):
                raise UsageError(f"{file}, {place}: {index} has no entry for the label {label}")
            rows.append(Row(video, classes[label], split, file, place))
    return Annotations(rows, classes)


def _classes(index: Path) -> Iterator[tuple[str, int, str]]:
    """(class, label, place) of every entry."""
    entries = read_json(index)
    if not isinstance(entries, list):
        raise UsageError(f"{index} must hold a list of the parts of every class")
    for label, parts in enumerate(entries):
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise UsageError(f"{index}, entry {label + 1} must be a list of words")
        yield " ".join(parts), label, f"entry {label + 1}"
