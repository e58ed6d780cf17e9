"""`vimpac labels`: the annotations of a data set as a table for `vimpac finetune labels=`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vimpac.data.annotations.datasets import (
    DATASETS,
    LIST,
    Counts,
    Source,
    note_on_counts,
    read_source,
)
from vimpac.data.annotations.rows import SPLITS, Annotations, Row
from vimpac.data.annotations.table import write_table
from vimpac.data.match_names import distinct, match_names
from vimpac.errors import UsageError
from vimpac.paths import local_path, on_one_line

if TYPE_CHECKING:
    from vimpac.data.store import TokenStore


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "labels",
        help="write labels.csv of a data set's annotations",
        description="Writes the classes and splits of a data set's videos as a table with the "
        "columns video,class,split,label, and compares their numbers with the paper's.",
        epilog="examples: vimpac labels ucf101 ucfTrainTestlist --split 1 --out labels.csv; "
        "vimpac labels list train.csv,test.csv,classes.txt --out labels.csv",
    )
    parser.add_argument("dataset", choices=(*DATASETS, LIST))
    parser.add_argument(
        "annotations", help="their directory; of list, the two files and perhaps one of classes"
    )
    parser.add_argument("--split", type=int, help="of ucf101 and hmdb51: 1, 2 or 3 (default: 1)")
    parser.add_argument("--out", required=True, type=local_path, help="the new table")
    parser.add_argument(
        "--data", metavar="STORE", type=local_path, help="say how many of its videos are there"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.out.exists():
        raise UsageError(f"{args.out} exists already: remove it or name another one")
    annotations = read_source(Source(args.dataset, args.annotations, args.split))
    rows, classes = distinct(annotations.rows), annotations.classes or []
    lines = []
    if args.data:
        from vimpac.data.store import TokenStore  # numpy, which --help need not wait for

        store = TokenStore(args.data)
        names = [store.name(i) for i in range(len(store))]
        found = match_names(names, rows, args.annotations)
        lines = _presence(store, rows, [*found.values()])
    write_table(args.out, Annotations(rows, classes))
    number = Counter(row.split for row in rows)
    counts = Counts(number["train"], number["test"], len(classes))
    unused = f", {number['']:,} unused" * bool(number[""])
    print(on_one_line(f"{args.out}: {counts}{unused}"))
    if args.dataset != LIST:
        note = note_on_counts(args.dataset, args.split or 1, counts, DATASETS[args.dataset].counts)
        lines = [note, *lines]
    for line in filter(None, lines):
        print(on_one_line(line))
    return 0


def _presence(store: TokenStore, rows: Sequence[Row], found: Sequence[Row]) -> list[str]:
    """How many of the annotated videos a store has, and how many others."""
    wanted, present = (Counter(row.split for row in some) for some in (rows, found))
    parts = [
        f"{present[split]:,} of {wanted[split]:,} {split}" for split in SPLITS if wanted[split]
    ]
    all_wanted, all_present = (sum(some[split] for split in SPLITS) for some in (wanted, present))
    missing = 1 - all_present / max(all_wanted, 1)
    return [
        f"{store.path}: {', '.join(parts)} ({missing:.1%} missing); "
        f"{len(store) - len(found):,} of its videos have no line"
    ]
