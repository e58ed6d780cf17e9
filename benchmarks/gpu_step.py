"""The training step on a GPU: its products, then ours, a dense, a plain and the released one.

    python benchmarks/gpu_step.py FOLDER [--emulate]

Each step runs eagerly and, ours and the dense one, as one CUDA graph, at 64 clips and at 4 (the
paper's batch of a GPU), and is taken apart by phase; the kernels of each go to
FOLDER/profiles.txt. The dense step attends through the fastest backend of SDPA. Rows go to
FOLDER/<device>.json at once, those of 64 clips also where report.py looks for them. What does not
fit the GPU says so, and the next one follows. `--emulate` takes a tiny step with the kernels of a
CPU, since one on the emulator takes a minute.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import bench_train
import common
import gpu_cases
import gpu_clock
import interleaved
import phases
import predict
import torch
import torch.nn.functional as F
from gpu_clock import Log
from torch.nn.attention import SDPBackend, sdpa_kernel

from vimpac.model.config import ModelConfig, preset
from vimpac.tokens import NUM_TOKENS

SECONDS = 2.0  # of rounds of one step
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
LONG = (10, 32)  # T=10 S=256


@dataclasses.dataclass(frozen=True)
class Case(bench_train.Case):
    """One step to time, of so many clips."""

    clips: int = 64
    name: str = "small"

    @property
    def config(self) -> ModelConfig:
        """The model."""
        T, side = self.size
        return preset(self.name, layout=self.layout, grid=(T, side, side))

    @property
    def label(self) -> str:
        """Of its input."""
        return f"T={self.size[0]} S={8 * self.size[1]} B{self.clips}"

    def __str__(self) -> str:
        return f"{self.impl} {self.layout} {self.label}"


@dataclasses.dataclass(frozen=True)
class StepRow(bench_train.StepRow):
    """A timed step; `graph_ms` is a replay of it as one CUDA graph."""

    graph_ms: float | None = None
    predicted_ms: float | None = None


@dataclasses.dataclass(frozen=True)
class ProductRow:
    """A product of the step."""

    name: str
    m: int
    n: int
    k: int
    us: float
    tflop_per_s: float
    percent_of_ceiling: float


def cases(device: str) -> Iterator[Case]:
    """What is wanted most first."""
    if device != "cuda":
        impls = ("ours", "plain", "released")
        yield from (Case(impl, size=(5, 8), clips=2, name="tiny") for impl in impls)
        return
    for clips in (64, 4):
        yield from (Case("ours", clips=clips), Case("ours", "THW", clips=clips))
    yield from (Case(impl, clips=clips) for impl in ("plain", "released") for clips in (64, 4))
    yield from (Case("ours", layout, LONG, clips=16) for layout in ("T,H|W", "THW"))


def time_products(device: str, log: Log) -> None:
    """The products of the step, forward and both gradients, interleaved with a large square one."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shape = common.SMALL if device == "cuda" else gpu_cases.TINY
    timed: dict[str, interleaved.TimedCall] = {}
    sizes: dict[str, tuple[int, int, int]] = {}
    for p in predict.Step(shape).products():
        each = {"": (p.m, p.n, p.k), ", dX": (p.m, p.k, p.n), ", dW": (p.n, p.k, p.m)}
        for of, (m, n, k) in each.items():
            with log.trying(f"product {p.name}{of}"):
                a, b = (torch.randn(s, device=device, dtype=dtype) for s in ((m, k), (k, n)))
                timed[p.name + of] = gpu_clock.record(functools.partial(torch.mm, a, b), device)
                sizes[p.name + of] = (m, n, k)
    square = interleaved.CEILINGS["gemm_tflop_per_s"](device)
    each = [*timed.values(), gpu_clock.record(square.run, device)]
    rounds = gpu_clock.rounds(each, SECONDS, device)
    *times, ceiling_ms = (ms for (ms,) in interleaved.typical(rounds))
    ceiling = square.work / ceiling_ms
    rows = []
    for (name, (m, n, k)), ms in zip(sizes.items(), times, strict=True):
        rate = 2 * m * n * k / ms / 1e9
        rows.append(ProductRow(name, m, n, k, 1e3 * ms, rate, 100 * rate / ceiling))
        log.say(f"product {name} {m}x{n}x{k}: {1e3 * ms:.0f} us {rate:.0f} TFLOP/s")
    log.say(f"product 8192 cubed: {ceiling:.0f} TFLOP/s")
    result = common.Timed(rows, {"gemm_tflop_per_s": ceiling}, len(rounds), {})
    common.write_results("products", device, shape.label, result)


