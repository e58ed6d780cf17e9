"""The check of the paper's claims: what it calls a claim that holds, and that it runs."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """The modules of benchmarks/ can be imported."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def _row(seed: int, model: str, mask_accuracy: float, *accuracies: float) -> dict[str, Any]:
    """A row whose fine-tuned and probed accuracies are given: spatial, temporal, both again."""
    spatial, temporal, *probed = accuracies
    return {
        "seed": seed,
        "model": model,
        "training": {"mask_accuracy": mask_accuracy, "cl_loss": 0.5},
        "tuned": {"spatial": spatial, "temporal": temporal},
        "probed": dict(zip(("spatial", "temporal"), probed, strict=True)),
        "cpu_minutes": 2.0,
        "environment": {"device": "a CPU, 1 threads", "date": "2026-01-01"},
    }


def test_claim_holds_if_the_sign_is_that_of_the_paper_in_every_seed() -> None:
    from report_directions import direction_tables

    rows = []
    for seed, (blocks, iid) in enumerate([(0.5, 0.7), (0.6, 0.5)]):
        rows += [_row(seed, "masks only", blocks, 0.8, 0.6, 0.5, 0.25)]
        rows += [_row(seed, "masks only, iid", iid, 0.4, 0.6, 0.5, 0.75)]
    rows.append(_row(0, "both", 0.9, 0.9, 0.6, 0.5, 0.25))  # in one seed only
    settings = {"steps": 9, "videos": 8}
    lines = direction_tables({"settings": settings, "command": "command", "rows": rows})
    claims = [line for line in lines if line.startswith(("| Block", "| Both", "| Iid"))]
    assert claims == [
        "| Both help more than masked prediction | Table 7: 69.4 > 68.3 | yes: +5.0 points | "
        "no: +0.0 points |",
        "| Iid masks are easier to fill in than block masks | Table 8: mask accuracy 24.3 > 17.6 "
        "| in 1 of 2 seeds: +5.0 points (-10.0 to +20.0) | the same |",
        "| Block masks teach more than iid masks | Table 8: 68.3 > 63.5 | yes: +20.0 points | "
        "no: -25.0 points |",
    ]
    assert lines[3] == (
        "| masks only | `loss.alpha=0` | 55.0 % (50.0 to 60.0) | - | 80.0 % | 60.0 % | 50.0 % | "
        "25.0 % |"
    )
    assert lines[-1] == (
        "9 steps on 8 videos; mean (lowest to highest) of 2 seeds; 10 CPU minutes in all on a CPU, "
        "1 threads, 2026-01-01: `command`"
    )


def test_lead_on_temporal_labels_is_a_difference_of_differences() -> None:
    from report_directions import CLAIMS

    (claim,) = (claim for claim in CLAIMS if "leads" in claim.text)
    rows = [_row(0, "x", 0, 0.6, 0.9, 0.5, 0.5), _row(0, "x", 0, 0.5, 0.5, 0.5, 0.5)]
    assert claim.measure(*rows, "tuned") == pytest.approx(40 - 10)
    assert claim.measure(*rows, "probed") == 0


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

    monkeypatch.setattr(learning, "PROBED", 96)
    monkeypatch.setattr(learning, "BATCH", 4)
    monkeypatch.setattr(directions, "FINETUNE", [*directions.SETTINGS, "optim.steps=1", "batch=4"])
    monkeypatch.setattr(directions, "ProcessPoolExecutor", _InThisProcess)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    words = ["--steps", "1", "--videos", "8", "--seeds", "1", "--only", "never trained", "d_max 0"]
    monkeypatch.setattr(sys, "argv", ["directions.py", *words])
    directions.main()
    table = capsys.readouterr().out
    assert "| d_max 0 | `clips.max_distance=0` | " in table
    monkeypatch.setattr(directions, "run_model", None)
    directions.main()
    assert capsys.readouterr().out == table


class _InThisProcess(ThreadPoolExecutor):
    """Where what is patched is seen."""

    def __init__(self, jobs: int, mp_context: object) -> None:
        super().__init__(jobs)
