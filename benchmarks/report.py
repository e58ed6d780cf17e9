"""Writes the tables and plots of README.md and docs/ from the result files.

    python benchmarks/report.py

Run it after the benchmarks. A table stands between two comments of its page, such as
`<!-- results -->` and `<!-- /results -->`; the rest of the page is left alone. The plots are
docs/images/step-*.png.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from report_directions import direction_tables
from report_headlines import headline_table
from report_learning import learning_tables, simvtp_tables
from report_ops import (
    REPLACES,
    code_table,
    contract_table,
    op_table,
    place,
    rows_of,
    speed_table,
)
from report_pages import evaluate_table, simvtp_step_table, tokenize_tables
from report_read import read_table
from report_steps import plot_steps, step_table

from vimpac_kernels import OPS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LEARNING, SIMVTP = RESULTS / "learning.json", RESULTS / "learning_simvtp.json"
DIRECTIONS = RESULTS / "directions.json"
IMAGES = ROOT / "docs" / "images"
SPEED = {op: [key for key in REPLACES if key.startswith(op)] for op in OPS}  # benchmarks of a page
SPEED["axial_attention"].remove("axial_attention_layer")

Results = dict[str, Any]


def fill(text: str, marker: str, lines: Iterable[str]) -> str:
    """A page with other lines between two comments.

    Args:
        text: The page.
        marker: The word in the comments.
        lines: What shall stand between them.

    Raises:
        ValueError: If the page does not have both comments.
    """
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    found = text.partition(begin)[2].partition(end)
    if not found[1]:
        raise ValueError(f"the page needs {begin} and {end}")
    inner = "\n".join([begin, *lines, end])
    return re.sub(f"{begin}.*{end}", lambda _: inner, text, flags=re.DOTALL)


def dates(results: Results) -> list[str]:
    """The days on which the shapes of a file were timed."""
    return sorted(
        {shape["environment"]["date"] for op in results.values() for shape in op.values()}
    )


def environment(results: Results) -> dict[str, str]:
    """Device and versions of a result file."""
    return next(shape["environment"] for op in results.values() for shape in op.values())


def read_results() -> dict[Path, Results]:
    """The result files of devices, the one that was written last first."""
    files = set(RESULTS.glob("*.json")) - {LEARNING, SIMVTP, DIRECTIONS}
    found = {file: json.loads(file.read_text()) for file in files}
    order = sorted(found, key=lambda file: (dates(found[file])[-1], file.name), reverse=True)
    return {file: found[file] for file in order}


def newest(found: dict[Path, Results], benchmark: str) -> dict[Path, Results]:
    """Of the files that have a benchmark, the newest one of a CPU and the newest one of a GPU."""
    kinds: dict[bool, Path] = {}
    for file, results in found.items():
        if results.get(benchmark):
            kinds.setdefault(file.stem.endswith("threads"), file)
    return {file: found[file] for file in kinds.values()}


def source(file: Path, results: Results, folder: str) -> str:
    """The line above a table: device, versions, days, and a link to the file.

    Args:
        file: The result file.
        results: What it holds.
        folder: The way from the page to the directory of the repository.
    """
    known, days = environment(results), dates(results)
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    link = f"[{file.name}]({folder}benchmarks/results/{file.name})"
    return f"{known['device']}, torch {known['torch']}, {when} ({link}):\n"


def device_part(file: Path, found: dict[Path, Results]) -> list[str]:
    """The part of docs/benchmarks.md on a device: its ops, and its steps if it is the newest."""
    results = found[file]
    where = place(environment(results)["device"])
    parts = [source(file, results, "../"), *op_table(results, where), ""]
    if file in newest(found, "train"):
        picture = f"![speed, memory and phases of a step](images/step-{file.stem}.png)"
        parts += [*step_table(rows_of(results, "train"), where), "", picture, ""]
    return parts


def speed_part(found: dict[Path, Results], op: str) -> list[str]:
    """The part of an op's page on its speed: every benchmark of it, shape by shape."""
    parts: list[str] = []
    for file, results in newest(found, op).items():
        timed = {key: results[key] for key in SPEED[op] if key in results}
        parts.append(source(file, timed, "../../"))
        for benchmark in timed:
            if len(SPEED[op]) > 1:
                parts.append(f"`{benchmark}`, against {REPLACES[benchmark]}:\n")
            parts += [*speed_table(results, benchmark), ""]
    return parts


def pages() -> dict[Path, str]:
    """Every page that holds a table, with the tables of the result files."""
    found, docs = read_results(), ROOT / "docs"
    first = next(file for file in found if file in newest(found, "train"))

    def headlines(folder: str) -> list[str]:
        return [source(first, found[first], folder), *headline_table(found[first])]

    devices = [line for file in found for line in device_part(file, found)]
    tested = newest(found, "evaluate").values()
    simvtp = newest(found, "simvtp").values()
    parts: dict[Path, dict[str, list[str]]] = {
        ROOT / "README.md": {"headlines": headlines("")},
        docs / "index.md": {"headlines": headlines("../")},
        docs / "benchmarks.md": {
            "results": devices,
            "learning": learning_tables(json.loads(LEARNING.read_text())),
        },
        docs / "evaluation.md": {"evaluate": _each(evaluate_table, tested)},
        docs / "tokenizing.md": {
            "read": _each(read_table, found.values()),
            "tokenize": _each(tokenize_tables, found.values()),
        },
        docs / "simvtp.md": {
            "learning_simvtp": simvtp_tables(json.loads(SIMVTP.read_text())),
            "step": _each(simvtp_step_table, simvtp),
        },
        docs / "layers.md": {"speed": _layer_part(found)},
        docs / "ops" / "index.md": {"ops": contract_table()},
    }
    if DIRECTIONS.exists():
        tables = direction_tables(json.loads(DIRECTIONS.read_text()))
        parts[docs / "paper.md"] = {"directions": tables}
    for op in OPS:
        parts[docs / "ops" / f"{op}.md"] = {"speed": speed_part(found, op), "code": code_table(op)}
    written = {}
    for page, tables in parts.items():
        text = page.read_text(encoding="utf-8")
        for marker, lines in tables.items():
            text = fill(text, marker, lines)
        written[page] = text
    return written


def _each(table: Any, files: Iterable[Results]) -> list[str]:
    return [line for results in files for line in table(results)]


def _layer_part(found: dict[Path, Results]) -> list[str]:
    name, parts = "axial_attention_layer", []
    for file, results in newest(found, name).items():
        parts += [source(file, {name: results[name]}, "../"), *speed_table(results, name), ""]
    return parts


def main() -> None:
    """Writes the pages and the plots."""
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
    found = read_results()
    for file, results in newest(found, "train").items():
        device = environment(results)["device"]
        plot_steps(rows_of(results, "train"), device, IMAGES / f"step-{file.stem}.png")


if __name__ == "__main__":
    main()
