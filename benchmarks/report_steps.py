"""The tables and the plot of the training steps; see report.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

# Videos per second of the small model: layouts at T=5 S=128; (T, tokens per side) of the default.
TABLE_13 = {"THW": 12.6, "T,HW": 20.0, "T,H,W": 26.4, "T,H|W": 32.0}
TABLE_14 = {(5, 16): 32.0, (10, 16): 16.5, (5, 32): 8.4, (10, 32): 4.4}
COLORS = ("#1f77b4", "#6baed6", "#e6550d", "#757575", "#bdbdbd")


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
