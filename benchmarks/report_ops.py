"""The tables of the ops, of result files and of `OPS`; see report.py.

An op's speed-up is against the fastest peer of the same shape, forward and backward together. Its
memory ratio is the lowest peak memory of a peer over that of our fastest implementation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vimpac_kernels import OPS

ROOT = Path(__file__).resolve().parents[1]
OURS = ("cuda", "triton", "cpu", "ours")
REPLACES = {  # by the name of a benchmark, of which axial_attention has several
    "axial_attention_layer": "a whole layer: permute + SDPA, axial-attention, timesformer-pytorch",
    "axial_attention": OPS["axial_attention"].replaces,
    "axial_attention_joint": "the same within a frame (`HW`); without projections",
    "axial_attention_dense": "SDPA over all tokens; without projections, on a CPU forward only",
} | {op: known.replaces for op, known in OPS.items()}


def rows_of(results: dict[str, Any], op: str) -> list[dict[str, Any]]:
    """The rows of all shapes of an op."""
    return [row for shape in results.get(op, {}).values() for row in shape["rows"]]


def comparisons(rows: list[dict[str, Any]]) -> Iterator[tuple[float, float | None]]:
    """(speed-up, memory ratio) of our fastest row, for each shape that also has peers."""

    def total(row: dict[str, Any]) -> float:
        return row["fwd_ms"] + (row["bwd_ms"] or 0.0)

    for shape in dict.fromkeys(row["shape"] for row in rows):
        here = [row for row in rows if row["shape"] == shape and row["impl"] != "reference"]
        ours = [row for row in here if row["impl"] in OURS]
        peers = [row for row in here if row["impl"] not in OURS]
        if ours and peers:
            best = min(ours, key=total)
            lowest = min((row["peak_mib"] for row in peers if row["peak_mib"]), default=None)
            memory = lowest / best["peak_mib"] if lowest and best["peak_mib"] else None
            yield min(map(total, peers)) / total(best), memory


def ratio_range(values: list[float], unit: str) -> str:
    low, high = min(values), max(values)
    return f"{low:.1f}{unit}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f}-{high:.1f}{unit}"


def place(device: str) -> str:
    """The kind of device that a table's ratios hold for."""
    return "this CPU" if device.endswith("threads") else "this GPU"


def op_table(results: dict[str, Any], where: str = "this machine") -> list[str]:
    """One Markdown row per op: what it replaces, speed-up, memory."""
    lines = [
        f"| op | replaces | speed-up on {where} over the fastest peer | "
        "peak extra memory, best peer / ours |",
        "|---|---|---|---|",
    ]
    for op, replaces in REPLACES.items():
        pairs = list(comparisons(rows_of(results, op)))
        if not pairs:
            continue
        speed = ratio_range([ratio for ratio, _ in pairs], "x")
        memory = [ratio for _, ratio in pairs if ratio is not None]
        kept = ratio_range(memory, "x") if memory else "-"
        lines.append(f"| `{op}` | {replaces} | {speed} | {kept} |")
    return lines


def speed_table(results: dict[str, Any], benchmark: str) -> list[str]:
    """One Markdown row per candidate and shape of a benchmark; a shape is named once."""
    lines = [
        "| shape | implementation | forward ms | backward ms | rate | of the ceiling | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    last = ""
    for row in rows_of(results, benchmark):
        rate = "-" if row["rate"] is None else f"{row['rate']:.4g}\u00a0{row['rate_unit']}"
        numbers = (row["fwd_ms"], row["bwd_ms"], row["peak_mib"])
        forward, backward, peak = ("-" if n is None else f"{n:.4g}" for n in numbers)
        percent = row["percent_of_ceiling"]
        ceiling = "-" if percent is None else f"{percent:.0f} %"
        shape, impl = (row[key].replace("|", "\\|") for key in ("shape", "impl"))
        cells = ("" if shape == last else shape, impl, forward, backward, rate, ceiling, peak)
        lines.append(f"| {' | '.join(cells)} |")
        last = shape
    return lines


def contract_table() -> list[str]:
    """One Markdown row per op of `OPS`: what it replaces, what its kernels take."""
    lines = ["| op | what it replaces | what its kernels take |", "|---|---|---|"]
    for name, op in OPS.items():
        lines.append(f"| [`{name}`]({name}.md) | {op.replaces} | {op.takes} |")
    return lines


CODE = (  # what a file of an op holds: its folder and its names
    ("contract, checks, choice of the implementation", "vimpac_kernels/ops/{op}", "__init__.py"),
    ("specification in eager PyTorch", "vimpac_kernels/ops/{op}", "reference.py"),
    ("operators, fakes, autograd", "vimpac_kernels/ops/{op}", "operators.py"),
    ("Triton kernels", "vimpac_kernels/ops/{op}", "triton*.py"),
    ("arguments of the C++ kernels", "csrc/{op}", "arguments.hpp"),
    ("CPU kernels", "csrc/{op}", "cpu*.cpp"),
    ("CUDA kernels", "csrc/{op}", "cuda*.cu"),
    ("tests", "tests/kernels", "test_{op}*.py"),
    ("benchmark", "benchmarks", "bench_{op}.py"),
)


def code_table(op: str) -> list[str]:
    """Markdown rows with links to the files of an op, from its page in docs/ops."""
    lines = ["| what | files |", "|---|---|"]
    for what, folder, pattern in CODE:
        files = sorted((ROOT / folder.format(op=op)).glob(pattern.format(op=op)))
        links = [f"[`{file.name}`](../../{file.relative_to(ROOT).as_posix()})" for file in files]
        lines.append(f"| {what} | {', '.join(links)} |")
    return lines
