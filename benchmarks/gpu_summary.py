"""The result of gpu_check.sh: one JSON file, then a short table as the last lines.

    python3 benchmarks/gpu_summary.py FOLDER

Reads FOLDER/stages.tsv (name, exit status, seconds), the logs and what the benchmarks wrote.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import common
import torch
import turns


def driver() -> str:
    """The driver's version, or why it is not known."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error})"
    return said.strip().splitlines()[0]


def stages(folder: Path) -> list[dict[str, Any]]:
    """What each stage came to the last time, with the last line that it said."""
    found = {}
    for line in (folder / "stages.tsv").read_text().splitlines():
        name, status, seconds = line.split("\t")
        said = (folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        found[name] = {
            "stage": name,
            "result": {"0": "passed", "124": "out of time"}.get(status, f"failed ({status})"),
            "seconds": int(seconds),
            "said": re.sub(r"=+", "", said[-1]).strip() if said else "",
        }
    return list(found.values())


def main() -> int:
    """Writes FOLDER/gpu_check.json and prints the table; 1 if a stage failed."""
    folder = Path(sys.argv[1])
    found = stages(folder)
    written = common.results_path("cuda")
    report = {
        "environment": {**common.environment("cuda"), "driver": driver()},
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "ceilings": turns.ceilings("cuda"),
        "stages": found,
        "benchmarks": json.loads(written.read_text()) if written.exists() else {},
    }
    path = folder / "gpu_check.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    ceilings = report["ceilings"]
    print(f"{common.device_name('cuda')}, driver {report['environment']['driver']}: {path}")
    copy, gemm = ceilings["copy_gb_per_s"], ceilings["gemm_tflop_per_s"]
    print(f"copy {copy:.0f} GB/s, bf16 matrix product {gemm:.0f} TFLOP/s")
    width = max(len(stage["stage"]) for stage in found)
    for stage in found:
        result, seconds = stage["result"], stage["seconds"]
        print(f"{stage['stage']:{width}}  {result:12}  {seconds:4} s  {stage['said'][:80]}")
    return int(any(stage["result"] != "passed" for stage in found))


if __name__ == "__main__":
    sys.exit(main())
