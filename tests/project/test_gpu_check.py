"""What runs in the first minutes on a GPU, rehearsed: emulated kernels, plain calls for graphs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.emulator import build

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import common
import gpu_agreement
import gpu_cases
import gpu_clock
import gpu_ops
import gpu_step
import gpu_summary
import gpu_variants
import predict
import report_ops

from vimpac_kernels.runtime import registry

ROOT = Path(__file__).resolve().parents[2]
emulated = pytest.mark.skipif(
    build.unavailable() is not None, reason=str(build.unavailable() or "")
)
OPS = [op for op in registry.OPS if any(c.op == op for c in gpu_cases.cases("small", "cpu"))]


@pytest.fixture(autouse=True)
def one_case_of_each_op(monkeypatch, tmp_path):
    """The smallest of each, results in a folder of the test, no Triton in this process."""
    first = {}
    for case in gpu_cases.cases("small", "cpu"):
        first.setdefault(case.op, case)
    monkeypatch.setattr(gpu_cases, "cases", lambda scale, device: iter(first.values()))
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "KERNELS", {**common.KERNELS, "cuda": ("cuda",)})
    gpu_agreement._cases.cache_clear()
    yield
    gpu_agreement._cases.cache_clear()


@pytest.fixture
def emulator():
    """The CUDA kernels, for CPU tensors."""
    with gpu_agreement.emulated():
        yield build.load("plain")


def test_every_op_has_cases_at_every_scale(monkeypatch):
    monkeypatch.undo()
    for scale in gpu_cases.SCALES:
        if scale != "published":  # its tensors are for a GPU, but cases make none
            assert {case.op for case in gpu_cases.cases(scale, "cpu")} == set(registry.OPS)
    assert {case.op for case in gpu_cases.cases("published", "cpu")} == set(registry.OPS)


@emulated
def test_kernels_agree_with_fp64(emulator, capsys):
    assert gpu_agreement.run("small", "cpu", "cuda").failures == 0
    said = capsys.readouterr().out
    assert all(f"{op} cuda: 1 cases agree" in said for op in OPS)


@emulated
def test_wrong_and_unwritten_outputs_are_failures(emulator, monkeypatch, capsys):
    wrong, unwritten, *_ = gpu_cases.cases("small", "cpu")

    def nearly(*tensors, impl):
        y = wrong.run(*tensors, impl=impl)
        return y * 1.1 if impl == "cuda" else y

    def nothing(*tensors, impl):
        y = unwritten.run(*tensors, impl=impl)
        return y + torch.empty_like(y) * 0 if impl == "cuda" else y

    broken = [dataclasses.replace(c, run=r) for c, r in ((wrong, nearly), (unwritten, nothing))]
    monkeypatch.setattr(gpu_cases, "cases", lambda scale, device: iter(broken))
    gpu_agreement._cases.cache_clear()
    assert gpu_agreement.run("small", "cpu", "cuda").failures == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"FAIL {wrong.op} cuda {wrong.label}: AssertionError: max error")
    assert "max error nan" in lines[1]


@emulated
def test_ops_are_timed_and_reported_with_what_was_predicted(emulator, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "percents", lambda *_: (80, 70))
    stage = gpu_ops.Stage("cpu")
    gpu_ops.time_ops(stage)
    assert stage.log.failures == 0
    results = json.loads(common.results_path("cpu").read_text())
    assert set(results) == set(OPS)
    for shapes in results.values():
        for timed in shapes.values():
            ours, peer = timed["rows"]
            assert ours["impl"] == "cuda" and ours["predicted"] == [80, 70]
            assert peer["fwd_ms"] > 0 and ours["fwd_ms"] > 0
    assert len(report_ops.op_table(results)) == 2 + len(set(report_ops.REPLACES) & set(OPS))
    lines = list(gpu_summary.op_lines(results))
    assert len(lines) == len(OPS) and all("predicted 80/70%" in line for line in lines)


@emulated
def test_variants_are_timed_if_they_are_right(emulator, monkeypatch, capsys):
    class Wrong(types.ModuleType):
        """Kernels that write nothing."""

        def __getattr__(self, name):
            real = getattr(emulator, name)
            return (lambda *_: None) if name.endswith("_fwd") else real

    def candidates(op, impl, modules, device):
        variants = {"installed": emulator, "same": emulator, "wrong": Wrong("wrong")}
        override = registry.override_extension
        return {name: partial(override, "cuda", module) for name, module in variants.items()}

    monkeypatch.setattr(gpu_ops, "candidates_of", candidates)
    monkeypatch.setattr(registry, "OPS", ("bias_gelu", "mask_tokens"))
    stage = gpu_ops.Stage("cpu")
    gpu_ops.time_variants(stage, Path("nowhere"))
    said = capsys.readouterr().out
    assert stage.log.failures == 2 and "FAIL bias_gelu cuda wrong" in said
    results = json.loads(common.results_path("cpu").read_text())
    for timed in results["variants"].values():
        assert [row["impl"] for row in timed["rows"]] == ["installed", "same"]
    assert all(": same " in line for line in gpu_summary.variant_lines(results))


@emulated
def test_heaviest_kernels_run_for_the_profiler(emulator):
    stage = gpu_ops.Stage("cpu")
    gpu_ops.profile(stage)
    assert stage.log.failures == 0


def test_steps_are_timed_and_written(tmp_path, capsys):
    log = gpu_clock.Log()
    gpu_step.time_products("cpu", log)
    for case in gpu_step.cases("cpu"):
        gpu_step.time_step(case, "cpu", log, tmp_path)
    results = json.loads(common.results_path("cpu").read_text())
    (timed,) = results["step"].values()
    assert [row["impl"] for row in timed["rows"]] == ["ours", "plain", "released"]
    assert timed["rows"][0]["graph_ms"] > 0 and timed["rows"][1]["graph_ms"] is None
    assert len(results["products"]) == 1
    assert sum("ms eager" in line for line in capsys.readouterr().out.splitlines()) == 3


def test_what_does_not_fit_says_so_and_is_no_failure(capsys):
    log = gpu_clock.Log()
    with log.trying("step"):
        raise torch.OutOfMemoryError("tried to allocate\n 90 GiB")
    with log.trying("step"):
        raise ValueError("no")
    assert log.failures == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("step: does not fit this GPU: tried to allocate 90 GiB")
    assert second == "FAIL step: ValueError: no"


def test_variants_change_constants_that_there_are():
    for op, variants in gpu_variants.CUDA.items():
        for name, text in variants.items():
            assert gpu_variants.changes_of(op, text)[op], name
    for op, sets in gpu_variants.TRITON.items():
        tuning = importlib.import_module(f"vimpac_kernels.ops.{op}.triton").TUNING
        for name, values in sets.items():
            assert set(values) <= set(tuning) and values.items() - tuning.items(), name


@emulated
def test_variants_are_found_and_put_back(emulator, monkeypatch):
    monkeypatch.setattr(gpu_variants, "load", lambda folder, op: {"threads128": emulator})
    cuda = gpu_ops.candidates_of("mask_tokens", "cuda", Path("nowhere"), "cpu")
    assert set(cuda) == {"installed", "threads128"}
    for current in cuda.values():
        with current():
            assert registry.extension("cuda") is emulator
    tuning = importlib.import_module("vimpac_kernels.ops.mask_tokens.triton").TUNING
    before = dict(tuning)
    triton = gpu_ops.candidates_of("mask_tokens", "triton", Path("nowhere"), "cuda")
    with triton["cells256"]():
        assert tuning == {**before, "CELLS": 256}
    assert tuning == before


def test_module_holds_one_variant_of_each_op(monkeypatch):
    monkeypatch.setattr(gpu_variants, "CUDA", {"a": {"1": "", "2": ""}, "b": {"3": ""}})
    assert gpu_variants.packs() == [{"a": "1", "b": "3"}, {"a": "2"}]


def test_table_of_the_notes_is_what_is_calculated(monkeypatch):
    monkeypatch.undo()  # to the results that there are, for the measured columns
    assert "\n".join(predict.table()) in (ROOT / "benchmarks" / "NOTES.md").read_text()


def test_products_are_those_of_the_model():
    step = predict.Step(common.SMALL)
    flops = 3 * sum(product.count * product.flops for product in step.products())
    assert 12.0e12 < flops < 12.2e12
    layout = common.step_flops(common.SMALL.B // 2, 5, 16, "T,H|W")
    assert flops == pytest.approx(layout, rel=0.05)  # which counts the rows that are masked


def test_summary_keeps_to_what_comes_back(tmp_path):
    failures = "".join(f"FAIL op {i}: {'x' * 200}\n" for i in range(400))
    stages = "STAGE 1 load 0 4\nSTAGE 1 ops 124 60\nSTAGE 1 tests 1 30\nSTAGE 1 tests 0 31\n"
    (tmp_path / "run.log").write_text(failures + stages)
    row = {"impl": "cuda", "fwd_ms": 1.0, "bwd_ms": None, "fwd_percent": 80.0, "bwd_percent": None}
    none = {"kernel_us": None, "kernel_percent": None}
    shapes = {f"shape {i}": {"rows": [{**row, "predicted": None, **none}]} for i in range(400)}
    (tmp_path / "gpu.json").write_text(json.dumps({"mask_tokens": shapes}))
    said, passed = gpu_summary.summary(tmp_path)
    assert len(said) <= gpu_summary.MOST and not passed
    assert "mask_tokens shape 0: cuda 1000 (80%)" in said and "the rest is in" in said
    assert "FAILED: op 0: x" in said and "more: see run.log" in said
    assert said.endswith("1 load passed (4 s); 1 ops out of time (60 s); 1 tests passed (31 s)")


STUB = """#!/bin/sh
case "$*" in
  *gpu_summary*) exec {python} "$@" ;;
  *gpu_agreement.py) echo waiting; sleep 60 & sleep 60 ;;
  *"gpu_ops.py"*ops) echo "FAIL op: wrong"; exit 1 ;;
  *) exit 0 ;;
