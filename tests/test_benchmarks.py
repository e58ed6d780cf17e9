"""What the benchmarks say about a step: whose time it is, and what it is divided by."""

import importlib.util
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu_summary
import learning
import phases
import report


def _fail() -> None:
    raise RuntimeError("out of\n memory")


def test_peer_that_cannot_run_is_skipped_in_its_own_words_and_ours_fails(monkeypatch):
    path = Path(phases.__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("bench_conftest", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    bench = module.Bench(SimpleNamespace(), device="cpu")
    with pytest.raises(pytest.skip.Exception, match="liger does not run here: out of memory"):
        bench("op", "shape", "liger", _fail)
    with pytest.raises(RuntimeError, match="out of"):
        bench("op", "shape", "triton autocast", _fail)


def test_summary_holds_the_last_run_of_each_stage(tmp_path):
    (tmp_path / "stages.tsv").write_text("build\t0\t9\ntests\t124\t80\ntests\t0\t99\n")
    for name in ("build", "tests"):
        (tmp_path / f"{name}.log").write_text(f"begin\n== {name} done ==\n")
    assert [(s["stage"], s["result"], s["said"]) for s in gpu_summary.stages(tmp_path)] == [
        ("build", "passed", "build done"),
        ("tests", "passed", "tests done"),
    ]


class _SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        time.sleep(0.05)
        return grad


def test_backward_counts_for_the_phase_of_its_forward():
    x = torch.ones(4, requires_grad=True)

    def step() -> None:
        with phases.phase("embedding"):
            y = x * 2
        with phases.phase("MLP"):
            y = _SlowBackward.apply(y)
        with phases.phase("token head"):
            loss = y.exp().sum()
        loss.backward()

    start = time.perf_counter()
    milliseconds = phases.breakdown(step, "cpu")
    wall_ms = (time.perf_counter() - start) * 1e3
    assert set(milliseconds) == set(phases.PHASES)
    assert milliseconds["MLP"] >= 50
    assert milliseconds["embedding"] > 0 and milliseconds["token head"] > 0
    assert sum(milliseconds.values()) <= wall_ms
    assert milliseconds["MLP"] > 0.5 * sum(milliseconds.values())


def test_step_is_compared_with_the_released_one_and_with_the_dense_layout():
    def row(impl: str, layout: str, videos_per_s: float) -> dict:
        size = {"frames": 5, "side": 16, "phases": None}
        rates = {"videos_per_s": videos_per_s, "mfu_percent": 50.0, "peak_mib": 100.0}
        return {"impl": impl, "layout": layout, **size, **rates}

    rows = [row("ours", "T,H|W", 6.0), row("released", "T,H|W", 2.0), row("released", "THW", 1.5)]
    cells = [line.split(" | ") for line in report.step_table(rows)[2:]]
    ratios = [(line[0], line[1].split(":")[0], line[3]) for line in cells]
    assert ratios == [
        ("| implementations", "released", "1.00x"),
        ("| implementations", "ours", "3.00x"),
        ("| layouts (Table 13)", "released", "1.00x"),
        ("| layouts (Table 13)", "ours", "4.00x"),
        ("| inputs (Table 14)", "ours", "1.00x"),
    ]
    assert cells[3][4] == "2.54x"  # the paper


def test_shapes_move_as_labelled():
    rng, steps = np.random.default_rng(0), 0
    for _ in range(10):
        frames, classes = learning.draw_video(rng)
        coloured = frames.max(1) > frames.min(1)  # the background is grey
        speed = learning.SPEEDS[classes["speed"]]
        angle = 2 * np.pi * int(classes["direction"]) / learning.DIRECTIONS
        step = speed * np.sin(angle), speed * np.cos(angle)
        for pair in zip(coloured[:-1], coloured[1:], strict=True):
            pixels = [np.argwhere(mask) for mask in pair]
            if all(0 < p.min() and p.max() < learning.SIDE - 1 for p in pixels):  # crosses no edge
                assert pixels[1].mean(0) - pixels[0].mean(0) == pytest.approx(step, abs=0.5)
                steps += 1
    assert steps > 10
