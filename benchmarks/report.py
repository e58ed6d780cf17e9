"""Makes the README's table and plots from the result files; run it after the benchmarks.

    python benchmarks/report.py

Rewrites what stands between comments of README.md (`results`, `learning`), docs/evaluation.md
(`evaluate`), docs/tokenizing.md (`read`, `tokenize`) and docs/simvtp.md (`learning_simvtp`), and
docs/*.png.
An op's speed-up is against the fastest peer of the same shape, forward and backward together. Its
memory ratio is the lowest peak memory of a peer over that of our fastest implementation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator
from report_learning import learning_tables, simvtp_tables
from report_pages import evaluate_table, simvtp_step_table, tokenize_tables
from report_read import read_table

from vimpac_kernels import OPS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OURS = ("cuda", "triton", "cpu", "ours")
REPLACES = {  # by the name of a benchmark, of which axial_attention has several
    "axial_attention_layer": "a whole layer: permute + SDPA, axial-attention, timesformer-pytorch",
    "axial_attention": OPS["axial_attention"].replaces,
    "axial_attention_joint": "the same within a frame (`HW`); without projections",
    "axial_attention_dense": "SDPA over all tokens; without projections, on a CPU forward only",
} | {op: known.replaces for op, known in OPS.items()}
# Videos per second of the small model: layouts at T=5 S=128; (T, tokens per side) of the default.
TABLE_13 = {"THW": 12.6, "T,HW": 20.0, "T,H,W": 26.4, "T,H|W": 32.0}
TABLE_14 = {(5, 16): 32.0, (10, 16): 16.5, (5, 32): 8.4, (10, 32): 4.4}
COLORS = ("#1f77b4", "#6baed6", "#e6550d", "#757575", "#bdbdbd")


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


def _range(values: list[float], unit: str) -> str:
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
        speed = _range([ratio for ratio, _ in pairs], "x")
        memory = [ratio for _, ratio in pairs if ratio is not None]
        kept = _range(memory, "x") if memory else "-"
        lines.append(f"| `{op}` | {replaces} | {speed} | {kept} |")
    return lines


def _step_name(row: dict[str, Any]) -> str:
    """What was timed, and how the dense layout attends, for a Markdown cell."""
    dense = {"ours": "THW, dense", "released": "THW, probabilities in memory (2021)"}
    layout = dense[row["impl"]] if row["layout"] == "THW" else row["layout"].replace("|", "\\|")
    return f"{row['impl']}: {layout}, T={row['frames']} S={8 * row['side']}"


def step_table(rows: list[dict[str, Any]], where: str = "this machine") -> list[str]:
    """Three groups of Markdown rows, each with its ratio to the first one that was timed."""
    timed = {(r["impl"], r["layout"], r["frames"], r["side"]): r for r in rows}
    impls = ("released", "released + compile", "plain", "ours", "ours + compile")
    dense = 1 / TABLE_13["THW"]
    groups = {
        "implementations": [((impl, "T,H|W", 5, 16), None) for impl in impls],
        "layouts (Table 13)": [(("released", "THW", 5, 16), 1.0)]
        + [(("ours", layout, 5, 16), rate * dense) for layout, rate in TABLE_13.items()],
        "inputs (Table 14)": [
            (("ours", "T,H|W", *size), rate / TABLE_14[5, 16]) for size, rate in TABLE_14.items()
        ],
    }
    lines = [
        f"| compared | step | videos/s | ratio on {where} | paper, V100 | MFU | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, keys in groups.items():
        found = [(timed[key], paper) for key, paper in keys if key in timed]
        for row, paper in found:
            ratio = row["videos_per_s"] / found[0][0]["videos_per_s"]
            lines.append(
                f"| {title} | {_step_name(row)} | {row['videos_per_s']:.3g} | {ratio:.2f}x | "
                f"{'-' if paper is None else f'{paper:.2f}x'} | {row['mfu_percent']:.0f} % | "
                f"{row['peak_mib']:.0f} |"
            )
    return lines


def phase_table(rows: list[dict[str, Any]]) -> list[str]:
    """Milliseconds of a step by phase, one column per profiled step."""
    apart = [row for row in rows if row["phases"]]
    if not apart:
        return []
    lines = [
        f"| phase, ms | {' | '.join(map(_step_name, apart))} |",
        "|---" * (1 + len(apart)) + "|",
    ]
    for name in apart[0]["phases"]:
        cells = [f"{row['phases'][name]:.1f}" for row in apart]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def plot_steps(rows: list[dict[str, Any]], device: str, path: Path) -> None:
    """Speed and memory against the tokens of a clip, and a step by phase."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
    lines = {
        "ours": ("ours", "T,H|W"),
        "ours, dense": ("ours", "THW"),
        "plain PyTorch": ("plain", "T,H|W"),
        "released": ("released", "T,H|W"),
        "released + compile": ("released + compile", "T,H|W"),
    }
    for axis, key, title in (
        (axes[0], "videos_per_s", "videos per second"),
        (axes[1], "peak_mib", "peak MiB"),
    ):
        for (label, series), color in zip(lines.items(), COLORS, strict=True):
            here = [row for row in rows if (row["impl"], row["layout"]) == series]
            points = sorted((r["frames"] * r["side"] ** 2, r[key]) for r in here)
            if points:
                axis.plot(*zip(*points, strict=True), "o-", label=label, color=color)
        axis.set(xlabel="tokens per clip", title=title, xscale="log", yscale="log")
        axis.set_xticks(sorted({row["frames"] * row["side"] ** 2 for row in rows}))
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_formatter("{x:g}")
            ticks.set_minor_formatter("")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    _plot_phases(axes[2], [row for row in rows if row["phases"]])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.suptitle(f"One pre-training step, small model ({device})", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _plot_phases(axis: Any, rows: list[dict[str, Any]]) -> None:
    """Stacked columns, one per profiled step."""
    bottom = [0.0] * len(rows)
    labels = [row["impl"] for row in rows]
    for i, name in enumerate(rows[0]["phases"] if rows else ()):
        heights = [row["phases"][name] for row in rows]
        axis.bar(labels, heights, 0.6, bottom=bottom, label=name, color=plt.get_cmap("tab20")(i))
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    axis.set_title("milliseconds by phase")
    handles, names = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], names[::-1], fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _fill(text: str, marker: str, content: list[str]) -> str:
    """Replaces what stands between two comments."""
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    inner = "\n".join([begin, *content, end])
    return re.sub(f"{begin}.*{end}", lambda _: inner, text, flags=re.DOTALL)


