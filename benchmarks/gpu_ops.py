"""Every op at the published shapes, and its variants, on a GPU.

    python benchmarks/gpu_ops.py FOLDER [ops] [variants] [--modules build/gpu] [--emulate]

`ops` times each implementation interleaved with what a user would write in plain PyTorch.
`variants` times all modules that gpu_variants.py has built, and Triton's with other values of
TUNING, interleaved with the one that is installed. `ncu` calls the heaviest kernels once more each,
between the marks that Nsight Compute waits for. Each is checked first. Results go to
FOLDER/<device>.json after each shape.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import common
import gpu_agreement
import gpu_cases
import gpu_clock
import gpu_variants
import interleaved
import predict
import torch
from gpu_cases import Case

from vimpac_kernels.runtime import registry

SECONDS = 0.15  # of rounds, for each candidate


@dataclasses.dataclass(frozen=True)
class Outcome(common.Row):
    """A row, and the percentages of a copy that were predicted of its directions."""

    fwd_percent: float | None = None
    bwd_percent: float | None = None
    predicted: tuple[float, float] | None = None
    kernel_us: float | None = None  # of our own kernels, where products take most of the time
    kernel_percent: float | None = None  # of a copy, of their bytes


class Stage:
    """What the stages share: a device, its ceilings, a log."""

    def __init__(self, device: str) -> None:
        self.device, self.log = device, gpu_clock.Log()
        self.scale = "published" if device == "cuda" else "small"
        self._ceilings: dict[str, tuple[interleaved.TimedCall, float]] = {}

    def cases(self) -> Iterator[Case]:
        """The calls that are timed."""
        return gpu_cases.cases(self.scale, self.device)

    @functools.cached_property
    def copy(self) -> float:
        """GB/s of a copy, apart from any candidate."""
        return self.rounds({}, "copy_gb_per_s")[1]["copy_gb_per_s"]

    def rounds(
        self, candidates: Mapping[str, interleaved.TimedCall], ceiling: str
    ) -> tuple[dict, dict, int]:
        """Times candidates and a ceiling interleaved: (milliseconds by name, rates, rounds)."""
        if ceiling not in self._ceilings:
            made = interleaved.CEILINGS[ceiling](self.device)
            self._ceilings[ceiling] = gpu_clock.record(made.run, self.device), made.work
        ceiling_call, work = self._ceilings[ceiling]
        each = [*candidates.values(), ceiling_call]
        rounds = gpu_clock.rounds(each, SECONDS * len(each), self.device)
        *times, (ms,) = interleaved.typical(rounds)
        return dict(zip(candidates, times, strict=True)), {ceiling: work / ms}, len(rounds)

    def recorded(self, case: Case, tensors: list, impl: str) -> interleaved.TimedCall:
        """A timed call of one candidate, which has run by then."""
        forward = lambda: case.call(tensors, impl)  # noqa: E731 (a name for it says no more)
        inputs = case.inputs(tensors)
        return gpu_clock.record_both(forward, inputs, self.device)

    def peak_mib(self, case: Case, tensors: list, impl: str) -> float | None:
        """Memory of a call and its backward; not that of emulated kernels."""
        if self.device != "cuda":
            return None
        return interleaved.peak_mib(
            lambda: gpu_agreement.gradients(case, tensors, impl), self.device
        )

    def kernel_us(self, case: Case, tensors: list, impl: str) -> float | None:
        """Microseconds of the kernels that are named after an op whose rest are products."""
        if self.device != "cuda" or case.kernel is None:
            return None
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            gpu_agreement.gradients(case, tensors, impl)
            torch.cuda.synchronize()
        events = profiler.key_averages()
        return sum(e.self_device_time_total for e in events if case.op in e.key) or None

    def outcome(self, case: Case, impl: str, ms: tuple[float, ...], rates: dict) -> Outcome:
        """The row of a candidate."""
        fwd_ms, bwd_ms = (*ms, None)[:2]
        moved = None if case.moved is None else sum(case.moved)
        percents: list[float | None] = [None, None]
        if case.moved is not None:
            copy = rates["copy_gb_per_s"]
            for i, (size, part) in enumerate(zip(case.moved, ms, strict=False)):
                percents[i] = 100 * size / part / 1e6 / copy
        (ceiling,) = rates.values()
        rate = common.rate(sum(ms), moved, case.flops, ceiling)
        predicted = predict.percents(case.op, case.width, common.device_name(self.device))
        return Outcome(case.label, impl, fwd_ms, bwd_ms, *rate, None, *percents, predicted)


def time_ops(stage: Stage) -> None:
    """One table of each op."""
    for case in stage.cases():
        with stage.log.trying(f"{case.op} {case.label}"):
            tensors = case.make()
            candidates: dict[str, interleaved.TimedCall] = {}
            facts: dict[str, dict[str, float | None]] = {}
            for impl in (*gpu_agreement.impls(case.op, stage.device), case.peer[0]):
                with stage.log.trying(f"{case.op} {case.label} {impl}"):
                    facts[impl] = {
                        "peak_mib": stage.peak_mib(case, tensors, impl),
                        "kernel_us": stage.kernel_us(case, tensors, impl),
                    }
                    candidates[impl] = stage.recorded(case, tensors, impl)
            ceiling = "copy_gb_per_s" if case.flops is None else "gemm_tflop_per_s"
            times, rates, count = stage.rounds(candidates, ceiling)
            rows = []
            for impl, ms in times.items():
                row = dataclasses.replace(stage.outcome(case, impl, ms, rates), **facts[impl])
                if row.kernel_us and case.kernel:
                    of_copy = case.kernel / row.kernel_us / 1e3 / stage.copy
                    row = dataclasses.replace(row, kernel_percent=100 * of_copy)
                rows.append(row)
            timed = common.Timed(rows, rates, count, {})
            common.write_results(case.op, stage.device, case.label, timed)
            stage.log.say(f"{case.op} {case.label}: {'; '.join(map(_said, rows))}")


def _said(row: Outcome) -> str:
    us = "/".join(f"{ms * 1e3:.0f}" for ms in (row.fwd_ms, row.bwd_ms) if ms is not None)
    percents = [f"{p:.0f}" for p in (row.fwd_percent, row.bwd_percent) if p is not None]
    rate = f" {row.rate:.0f} {row.rate_unit}" if row.rate else ""
    of_copy = f" {'/'.join(percents)} % of copy" if percents else ""
    if row.kernel_percent:
        of_copy = f", own kernels {row.kernel_us:.0f} us {row.kernel_percent:.0f} % of copy"
    return f"{row.impl} {us} us{rate}{of_copy}"


@contextmanager
def _tuned(op: str, values: Mapping[str, int]) -> Iterator[None]:
    """Triton's launches of an op with other values of its TUNING."""
    tuning = importlib.import_module(f"vimpac_kernels.ops.{op}.triton").TUNING
    if unknown := set(values) - set(tuning):
        raise KeyError(f"TUNING of {op} has no {', '.join(sorted(unknown))}")
    before = dict(tuning)
    tuning.update(values)
    try:
        yield
    finally:
        tuning.update(before)


