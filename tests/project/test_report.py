"""The tables that report.py writes into README.md and docs/."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.project.doc_pages import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import report
import report_headlines
import report_ops


def _row(impl: str, fwd_ms: float, peak_mib: float, **more: Any) -> dict[str, Any]:
    times = {"fwd_ms": fwd_ms, "bwd_ms": fwd_ms, "rate": 7.0, "rate_unit": "GB/s"}
    row = {"shape": "B4 H|W", "impl": impl, **times, "percent_of_ceiling": 50.4}
    return row | {"peak_mib": peak_mib, **more}


def _step(impl: str, videos_per_s: float, peak_mib: float, layout: str = "T,H|W") -> dict[str, Any]:
    size = {"layout": layout, "frames": 5, "side": 16}
    return {"impl": impl, **size, "videos_per_s": videos_per_s, "peak_mib": peak_mib}


def _shapes(*rows: dict[str, Any], date: str = "2026-01-01") -> dict[str, Any]:
    return {"one": {"environment": {"date": date}, "rows": list(rows)}}


def test_pages_hold_the_tables_of_the_result_files() -> None:
    for page, text in report.pages().items():
        assert page.read_text(encoding="utf-8") == text, f"{page}: run python benchmarks/report.py"


def test_table_goes_between_its_comments_only() -> None:
    page = "a\n<!-- t -->\nold\n<!-- /t -->\nb\n"
    assert report.fill(page, "t", ["new"]) == "a\n<!-- t -->\nnew\n<!-- /t -->\nb\n"
    with pytest.raises(ValueError, match="the page needs <!-- u --> and <!-- /u -->"):
        report.fill(page, "u", ["new"])


def test_headlines_compare_steps_with_the_released_code_and_ops_with_the_fastest_peer() -> None:
    steps = [_step("released", 0.4, 300.0), _step("ours", 0.6, 200.0)]
    steps.append(_step("ours", 9.0, 1.0, layout="THW"))
    attention = [_row("cpu", 1.0, 10.0), _row("eager", 4.0, 30.0), _row("compiled", 3.0, 20.0)]
    results = {"train": _shapes(*steps), "axial_attention": _shapes(*attention)}
    replaced = report_ops.REPLACES["axial_attention"]
    assert report_headlines.headline_table(results)[2:] == [
        "| training step of VIMPAC, small model | the released code | 1.5x | 1.5x |",
        f"| `axial_attention` | {replaced} | 3.0x | 2.0x |",
    ]


def test_speed_table_names_a_shape_once() -> None:
    results = {"bias_gelu": _shapes(_row("cpu", 1.25, 10.0), _row("eager", 2.0, 12.0))}
    results["bias_gelu"]["one"]["rows"][1]["rate"] = None
    assert report_ops.speed_table(results, "bias_gelu")[2:] == [
        "| B4 H\\|W | cpu | 1.25 | 1.25 | 7\u00a0GB/s | 50 % | 10 |",
        "|  | eager | 2 | 2 | - | 50 % | 12 |",
    ]


def test_newest_file_of_each_kind_of_device_counts() -> None:
    old, new = _shapes(date="2026-01-01"), _shapes(date="2026-02-01")
    found = {
        Path("b-2-threads.json"): {"train": new},
        Path("h100.json"): {"train": old},
        Path("a-2-threads.json"): {"train": old, "read": old},
    }
    assert [file.name for file in report.newest(found, "train")] == [
        "b-2-threads.json",
        "h100.json",
    ]
    assert [file.name for file in report.newest(found, "read")] == ["a-2-threads.json"]


def test_op_page_links_every_kernel_file_of_the_op() -> None:
    table = "\n".join(report_ops.code_table("axial_attention"))
    for name in ("cuda.cu", "cuda_bwd.cu", "cpu_long.cpp", "triton_tiles.py", "arguments.hpp"):
        assert f"[`{name}`](../../" in table


def test_no_table_of_a_page_is_empty() -> None:
    for page, text in report.pages().items():
        assert not re.search(r"<!-- (\w+) -->\s*<!-- /\1 -->", text), page
