"""The table of the readers of clips: see bench_read.py."""

from __future__ import annotations

from typing import Any


def read_table(results: dict[str, Any]) -> list[str]:
    """Markdown rows of the readers of a result file, a table for each number of videos."""
    lines = []
    for shape, timed in results.get("read", {}).items():
        environment, rows = timed["environment"], timed["rows"]
        bare = max(row["clips_per_s"] for row in rows if row["impl"].startswith("np.memmap"))
        lines += [
            f"{shape}, {environment['device']}, numpy {environment['numpy']}, "
            f"{environment['date']}:\n",
            "| reader | clips per CPU-second | of the bare map | private MiB | peak MiB | "
            "CPU-seconds to open |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['impl']} | {row['clips_per_s']:,.0f} | {row['clips_per_s'] / bare:.2g}x | "
            f"{max(row['private_mib'], 0):.1f} | {row['peak_mib']:.1f} | {row['opening_s']:.3f} |"
            for row in rows
        ]
        lines.append("")
    return lines[:-1]