def _dates(results: dict[str, Any]) -> list[str]:
    """The days on which the shapes of a file were timed."""
    return sorted(
        {shape["environment"]["date"] for op in results.values() for shape in op.values()}
    )


def device_part(file: Path, results: dict[str, Any], *, steps: bool) -> list[str]:
    """The README's part on a device: its ops and, if wanted, its steps with their plot."""
    environment = next(shape["environment"] for op in results.values() for shape in op.values())
    device, dates = environment["device"], _dates(results)
    days = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    source = f"[{file.name}](benchmarks/results/{file.name})"
    parts = [f"{device}, torch {environment['torch']}, {days} ({source}):\n"]
    parts.append("\n".join(op_table(results, place(device))) + "\n")
    if steps and (rows := rows_of(results, "train")):
        picture = f"docs/step-{file.stem}.png"
        plot_steps(rows, device, ROOT / picture)
        parts.append("\n".join(step_table(rows, place(device))) + "\n")
        parts.append(f"![speed, memory and phases of a step]({picture})\n")
    return parts


def main() -> None:
    """Reads every result file, writes README.md and docs/*.png.

    The steps are those of the CPU and of the GPU that were timed last.
    """
    parts: list[str] = []
    learning, simvtp = RESULTS / "learning.json", RESULTS / "learning_simvtp.json"
    files = set(RESULTS.glob("*.json")) - {learning, simvtp}
    found = {file: json.loads(file.read_text()) for file in files}
    kinds = set()
    for file in sorted(found, key=lambda file: (_dates(found[file])[-1], file.name), reverse=True):
        kind = file.stem.endswith("threads")  # a CPU
        parts += device_part(file, found[file], steps=kind not in kinds)
        kinds.add(kind)
    readme = ROOT / "README.md"
    text = _fill(readme.read_text(), "results", parts)
    if learning.exists():
        text = _fill(text, "learning", learning_tables(json.loads(learning.read_text())))
    readme.write_text(text)
    tested = [results for results in found.values() if "evaluate" in results]
    if tested:
        page = ROOT / "docs" / "evaluation.md"
        tables = [line for results in tested for line in evaluate_table(results)]
        page.write_text(_fill(page.read_text(), "evaluate", tables))
    page = ROOT / "docs" / "tokenizing.md"
    text = page.read_text()
    if tables := [line for results in found.values() for line in read_table(results)]:
        text = _fill(text, "read", tables)
    if tables := [line for results in found.values() for line in tokenize_tables(results)]:
        text = _fill(text, "tokenize", tables)
    page.write_text(text)
    page = ROOT / "docs" / "simvtp.md"
    text = page.read_text()
    if simvtp.exists():
        tables = simvtp_tables(json.loads(simvtp.read_text()))
        text = _fill(text, "learning_simvtp", tables)
    timed = [results for results in found.values() if "simvtp" in results]
    tables = [line for results in timed for line in simvtp_step_table(results)]
    page.write_text(_fill(text, "step", tables))


if __name__ == "__main__":
    main()