esac
"""


def test_stage_that_hangs_takes_no_time_of_the_others(tmp_path):
    """The driver with stand-ins for every program that it starts, and seconds for minutes."""
    tree = tmp_path / "tree"
    (tree / "benchmarks").mkdir(parents=True)
    (tree / "tests").mkdir()
    (tree / "vimpac_kernels").mkdir()
    script = (ROOT / "benchmarks" / "gpu_check.sh").read_text()
    caps = "limit=11 stages=(load:1 agree:2 ops:2 memcheck:2 ncu:2 tests:2)"
    lines = [f"  1) {caps} ;;" if ln.startswith("  1) limit") else ln for ln in script.split("\n")]
    (tree / "benchmarks" / "gpu_check.sh").write_text("\n".join(lines))
    (tree / "benchmarks" / "gpu_summary.py").write_text(Path(gpu_summary.__file__).read_text())
    for name in ("python3", "ncu", "compute-sanitizer"):
        (tmp_path / name).write_text(STUB.format(python=sys.executable))
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop("OUT", None)
    done = subprocess.run(
        ["bash", str(tree / "benchmarks" / "gpu_check.sh"), "1"],
        capture_output=True, text=True, env=environment, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    *_, failed, stages = done.stdout.strip().splitlines()
    assert done.stdout.count("FAILED: ") == 2 and "FAILED: agree: waiting" in done.stdout
    assert failed == "FAILED: op: wrong"
    results = dict(part.split(" (")[0].split(" ", 2)[1:] for part in stages.split("; "))
    assert results == {
        "load": "passed", "agree": "out of time", "ops": "failed", "memcheck": "passed",
        "ncu": "passed", "tests": "passed",
    }  # fmt: skip
