"""The end of gpu_check.sh's output: short tables of what was measured, and every failure.

    python3 benchmarks/gpu_summary.py FOLDER

Reads FOLDER/run.log and FOLDER/<device>.json, and prints no more than `MOST` characters, as the end
of an output is what comes back from a machine that is lent. Exits with 1 if a stage failed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST = 9500  # characters
MOST_FAILURES = 3000  # of them
STAGE = r"STAGE (\S+) (\S+) (\d+) (\d+)"  # visit, name, exit status, seconds
SHORT = {"bfloat16": "", "dropout_add_layer_norm": "add_ln", "linear_cross_entropy": "loss"}


def stages(log: str) -> list[tuple[str, str, str]]:
    """(name, result, seconds) of each stage, of the last time that it ran."""
    found = {}
    for visit, name, status, seconds in re.findall(f"^{STAGE}$", log, re.M):
        result = {"0": "passed", "124": "out of time", "137": "out of time"}.get(status, "failed")
        found[visit, name] = (f"{visit} {name}", result, seconds)
    return list(found.values())


def failures(log: str) -> list[str]:
    """The lines that report failures, each once, cut to the allowed total.

    A stage that ends without saying any ends with the last line of its output.
    """
    lines: dict[str, None] = {}
    said, last = False, ""
    for line in log.splitlines():
        if line.startswith("FAIL "):
            said, lines = True, lines | {line[5:165]: None}
        elif match := re.fullmatch(STAGE, line):
            if match[3] != "0" and not said:
                lines[f"{match[2]}: {last[:150]}"] = None
            said, last = False, ""
        else:
            last = line.strip() or last
    return _cut(list(lines))


def _cut(lines: list[str]) -> list[str]:
    kept: list[str] = []
    while lines and sum(map(len, kept)) + len(lines[0]) < MOST_FAILURES:
        kept.append(lines.pop(0))
    return [*kept, f"and {len(lines)} more: see run.log"] if lines else kept


def _short(label: str) -> str:
    for long, short in SHORT.items():
        label = label.replace(long, short)
    return " ".join(label.split())


def _us(row: dict[str, Any]) -> str:
    parts = [row["fwd_ms"], row["bwd_ms"]]
    return "/".join(f"{1e3 * ms:.0f}" for ms in parts if ms is not None)


def op_lines(results: dict[str, Any]) -> Iterator[str]:
    """One line for each op and shape: microseconds, percent of a copy, the predicted ones."""
    for op, shapes in results.items():
        if op in ("variants", "step", "train", "products"):
            continue
        for shape, timed in shapes.items():
            said = []
            for row in timed["rows"]:
                percents = [row["fwd_percent"], row["bwd_percent"]]
                of_copy = "/".join(f"{p:.0f}" for p in percents if p is not None)
                if row["kernel_percent"]:
                    of_copy = f"own kernels {row['kernel_us']:.0f}, {row['kernel_percent']:.0f}"
                said.append(f"{row['impl']} {_us(row)}" + (f" ({of_copy}%)" if of_copy else ""))
            predicted = timed["rows"][0]["predicted"]
            guess = f", predicted {'/'.join(map(str, predicted))}%" if predicted else ""
            yield f"{_short(op)} {_short(shape)}: {', '.join(said)}{guess}"


def variant_lines(results: dict[str, Any]) -> Iterator[str]:
    """One line for each op and shape: speed-up over the installed build."""
    for shape, timed in results.get("variants", {}).items():
        rows = {row["impl"]: row for row in timed["rows"]}
        base = rows.pop("installed", None)
        said = []
        for name, row in rows.items():
            if base is None:
                said.append(f"{name} {_us(row)} us")
                continue
            ratios = (base[k] / row[k] for k in ("fwd_ms", "bwd_ms") if row[k] is not None)
            said.append(f"{name} {'/'.join(f'{ratio:.2f}' for ratio in ratios)}x")
        yield f"{_short(shape)}: {', '.join(said)}"


def step_lines(results: dict[str, Any]) -> Iterator[str]:
    """One line for each step, and the rates of the products."""
    for shape, timed in results.get("step", {}).items():
        for row in timed["rows"]:
            graph = "" if row["graph_ms"] is None else f", graph {row['graph_ms']:.2f}"
            guess = row["predicted_ms"]
            predicted = "" if guess is None else f", predicted {guess:.1f}"
            yield (
                f"{shape} {row['impl']} {row['layout']}: {row['step_ms']:.2f} ms{graph}{predicted}"
                f", {row['videos_per_s']:.0f} videos/s, MFU {row['mfu_percent']:.0f}%, "
                f"{row['peak_mib']:.0f} MiB"
            )
    for timed in results.get("products", {}).values():
        rows = [f"{row['name']} {row['tflop_per_s']:.0f}" for row in timed["rows"]]
        yield f"products, TFLOP/s: {', '.join(rows)}"


def summary(folder: Path) -> tuple[str, bool]:
    """(what is printed, whether all stages passed)."""
    log = (folder / "run.log").read_text(errors="replace")
    ran, failed = stages(log), failures(log)
    files = sorted(folder.glob("*.json"))
    results = json.loads(files[0].read_text()) if files else {}
    ends = [f"FAILED: {line}" for line in failed]
    ends.append("; ".join(f"{name} {result} ({seconds} s)" for name, result, seconds in ran))
    room = MOST - sum(len(line) + 1 for line in ends)
    tables: list[str] = []
    for line in (*step_lines(results), *op_lines(results), *variant_lines(results)):
        room -= len(line) + 1
        if room < 60:
            tables.append("the rest is in the result file")
            break
        tables.append(line)
    passed = bool(ran) and all(result == "passed" for _, result, _ in ran)
    return "\n".join([*tables, *ends]), passed


def main() -> int:
    """Prints it; 1 if a stage failed."""
    said, passed = summary(Path(sys.argv[1]))
    print(said)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
