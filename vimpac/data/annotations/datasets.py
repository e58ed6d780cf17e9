"""The data sets whose annotations are read, and how a user names them: `ucf101:DIRECTORY:1`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vimpac.data.annotations.diving48 import read_diving48
from vimpac.data.annotations.hmdb51 import read_hmdb51
from vimpac.data.annotations.kinetics import FILES, read_kinetics
from vimpac.data.annotations.lists import read_lists
from vimpac.data.annotations.rows import Annotations, check_names
from vimpac.data.annotations.ssv2 import read_ssv2
from vimpac.data.annotations.ucf101 import read_ucf101
from vimpac.errors import UsageError
from vimpac.paths import local_path


class Counts(NamedTuple):
    """How large a data set is."""

    train: int
    test: int
    classes: int

    def __str__(self) -> str:
        return f"{self.train:,} train, {self.test:,} test, {self.classes} classes"


@dataclasses.dataclass(frozen=True)
class DataSet:
    """How the annotations of a data set are read.

    Args:
        read: Takes their directory and, if there are several splits, one of these.
        marks: Patterns of files that it alone has.
        splits: How many pairs of train and test there are.
        counts: Its videos and classes in the paper (Table 5), of split 1.
    """

    read: Callable[..., Annotations]
    marks: tuple[str, ...]
    splits: int = 1
    counts: Counts | None = None


_SSV2 = ("labels.json", "validation.json", "something-something-v2-*.json")
_KINETICS = tuple(pattern for patterns in FILES.values() for pattern in patterns)
DATASETS = {
    "ucf101": DataSet(
        read_ucf101, ("classInd.txt", "trainlist0?.txt"), 3, Counts(9_537, 3_783, 101)
    ),
    "hmdb51": DataSet(read_hmdb51, ("*_test_split?.txt",), 3, Counts(3_570, 1_530, 51)),
    "ssv2": DataSet(read_ssv2, _SSV2, 1, Counts(168_913, 24_777, 174)),
    "diving48": DataSet(read_diving48, ("Diving48_*.json",), 1, Counts(15_027, 1_970, 48)),
    "kinetics400": DataSet(read_kinetics, _KINETICS, 1, Counts(205_418, 17_686, 400)),
    "kinetics600": DataSet(read_kinetics, _KINETICS),
    "kinetics700": DataSet(read_kinetics, _KINETICS),
}
LIST = "list"
# Where a data set keeps its annotations, beside its videos.
_FOLDERS = ("annotations", "ucfTrainTestlist", "testTrainMulti_7030_splits", "labels")


class Source(NamedTuple):
    """Annotations as a user names them."""

    dataset: str
    where: str  # a directory; of `list`, its files
    split: int | None = None

    @property
    def paths(self) -> list[str]:
        """The directory or the files."""
        return self.where.split(",") if self.dataset == LIST else [self.where]


def parse_source(text: str) -> Source | None:
    """What `ucf101:DIRECTORY:1` or `list:FILE,FILE` names; None if it is the path of a table."""
    dataset, colon, where = text.partition(":")
    if not colon or dataset not in (*DATASETS, LIST):
        return None
    if dataset != LIST and DATASETS[dataset].splits > 1:
        folder, _, split = where.rpartition(":")
        if folder and split.isascii() and split.isdecimal():
            return Source(dataset, folder, int(split[:9]))
    return Source(dataset, where)


def read_source(source: Source) -> Annotations:
    """Reads the annotations of a data set.

    Args:
        source: Which, and where; split 1 if it says none.

    Returns:
        Its videos and its classes.

    Raises:
        UsageError: They are absent, of another data set, or wrong.
    """
    if source.dataset == LIST:
        if source.split is not None:
            raise UsageError("list has one split: name other lists instead")
        annotations = read_lists(source.where)
        check_names(annotations, f"list:{source.where}")
        return annotations
    dataset, split = DATASETS[source.dataset], source.split or 1
    if source.split is not None and not 1 <= source.split <= dataset.splits:
        last = f"the splits 1 to {dataset.splits}" if dataset.splits > 1 else "one split"
        raise UsageError(f"{source.dataset} has {last}, no split {source.split}")
    folder = _find(source)
    annotations = dataset.read(folder, split) if dataset.splits > 1 else dataset.read(folder)
    if not annotations.rows:
        raise UsageError(f"{folder} names no video")
    check_names(annotations, str(folder))
    return annotations


def looks_like(folder: Path) -> str | None:
    """The data set whose annotations seem to lie in a directory."""
    return next((name for name, dataset in DATASETS.items() if _home(folder, dataset)), None)


def note_on_counts(dataset: str, split: int, found: Counts, paper: Counts | None) -> str:
    """How the size of some annotations compares with that in the paper.

    Args:
        dataset: The data set.
        split: Which of its splits.
        found: The size.
        paper: That in the paper, of split 1.

    Returns:
        A line; empty if the paper does not use the data set.
    """
    if paper is None:
        return ""
    version = " of V2" * (dataset == "diving48")
    if found == paper:
        return f"these are the counts{version} in the paper (Table 5)"
    line = f"the paper (Table 5) has {paper}{' in split 1' * (split > 1)}"
    if version and (found.train > paper.train or found.test > paper.test):
        line += ": more than V2 has, so this is V1, whose labels differ"
    return line


def _find(source: Source) -> Path:
    """The directory in which the annotations lie."""
    top, dataset = local_path(source.where), DATASETS[source.dataset]
    if not top.is_dir():
        problem = "is a file: name its directory" if top.is_file() else "no such directory"
        raise UsageError(f"{source.dataset}:{source.where}: {problem}")
    home = _home(top, dataset)
    if home is None:
        other = looks_like(top)
        hint = f": it looks like {other}" if other else ""
        raise UsageError(
            f"{top} holds no annotations of {source.dataset}, such as {dataset.marks[0]}{hint}"
        )
    return home


def _home(top: Path, dataset: DataSet) -> Path | None:
    """Where below a directory a data set's annotations are."""
    for folder in (top, *(top / name for name in _FOLDERS)):
        for pattern in dataset.marks:
            if any(not file.name.startswith(".") for file in folder.glob(pattern)):
                return folder
    return None
