"""Something-Something V2: `train.json`, `validation.json` and `labels.json`.

Their names may begin with something-something-v2-, as in the first release. A class is a template
without its brackets. The test videos have no classes, so the paper tests on the validation videos.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vimpac.data.annotations.files import read_entries, read_json, whole_number
from vimpac.data.annotations.rows import Annotations, Row, order_classes
from vimpac.errors import UsageError

_PREFIX = "something-something-v2-"


def read_ssv2(folder: Path) -> Annotations:
    """Reads the training videos, and the validation videos as those of test.

    Args:
        folder: Where the files are.

    Raises:
        UsageError: A file is absent or an entry wrong.
    """
    index = _file(folder, "labels.json")
    classes = order_classes(_classes(index), index)
    known = {*classes}
    rows = []
    for name, split in (("train", "train"), ("validation", "test")):
        file = _file(folder, f"{name}.json")
        for place, entry in read_entries(file):
            video, template = entry.get("id"), entry.get("template")
            if not isinstance(video, str | int) or not isinstance(template, str):
                raise UsageError(f"{file}, {place}: it needs an 'id' and a 'template'")
            label = _name(template)
            if label not in known:
                raise UsageError(f"{file}, {place}: class '{label}' is not in {index}")
            rows.append(Row(str(video), label, split, file, place))
    return Annotations(rows, classes)


def _file(folder: Path, name: str) -> Path:
    """The file of this name, or of that of the first release."""
    older = folder / f"{_PREFIX}{name}"
    return older if older.is_file() else folder / name


def _classes(index: Path) -> Iterator[tuple[str, int, str]]:
    """(class, label, place) of every template."""
    labels = read_json(index)
    if not isinstance(labels, dict):
        raise UsageError(f"{index} must hold an object of templates and their labels")
    for number, (template, label) in enumerate(labels.items(), start=1):
        value = whole_number(str(label))
        if value is None:
            raise UsageError(f"{index}, entry {number}: '{label}' is no label of '{template}'")
        yield _name(template), value, f"entry {number}"


def _name(template: str) -> str:
    """The class of a template."""
    return template.replace("[", "").replace("]", "").strip()