def candidates_of(op: str, impl: str, modules: Path, device: str) -> dict[str, Callable]:
    """What makes each variant of an op current, by name; `installed` changes nothing."""
    found: dict[str, Callable] = {"installed": nullcontext}
    if impl == "triton":
        for name, values in gpu_variants.TRITON.get(op, {}).items():
            found[name] = lambda values=values: _tuned(op, values)
        return found
    for name, module in gpu_variants.load(modules, op).items():
        if device == "cpu":  # where it loads, but cannot launch
            module = registry.extension("cuda")
        found[name] = lambda module=module: registry.override_extension(
            "cuda", module, device=device
        )
    return found


def time_variants(stage: Stage, modules: Path) -> None:
    """All variants of each op interleaved, at every shape that is published."""
    with_variants = [(o, i) for i in common.KERNELS["cuda"] for o in registry.OPS]
    for op, impl in with_variants:
        if impl not in gpu_agreement.impls(op, stage.device):
            continue
        variants: dict[str, Callable] = {}
        with stage.log.trying(f"variants of {op} {impl}"):
            variants = candidates_of(op, impl, modules, stage.device)
        if len(variants) <= 1:
            continue
        right = _right(stage, op, impl, variants)
        for case in (case for case in stage.cases() if case.op == op):
            with stage.log.trying(f"variants of {op} {impl} {case.label}"):
                tensors, candidates = case.make(), {}
                for name, current in right.items():
                    with stage.log.trying(f"{op} {impl} {name} {case.label}"), current():
                        candidates[name] = stage.recorded(case, tensors, impl)
                ceiling = "copy_gb_per_s" if case.flops is None else "gemm_tflop_per_s"
                times, rates, count = stage.rounds(candidates, ceiling)
                rows = [stage.outcome(case, name, ms, rates) for name, ms in times.items()]
                timed = common.Timed(rows, rates, count, {})
                label = f"{op} {impl} {case.label}"
                common.write_results("variants", stage.device, label, timed)
                stage.log.say(f"{op} {impl} {case.label}: {_compared(times)}")


