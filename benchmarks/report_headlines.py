"""The four rows of README.md, from the result file of the device that was timed last."""

from __future__ import annotations

from typing import Any

from report_ops import REPLACES, comparisons, ratio_range, rows_of


def headline_table(results: dict[str, Any]) -> list[str]:
    """Markdown rows of the two training steps and of two ops.

    Args:
        results: A result file. A row whose benchmark it does not have is left out.
    """
    heads = ("what", "compared with", "speed-up", "peak memory, theirs / ours")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|"]
    small = [
        row
        for row in rows_of(results, "train")
        if (row["layout"], row["frames"], row["side"]) == ("T,H|W", 5, 16)
    ]
    step = "training step of VIMPAC, small model"
    lines += _step_row(step, small, "videos_per_s")
    pairs = results.get("simvtp", {}).get("half B=2", {}).get("rows", [])
    step = "training step of SimVTP, half of the base model's layers"
    lines += _step_row(step, pairs, "pairs_per_s")
    for op in ("axial_attention", "linear_cross_entropy"):
        ratios = list(comparisons(rows_of(results, op)))
        if ratios:
            speed = ratio_range([speed for speed, _ in ratios], "x")
            memory = [ratio for _, ratio in ratios if ratio is not None]
            kept = ratio_range(memory, "x") if memory else "-"
            lines.append(f"| `{op}` | {REPLACES[op]} | {speed} | {kept} |")
    return lines


def _step_row(step: str, rows: list[dict[str, Any]], rate: str) -> list[str]:
    """The row of a step of ours against the released one, if both were timed."""
    timed = {row["impl"]: row for row in rows}
    if not {"ours", "released"} <= {*timed}:
        return []
    ours, released = timed["ours"], timed["released"]
    speed, memory = ours[rate] / released[rate], released["peak_mib"] / ours["peak_mib"]
    return [f"| {step} | the released code | {speed:.1f}x | {memory:.1f}x |"]