@functools.cache
def fastest_sdpa(B: int, N: int, S: int, Dh: int) -> str:
    """The backend of SDPA that is fastest, forward and backward together, in bf16."""
    q, k, v = (
        torch.randn(B, N, S, Dh, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    found = {}
    for name in BACKENDS:
        with sdpa_kernel(getattr(SDPBackend, name)):
            forward = functools.partial(F.scaled_dot_product_attention, q, k, v)
            try:
                call = gpu_clock.record_both(lambda run=forward: (run(),), (q, k, v), "cuda")
            except RuntimeError:  # not on this GPU, or not in this build of PyTorch
                continue
            found[name] = sum(min(call() for _ in range(3)))
    return min(found, key=found.__getitem__)


def _attention(case: Case, device: str) -> tuple[AbstractContextManager, str]:
    """What chooses the dense step's attention, and its name."""
    if device != "cuda" or case.layout != "THW":
        return nullcontext(), ""
    config, (T, side) = case.config, case.size
    name = fastest_sdpa(case.clips, config.heads, 1 + T * side * side, config.head_dim)
    return sdpa_kernel(getattr(SDPBackend, name)), f" ({name})"


def time_step(case: Case, device: str, log: Log, folder: Path) -> None:
    """Times one step, takes it apart and writes its row."""
    attention, said = _attention(case, device)
    ours = case.impl == "ours"
    T, side = case.size
    step = bench_train.make_step(case, device)
    tokens = torch.randint(0, NUM_TOKENS, (case.clips, T, side, side)).to(device)
    with attention:

        def run() -> None:
            step(tokens)
            if device == "cuda":
                torch.cuda.synchronize()

        for _ in range(3 if device == "cuda" else 1):
            run()
        peak = interleaved.peak_mib(run, device)
        timed: list[interleaved.TimedCall] = [lambda: interleaved.wall_ms(run)[:1]]
        if ours:
            with log.trying(f"graph of {case}"):
                timed.append(graph_of(functools.partial(step, tokens), device))
        product = interleaved.CEILINGS["gemm_tflop_per_s"](device)
        timed.append(gpu_clock.record(product.run, device))
        rounds = gpu_clock.rounds(timed, SECONDS, device)
        times = [ms for (ms,) in interleaved.typical(rounds)]
        step_ms, graph_ms = times[0], times[1] if len(times) == 3 else None
        parts = phases.breakdown(run, device)
        launches = _kernels(case, run, device, folder)
    ceiling = product.work / times[-1]
    rate = common.step_flops(case.clips // 2, T, side, case.layout) / step_ms / 1e9
    row = StepRow(
        case.impl, case.layout, T, side, case.clips // 2, step_ms, case.clips / 2e-3 / step_ms,
        rate, 100 * rate / ceiling, peak, parts, graph_ms, _predicted(case, device),
    )  # fmt: skip
    _write(case, row, device, {"gemm_tflop_per_s": ceiling}, len(rounds))
    graph = "" if graph_ms is None else f", {graph_ms:.2f} as a graph"
    guess = "" if row.predicted_ms is None else f", {row.predicted_ms:.1f} predicted"
    log.say(
        f"step {case}{said}: {step_ms:.2f} ms eager{graph}{guess}, MFU {row.mfu_percent:.0f} %, "
        f"peak {peak:.0f} MiB, {launches} launches; "
        + ", ".join(f"{name} {ms:.2f}" for name, ms in parts.items() if ms >= 0.005)
    )


def graph_of(step: Callable[[], None], device: str) -> interleaved.TimedCall:
    """A timed call of a step as one graph, the host's part in it included."""
    if device != "cuda":
        return lambda: interleaved.wall_ms(step)[:1]
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        step()

    def run() -> None:
        graph.replay()
        torch.cuda.synchronize()

    run()
    return lambda: interleaved.wall_ms(run)[:1]


def _kernels(case: Case, run: Callable[[], None], device: str, folder: Path) -> int:
    """Writes the kernels of a step to profiles.txt; returns how many launches it has."""
    if device != "cuda":
        return 0
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        run()
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
    lines = [f"{e.self_device_time_total:9.0f} us {e.count:5} {e.key[:150]}\n" for e in events]
    with (folder / "profiles.txt").open("a") as file:
        file.write("".join([f"# {case}\n", *lines]))
    return sum(event.count for event in events)


def _predicted(case: Case, device: str) -> float | None:
    if device != "cuda" or case.impl != "ours":
        return None
    shape = common.Shape("small", case.clips, case.size[0], case.size[1], case.size[1], 8, 64)
    names = [one.name in common.device_name(device) for one in predict.DEVICES]
    return (
        predict.total(predict.Step(shape, case.layout == "THW"), names.index(True))[1]
        if any(names)
        else None
    )


_rows: dict[str, list[StepRow]] = {}


def _write(case: Case, row: StepRow, device: str, ceilings: dict[str, float], rounds: int) -> None:
    rows = _rows.setdefault(case.label, [])
    rows.append(row)
    timed = common.Timed(rows, ceilings, rounds, {})
    common.write_results("step", device, case.label, timed)
    if case.clips == 64:
        common.write_results("train", device, case.label.removesuffix(" B64"), timed)


def main() -> int:
    """Times products and steps; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--emulate", action="store_true")
    arguments = parser.parse_args()
    common.RESULTS, log = arguments.folder, Log()
    device = "cpu" if arguments.emulate else "cuda"
    with log.trying("products"):
        time_products(device, log)
    for case in cases(device):
        with log.trying(f"step {case}"):
            time_step(case, device, log, arguments.folder)
    return int(log.failures > 0)


if __name__ == "__main__":
    sys.exit(main())