def _right(stage: Stage, op: str, impl: str, variants: dict[str, Callable]) -> dict[str, Callable]:
    """The variants that agree with fp64."""
    scale = "check" if stage.device == "cuda" else "small"
    right = dict(variants)
    for case in (case for case in gpu_cases.cases(scale, stage.device) if case.op == op):
        truth = gpu_agreement.Truth(case)
        for name, current in variants.items():
            try:
                with current():
                    truth.check(impl)
            except Exception as error:
                stage.log.fail(f"{op} {impl} {name} {case.label}", error)
                right.pop(name, None)
    return right


def _compared(times: dict[str, tuple[float, ...]]) -> str:
    """Each variant's speed-up over the installed one, forward and backward."""
    base = times.get("installed")
    if base is None:
        return ", ".join(f"{name} {sum(ms) * 1e3:.0f} us" for name, ms in times.items())
    said = [f"installed {'/'.join(f'{ms * 1e3:.0f}' for ms in base)} us"]
    for name, ms in times.items():
        if name != "installed":
            ratios = (f"{b / m:.2f}" for b, m in zip(base, ms, strict=True))
            said.append(f"{name} {'/'.join(ratios)}x")
    return ", ".join(said)


def profile(stage: Stage) -> None:
    """Each op's heaviest shape once, warm, between the marks of a profiler."""
    heaviest: dict[str, Case] = {}
    for case in stage.cases():
        size = case.flops or sum(case.moved or (0,))
        known = heaviest.get(case.op)
        if known is None or size > (known.flops or sum(known.moved or (0,))):
            heaviest[case.op] = case
    for case in heaviest.values():
        with stage.log.trying(f"profile {case.op}"):
            tensors = case.make()
            for marked in (False, True):
                if marked and stage.device == "cuda":
                    torch.cuda.synchronize()
                    torch.cuda.profiler.start()
                gpu_agreement.gradients(case, tensors, "cuda")
            if stage.device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.profiler.stop()
            stage.log.say(f"profiled {case.op} {case.label}")


def main() -> int:
    """Runs the stages that are named; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("stages", nargs="+", choices=["ops", "variants", "ncu"])
    parser.add_argument("--modules", type=Path, default=Path("build/gpu"))
    parser.add_argument("--emulate", action="store_true")
    arguments = parser.parse_args()
    common.RESULTS = arguments.folder
    gc.freeze()  # each recording collects garbage, of which all that was imported is none
    with gpu_agreement.emulated() if arguments.emulate else nullcontext():
        stage = Stage("cpu" if arguments.emulate else "cuda")
        if "ops" in arguments.stages:
            time_ops(stage)
        if "variants" in arguments.stages:
            time_variants(stage, arguments.modules)
        if "ncu" in arguments.stages:
            profile(stage)
    return int(stage.log.failures > 0)


if __name__ == "__main__":
    sys.exit(main())
