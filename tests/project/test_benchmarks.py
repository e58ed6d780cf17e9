"""What the benchmarks say about a step: whose time it is, and what it is divided by."""

import importlib.util
import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import common
import interleaved
import learning
import learning_simvtp
import phases
import plain_step
import released_step
import report_learning
import report_ops
import report_steps

from vimpac import Vimpac, preset
from vimpac_kernels import OPS


@pytest.fixture
def bench(monkeypatch):
    """The benchmarks' own fixture; the expression keeps every candidate and writes no results."""
    path = Path(phases.__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("bench_conftest", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SECONDS", 0.0)
    monkeypatch.setitem(interleaved.SIDES, "cpu", 64)  # bf16 products are slow on some processors
    inner = SimpleNamespace(extra_info={}, pedantic=lambda run: run())
    return module.Bench(inner, only=".", device="cpu")


def _candidate(error: Exception | None = None) -> interleaved.Candidate:
    x = torch.ones(8, requires_grad=True)

    def check() -> None:
        if error is not None:
            raise error

    return interleaved.Candidate(lambda: x * 2, check, inputs=(x,), moved_bytes=64)


def test_peer_that_cannot_run_is_left_out_in_its_own_words_and_the_others_are_timed(bench):
    errors = {"liger": RuntimeError("out of\n memory")}
    names = ["reference", "liger", "eager"]
    timed = bench("mask_tokens", "shape", names, lambda name: _candidate(errors.get(name)))
    assert timed.left_out == {"liger": "does not run here: out of memory"}
    assert [row.impl for row in timed.rows] == ["reference", "eager"]
    assert timed.rounds == 3
    for row in timed.rows:
        assert row.fwd_ms > 0 and row.bwd_ms > 0
        ceiling = timed.ceilings["copy_gb_per_s"]
        assert row.percent_of_ceiling == pytest.approx(100 * row.rate / ceiling)


@pytest.mark.parametrize(
    ("name", "error"),
    [("reference", RuntimeError("no kernel")), ("eager", AssertionError("other values"))],
)
def test_ours_that_cannot_run_and_whoever_is_wrong_fail_after_the_others_are_timed(
    bench, name, error
):
    def make(candidate: str) -> interleaved.Candidate:
        return _candidate(error if candidate == name else None)

    with pytest.raises(type(error), match=str(error)):
        bench("mask_tokens", "shape", [name, "torch"], make)
    assert [row["impl"] for row in bench.benchmark.extra_info["rows"]] == ["torch"]


def test_bf16_is_measured_against_a_product_in_bf16(bench):
    def make(name: str) -> interleaved.Candidate:
        x = torch.ones(8)
        return interleaved.Candidate(lambda: x * 2, lambda: None, flops=8, bf16=name == "half")

    timed = bench("linear_cross_entropy", "shape", ["half", "single"], make)
    half, single = timed.rows
    assert half.percent_of_ceiling == pytest.approx(
        100 * half.rate / timed.ceilings["bf16_gemm_tflop_per_s"]
    )
    assert single.percent_of_ceiling == pytest.approx(
        100 * single.rate / timed.ceilings["gemm_tflop_per_s"]
    )


def test_rounds_call_every_candidate_in_order_until_the_budget_is_spent():
    calls = []

    def timed(name: str) -> interleaved.TimedCall:
        def call() -> tuple[float, ...]:
            calls.append(name)
            return (1.0,)

        return call

    each = [timed("ours"), timed("eager"), timed("copy")]
    assert len(interleaved.run_rounds(each, least=3, most=9, budget_s=0.0)) == 3
    assert calls == 3 * ["ours", "eager", "copy"]
    assert len(interleaved.run_rounds(each, least=3, most=9, budget_s=60.0)) == 9


def test_ratios_outlast_a_machine_that_slows_down_half_way():
    fast = [(1.0, 2.0), (3.0,), (4.0,)]  # forward and backward of one, forwards of two
    slow = [(1.8, 3.6), (5.4,), (7.2,)]
    between = [(1.0, 2.0), (5.4,), (7.2,)]  # the medians of each alone are 1.0, 2.0, 5.4 and 7.2
    (fwd, bwd), (second,), (third,) = interleaved.typical([fast, between, slow])
    assert (bwd / fwd, second / fwd, third / fwd) == pytest.approx((2, 3, 4))


def test_backward_is_timed_on_the_graph_of_the_timed_forward():
    x = torch.ones(2, requires_grad=True)
    returned = []

    def clock(run):
        returned.append(run())
        return float(len(returned)), returned[-1]

    candidate = interleaved.Candidate(lambda: (x * x, None), lambda: None, inputs=(x,))
    assert candidate.measure(clock) == (1.0, 2.0)
    (gradient,) = returned[1]
    assert torch.equal(gradient, 2 * x)


def test_results_of_a_shape_replace_that_shape_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "RESULTS", tmp_path)

    def write(shape: str, *impls: str) -> None:
        rows = [common.Row(shape, impl, 1.0, None, None, "", None, None) for impl in impls]
        common.write_results("op", "cpu", shape, common.Timed(rows, {}, 3, {}))

    write("one", "ours", "eager")
    write("two", "ours")
    write("one", "ours", "liger")
    results = json.loads(common.results_path("cpu").read_text())
    found = [(row["shape"], row["impl"]) for row in report_ops.rows_of(results, "op")]
    assert found == [("one", "ours"), ("one", "liger"), ("two", "ours")]


def test_memory_is_compared_with_the_best_peer_and_time_with_the_fastest():
    def row(impl: str, ms: float, mib: float | None) -> dict:
        return {"shape": "s", "impl": impl, "fwd_ms": ms, "bwd_ms": None, "peak_mib": mib}

    rows = [row("cpu", 2.0, 10.0), row("numpy", 3.0, None), row("torch", 8.0, 15.0)]
    assert list(report_ops.comparisons([*rows, row("eager", 4.0, 40.0)])) == [(1.5, 1.5)]


def test_sanitizers_look_at_every_triton_kernel():
    """Which they find by the name of its op."""
    root = Path(phases.__file__).parents[1]
    for op in OPS:
        sources = (root / "vimpac_kernels/ops" / op).glob("triton*.py")
        text = "\n".join(path.read_text() for path in sources)
        names = re.findall(r"^def (\w+_kernel)\(", text, re.MULTILINE)
        assert names and all(name.startswith(op) for name in names)


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
    cells = [line.split(" | ") for line in report_steps.step_table(rows)[2:]]
    ratios = [(line[0], line[1].split(":")[0], line[3]) for line in cells]
    assert ratios == [
        ("| implementations", "released", "1.00x"),
        ("| implementations", "ours", "3.00x"),
        ("| layouts (Table 13)", "released", "1.00x"),
        ("| layouts (Table 13)", "ours", "4.00x"),
        ("| inputs (Table 14)", "ours", "1.00x"),
    ]
    assert cells[3][4] == "2.54x"  # the paper


@pytest.mark.parametrize("layout", ["T,H|W", "T,HW"])
def test_released_model_of_the_benchmark_computes_our_loss(layout):
    torch.manual_seed(0)
    config = preset("tiny", layout=layout, grid=(2, 3, 4), dropout=0.0)
    ours, released = Vimpac(config), released_step.ReleasedModel(config)
    released_step.copy_weights(ours, released)
    clips, labels = released_step.released_inputs(torch.randint(0, 8192, (4, 2, 3, 4)))
    torch.testing.assert_close(released(clips, labels), ours(clips, labels).loss)


@pytest.mark.parametrize("layout", ["T,H|W", "T,H,W", "T,HW", "THW"])
def test_plain_model_of_the_benchmark_computes_our_loss_and_gradients(layout):
    torch.manual_seed(0)
    config = preset("tiny", layout=layout, grid=(2, 3, 4), dropout=0.0)
    ours, plain = Vimpac(config).double(), plain_step.PlainModel(config).double()
    plain.model.load_state_dict(ours.state_dict())
    clips, labels = released_step.released_inputs(torch.randint(0, 8192, (4, 2, 3, 4)))
    losses = ours(clips, labels).loss, plain(clips, labels)
    torch.testing.assert_close(*losses, check_dtype=False)
    for loss in losses:
        loss.backward()
    for mine, theirs in zip(ours.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-7)


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


def test_learning_table_has_a_row_for_each_test_and_model():
    def row(linear: float, neighbours: float) -> dict:
        record = {"mask_loss": 1.0, "mask_accuracy": 0.5, "cl_loss": 0.5}
        accuracies = {"linear probe, pre-trained": linear, "k-NN, pre-trained": neighbours}
        return {
            "probes": {name: {"shape": share} for name, share in accuracies.items()},
            "training": {"block": record},
            "commonest": 0.2,
            "cpu_minutes": 1.0,
        }

    results = {
        "environment": {"device": "a CPU", "date": "today"},
        "command": "python benchmarks/learning.py",
        "settings": {"steps": 1, "videos": 2},
        "chance": {"mask_loss": 9.0, "cl_loss": 1.7, "probes": {"shape": 0.25}},
        "rows": [row(0.5, 0.3), row(0.7, 0.3)],
    }
    assert report_learning.learning_tables(results)[2:5] == [
        "| linear probe, pre-trained | 60.0 % (50.0-70.0) |",
        "| k-NN, pre-trained | 30.0 % |",
        "| chance | 25.0 % |",
    ]


def test_simvtp_learning_table_sets_the_right_video_beside_another(tmp_path, monkeypatch):
    """Two rows of two steps, whose losses of weight 0 are not there."""
    rows = {"all losses": [], "without pixels": ["loss.pixels=0"]}
    monkeypatch.setattr(learning_simvtp, "TRAINING", 40)
    tiny = ["model.width=32", "model.layers=1", "batch.videos=8", "batch.contrastive=8"]
    tiny += ["batch.micro=8"]
    found = {name: [learning_simvtp.run_row([*tiny, *row], 0, 2)] for name, row in rows.items()}
    results = {
        "environment": {"device": "a CPU", "date": "today"},
        "command": "python benchmarks/learning_simvtp.py",
        "settings": {"steps": 2},
        "chance": 1 / 64,
        "rows": found,
    }
    lines = report_learning.simvtp_tables(results)
    assert [line.split(" |")[0] for line in lines[2:6]] == [
        *("| nothing", "| all losses", "| without pixels", "| chance"),
    ]
    test = found["all losses"][0]["test"]
    colour = f"{100 * test['colour, right']:.0f} / {100 * test['colour, other']:.0f} %"
    assert lines[3].split(" | ")[3] == colour
    assert lines[4].endswith("| - |")
    assert {len(line.split("|")) for line in lines[:6]} == {len(lines[0].split("|"))}
