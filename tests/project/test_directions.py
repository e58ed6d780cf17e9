"""The check of the paper's claims: what it calls a claim that holds, and that it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """The modules of benchmarks/ can be imported."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def _row(seed: int, model: str, accuracy: float, shape: float) -> dict[str, Any]:
    probes = {"colour": 1.0, "shape": shape, "direction": 0.25, "speed": 0.75}
    return {
        "seed": seed,
        "model": model,
        "training": {"mask_accuracy": accuracy, "cl_loss": 0.5},
        "probes": probes,
        "cpu_minutes": 2.0,
        "environment": {"device": "a CPU, 1 threads", "date": "2026-01-01"},
    }


def test_claim_holds_if_the_sign_is_that_of_the_paper_in_every_seed() -> None:
    from report_directions import direction_tables

    rows = []
    for seed, (blocks, iid) in enumerate([(0.5, 0.7), (0.6, 0.5)]):
        rows += [_row(seed, "masks only", blocks, 0.8), _row(seed, "masks only, iid", iid, 0.4)]
    rows.append(_row(0, "both", 0.9, 0.9))  # in one seed only
    settings = {"steps": 9, "videos": 8}
    lines = direction_tables({"settings": settings, "command": "command", "rows": rows})
    claims = [line for line in lines if line.startswith(("| Block", "| Both"))]
    assert claims == [
        "| Both help more than masked prediction | Table 7: 69.4 > 68.3 | +2.5 points | yes |",
        "| Block masks are harder to fill in than iid masks | Table 8: mask accuracy 17.6 < 24.3 "
        "| +5.0 points (-10.0 to +20.0) | in 1 of 2 seeds |",
        "| Block masks teach more than iid masks | Table 8: 68.3 > 63.5 | +10.0 points | yes |",
    ]
    assert lines[3] == (
        "| masks only | `loss.alpha=0` | 55.0 % (50.0 to 60.0) | - | 100.0 % | 80.0 % | 25.0 % | "
        "75.0 % | 70.0 % |"
    )
    assert lines[-1] == (
        "9 steps of 8 videos; mean (lowest to highest) of 2 seeds; 10 CPU minutes in all on a CPU, "
        "1 threads, 2026-01-01: `command`"
    )


def test_claim_that_never_holds_is_said_to() -> None:
    from report_directions import verdict

    assert [verdict(d) for d in ([1.0, 0.1], [-1.0, 0.0], [1.0, 0.0])] == [
        "yes",
        "no",
        "in 1 of 2 seeds",
    ]


def test_models_are_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import common
    import directions
    import learning

    monkeypatch.setattr(learning, "PROBED", 48)
    monkeypatch.setattr(learning, "BATCH", 4)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(directions, "RESULT", tmp_path / "directions.json")
    words = ["--steps", "1", "--videos", "8", "--seeds", "1", "--only", "never trained", "d_max 0"]
    monkeypatch.setattr(sys, "argv", ["directions.py", *words])
    directions.main()
    table = capsys.readouterr().out
    assert "| d_max 0 | `clips.max_distance=0` | " in table
    monkeypatch.setattr(learning, "train", None)
    directions.main()
    assert capsys.readouterr().out == table
