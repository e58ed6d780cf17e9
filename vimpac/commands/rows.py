"""`vimpac rows`: the tables of the paper as runs, and what runs found beside its numbers."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vimpac.errors import UsageError
from vimpac.paper_rows import ACCURACY, NUMBERS, Row, Table, find_table, paper_tables
from vimpac.paths import local_path, on_one_line

if TYPE_CHECKING:
    from vimpac.paper_results import Found


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "rows",
        help="the paper's tables as runs, with its numbers beside ours",
        description="Lists the tables of the VIMPAC paper as runs, with its numbers. "
        "`vimpac pretrain --row NAME` and `vimpac finetune CHECKPOINT --row NAME` make a run; "
        "--runs prints what runs found beside the paper's numbers.",
        epilog="example: vimpac rows t8 --runs runs/*",
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="such as t8; none: list them")
    parser.add_argument(
        "--runs", nargs="+", metavar="DIR", help="directories of runs made by --row"
    )
    parser.add_argument("--commands", action="store_true", help="print the commands of every row")


def run(args: argparse.Namespace) -> int:
    """Prints the tables."""
    if args.commands and args.runs:
        raise UsageError("--commands prints what to run, --runs what was found: give one of them")
    tables = [find_table(name) for name in dict.fromkeys(map(str.lower, args.tables))]
    if not tables and not args.runs:
        if args.commands:
            raise UsageError("--commands needs a table, such as t8")
        for table in paper_tables().values():
            print(f"{table.name:4} {len(table.rows):3} rows  {table.title}")
        print("\nvimpac rows t8               the rows of a table, and the paper's numbers")
        print("vimpac rows t8 --commands    what to run")
        return 0
    if args.commands:
        for table in tables or paper_tables().values():
            print("\n".join(_commands(table)))
        return 0
    found = _read(args.runs) if args.runs else []
    if not tables:  # those that the runs belong to
        tables = [table for table in paper_tables().values() if _runs_of(table, found)]
    for i, table in enumerate(tables):
        print("\n" * (i > 0) + table.title + "\n")
        print("\n".join(_lines(table, found, with_runs=bool(args.runs))))
    return 0


def _read(paths: Sequence[str]) -> list[Found]:
    """The runs, of which those of no row are said to be left out."""
    from vimpac.paper_results import read_runs

    for path in paths:
        if not local_path(path).is_dir():
            raise UsageError(f"--runs {path}: no such directory")
    found, others = read_runs(map(local_path, paths))
    if not found:
        raise UsageError("--runs: none of them was made by --row")
    if others:
        line = f"vimpac: left out, as they have no row: {', '.join(map(str, others))}"
        print(on_one_line(line), file=sys.stderr)
    return found


def _lines(table: Table, found: list[Found], *, with_runs: bool) -> list[str]:
    """The rows, their settings and their numbers: the paper's, and after a slash ours."""
    from vimpac.paper_results import counted, ours

    rows = table.rows.values()
    more = {name for run in found for name in run.numbers} - {*NUMBERS}
    numbers = [*table.numbers, *sorted(more - {*table.numbers})]
    numbers = [n for n in numbers if n in table.numbers or any(ours(r, n, found) for r in rows)]
    lines = [["row", "settings", *(NUMBERS.get(n, (f"{n} %",))[0] for n in numbers), ""]]
    for row in rows:
        line = [row.name, row.settings]
        for number in numbers:
            form = NUMBERS.get(number, ("", ACCURACY))[1]
            paper = format(row.paper[number], form) if number in row.paper else "-"
            values = ours(row, number, found)
            count = None if values or number not in row.paper else counted(row, number)
            values = values if count is None else [count]
            own = format(statistics.fmean(values), form) if values else "-"
            own += f" ({len(values)})" * (len(values) > 1)
            line.append(f"{paper} / {own}" if values or with_runs else paper)
        lines.append([*line, row.note])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    if any("/" in cell for line in lines[1:] for cell in line[2:-1]):
        text += ["", "a / b: the paper's number / ours"]
    if any("(" in cell for line in lines[1:] for cell in line[2:-1]):
        text += ["(n): the mean of n runs"]
    return text + [
        on_one_line(f"{run.path} ({run.row.name}): {', '.join(run.remarks)}")
        for run in _runs_of(table, found)
        if run.remarks
    ]


def _runs_of(table: Table, found: list[Found]) -> list[Found]:
    """The runs that count for a row of a table."""
    return [run for run in found if any(run.counts_for(row) for row in table.rows.values())]


def _commands(table: Table) -> list[str]:
    """What makes the runs of a table, in a shell; what two rows share is run once."""
    lines, done = [f"# {table.title}"], dict[object, Row]()
    for row in table.rows.values():
        first = done.setdefault(row.pretraining, row)
        start = "small"
        if row.pretrain is not None:
            resume = " --resume auto" if row.continues else ""
            store = f"{row.data.lower()}-{row.pixels}"
            if first is row:
                lines.append(f"vimpac pretrain --row {row.name} data={store}{resume}")
            start = f'"$(ls -d {first.out}/checkpoints/step-* | tail -n 1)"'
        for dataset in row.datasets:
            store = f"{dataset}-{row.finetune_pixels or row.pixels}"
            has_splits, whole = dataset in ("ucf101", "hmdb51"), row.protocol == "paper"
            split = ":1" * (has_splits and not whole)
            splits = " --splits 1,2,3" * (has_splits and whole)
            lines.append(
                f"vimpac finetune {start} --row {row.name} data={store} "
                f"labels={dataset}:annotations/{dataset}{split} "
                f"out=runs/{row.name}-{dataset}{splits}"
            )
    return lines
