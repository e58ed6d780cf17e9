"""Makes the README's table and plots from the result files; run it after the benchmarks.

    python benchmarks/report.py

Rewrites what stands between the two `results` comments of README.md, and docs/*.png. An op's
speed-up is against the fastest other candidate of the same shape, forward and backward together.
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

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OURS = ("cuda", "triton", "cpu")
REPLACES = {
    "axial_attention": "permute + attention per axis",
    "linear_cross_entropy": "`F.linear` + `F.cross_entropy`",
    "dropout_add_layer_norm": "bias, dropout, residual sum, LayerNorm",
    "mask_tokens": "Python loop over clips and boxes, or torch / NumPy",
}
BLUE, GREY = "#1f77b4", "#9e9e9e"


def comparisons(rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict, dict]]:
    """(shape, our fastest row, the fastest other row) for each shape that has both."""

    def total(row: dict[str, Any]) -> float:
        return row["fwd_ms"] + (row["bwd_ms"] or 0.0)

    for shape in dict.fromkeys(row["shape"] for row in rows):
        here = [row for row in rows if row["shape"] == shape and row["impl"] != "reference"]
        ours = [row for row in here if row["impl"] in OURS]
        others = [row for row in here if row["impl"] not in OURS]
        if ours and others:
            best, peer = min(ours, key=total), min(others, key=total)
            yield shape, best | {"total": total(best)}, peer | {"total": total(peer)}


def _range(values: list[float], unit: str) -> str:
    low, high = min(values), max(values)
    return f"{low:.1f}{unit}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f}-{high:.1f}{unit}"


def op_table(results: dict[str, Any]) -> list[str]:
    """One Markdown row per op: what it replaces, speed-up, memory."""
    lines = [
        "| op | replaces | speed-up over the fastest other | its extra memory / ours |",
        "|---|---|---|---|",
    ]
    for op, replaces in REPLACES.items():
        pairs = list(comparisons(results.get(op, {}).get("rows", [])))
        if not pairs:
            continue
        speed = _range([peer["total"] / ours["total"] for _, ours, peer in pairs], "x")
        memory = [
            peer["peak_mib"] / ours["peak_mib"]
            for _, ours, peer in pairs
            if ours["peak_mib"] and peer["peak_mib"]
        ]
        kept = _range(memory, "x") if memory else "-"
        lines.append(f"| `{op}` | {replaces} | {speed} | {kept} |")
    return lines


def step_table(rows: list[dict[str, Any]]) -> list[str]:
    """One Markdown row per timed training step."""
    lines = ["| step | impl | videos/s | ratio | paper | peak MiB |", "|---|---|---|---|---|---|"]
    for row in rows:
        paper = "-" if row["paper_ratio"] is None else f"{row['paper_ratio']:.2f}x"
        name = f"{row['table']}: {row['shape']}"
        lines.append(
            f"| {name} | {row['impl']} | {row['videos_per_s']:.2f} | {row['ratio']:.2f}x | "
            f"{paper} | {row['peak_mib']:.0f} |"
        )
    return lines


def plot_steps(rows: list[dict[str, Any]], device: str, path: Path) -> None:
    """Bars: videos per second and peak memory of every timed step."""
    labels = [f"{row['shape']}\n{row['impl']}" for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.42 * len(rows) + 1.4), sharey=True)
    for axis, key, title in (
        (axes[0], "videos_per_s", "videos per second"),
        (axes[1], "peak_mib", "peak MiB"),
    ):
        colors = [
            GREY if row["impl"] in ("released", "materialised 2021") else BLUE for row in rows
        ]
        bars = axis.barh(labels, [row[key] for row in rows], color=colors)
        axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        axis.set_xlabel(title)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[0].invert_yaxis()
    figure.suptitle(f"One pre-training step, small model ({device})", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Reads every result file, writes README.md and docs/*.png."""
    parts: list[str] = []
    for file in sorted(RESULTS.glob("*.json")):
        results = json.loads(file.read_text())
        environment = next(iter(results.values()))["environment"]
        parts.append(
            f"{environment['device']}, torch {environment['torch']}, {environment['date']} "
            f"([{file.name}](benchmarks/results/{file.name})):\n"
        )
        parts.append("\n".join(op_table(results)) + "\n")
        if "train" in results:
            picture = f"docs/step-{file.stem}.png"
            plot_steps(results["train"]["rows"], environment["device"], ROOT / picture)
            parts.append("\n".join(step_table(results["train"]["rows"])) + "\n")
            parts.append(f"![videos per second and memory of a step]({picture})\n")
    readme = ROOT / "README.md"
    text = "<!-- results -->\n" + "\n".join(parts) + "<!-- /results -->"
    pattern = r"<!-- results -->.*<!-- /results -->"
    readme.write_text(re.sub(pattern, lambda _: text, readme.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
