"""The tables of result files that stand on pages of the documentation; see report.py."""

from __future__ import annotations

from typing import Any

NAMES = {
    "ours": "`vimpac tokenize`",
    "ours, start only": "`vimpac tokenize` of two pictures",
    "ffmpeg": "ffmpeg, frames only",
    "decord": "decord, frames only",
}


def evaluate_table(results: dict[str, Any]) -> list[str]:
    """Markdown rows of the tests of a classifier, with their ratio to the plain loop."""
    environment = next(shape["environment"] for shape in results["evaluate"].values())
    lines = [
        f"{environment['device']}, torch {environment['torch']}, {environment['date']}:\n",
        "| small model, 10 clips x 3 crops | implementation | views asked for / encoded | views/s "
        "| ratio | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for shape, timed in results["evaluate"].items():
        plain = next(row for row in timed["rows"] if row["impl"] == "plain loop")
        lines += [
            f"| {shape} videos | {row['impl']} | {row['views']} / {row['encoded']} | "
            f"{row['views_per_s']:.3g} | {row['views_per_s'] / plain['views_per_s']:.2f}x | "
            f"{row['peak_mib']:.0f} |"
            for row in timed["rows"]
        ]
    return lines


def simvtp_step_table(results: dict[str, Any]) -> list[str]:
    """Markdown rows of the steps of SimVTP, with their ratio to the released one."""
    environment = next(shape["environment"] for shape in results["simvtp"].values())
    lines = [
        f"{environment['device']}, torch {environment['torch']}, {environment['date']}:\n",
        "| step | implementation | pairs/s | ratio | MFU | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for shape, timed in results["simvtp"].items():
        lines += [
            f"| {shape} | {row['impl']} | {row['pairs_per_s']:.3g} | {row['ratio']:.2f}x | "
            f"{row['mfu_percent']:.0f} % | {row['peak_mib']:.0f} |"
            for row in timed["rows"]
        ]
    return lines


def tokenize_tables(results: dict[str, Any]) -> list[str]:
    """Markdown rows of decoding by whole commands, then of ours by stage."""
    if "tokenize" not in results:
        return []
    environment = next(shape["environment"] for shape in results["tokenize"].values())
    lines = [
        f"{environment['device']}, {environment['date']}:\n",
        "| videos | command, two processes | CPU s | ratio to ffmpeg |",
        "|---|---|---|---|",
    ]
    for timed in results["tokenize"].values():
        lines += [
            f"| {row['clips']} clips, {row['frames']} frames | {NAMES[row['impl']]} | "
            f"{row['cpu_s']:.1f} | {row['ratio']:.2f}x |"
            for row in timed["rows"]
        ]
    for timed in results.get("tokenize_stages", {}).values():
        stages = [*timed["rows"][0]["stages"]]
        columns = ["clips, in one process", "decoded", *stages, "CPU s", "ffmpeg", "ratio"]
        lines += [f"\n| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in timed["rows"]:
            cells = " | ".join(f"{seconds:.2f}" for seconds in row["stages"].values())
            lines.append(
                f"| {row['clips']} {row['codec']}, {row['lines']} lines | {row['decoded']} | "
                f"{cells} | {row['cpu_s']:.2f} | {row['ffmpeg_cpu_s']:.2f} | "
                f"{row['cpu_s'] / row['ffmpeg_cpu_s']:.2f}x |"
            )
    return lines
