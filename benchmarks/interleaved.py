"""Clocks: calls to be compared are interleaved, with cold caches, beside the machine's ceilings.

The speed of a machine changes, that of a shared one by half within a minute. So a round calls every
candidate once and the ceilings with them; a time is the median, over rounds, of a call's share of
its round, times the median round. A ratio of two times then compares them in the same rounds. A
GPU's times are of its own work, without the host's.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HEAD_START = 2_000_000  # cycles of a GPU, about a millisecond
TimedCall = Callable[[], tuple[float, ...]]  # one call: milliseconds of each of its parts
Rounds = list[list[tuple[float, ...]]]  # of each round and call


def run_rounds(
    calls: Sequence[TimedCall], *, least: int = 3, most: int = 200, budget_s: float = 0.0
) -> Rounds:
    """Runs `calls` round after round.

    Args:
        calls: What is timed, in this order.
        least: Rounds that are taken whatever their time.
        most: Rounds after which it ends.
        budget_s: Seconds after which no round starts that is not needed.
    """
    rounds: Rounds = []
    end = time.perf_counter() + budget_s
    while len(rounds) < least or (len(rounds) < most and time.perf_counter() < end):
        rounds.append([call() for call in calls])
    return rounds


def typical(rounds: Rounds) -> list[tuple[float, ...]]:
    """Milliseconds of each call's parts: the median share of a round, times the median round."""
    lengths = [sum(map(sum, times)) for times in rounds]
    middle = statistics.median(lengths)

    def part(times: Sequence[float]) -> float:
        shares = (ms / length for ms, length in zip(times, lengths, strict=True))
        return middle * statistics.median(shares)

    calls = zip(*rounds, strict=True)
    return [tuple(part(times) for times in zip(*call, strict=True)) for call in calls]


def wall_ms(run: Callable[[], Any]) -> tuple[float, Any]:
    """(milliseconds on the host's clock, what `run` returned)."""
    start = time.perf_counter()
    out = run()
    return (time.perf_counter() - start) * 1e3, out


def _event_ms(run: Callable[[], Any]) -> tuple[float, Any]:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HEAD_START)  # in which the host launches what would else wait for it
    start.record()
    out = run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop), out


class Clock:
    """Times single calls on a device, each after a flush of the caches.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        self._ms = _event_ms if device == "cuda" else wall_ms
        # Larger than the last-level cache of any GPU; a CPU's mid-level.
        elements = (64 if device == "cuda" else 8) * 2**20
        self._flush = torch.empty(elements, dtype=torch.int32, device=device)

    def __call__(self, run: Callable[[], Any]) -> tuple[float, Any]:
        """(milliseconds, what `run` returned)."""
        self._flush.zero_()
        return self._ms(run)


@dataclass(frozen=True)
class Candidate:
    """One way to the result of an op on one shape.

    Args:
        forward: Runs it once; returns the output or a tuple that starts with it.
        check: Raises if it disagrees with the reference; runs before any timing.
        inputs: Tensors whose gradients the backward computes; empty: no backward.
        moved_bytes: Least traffic of forward and backward together.
        flops: Arithmetic of forward and backward together; given, the rate is in TFLOP/s.
        bf16: Whether its products are of bf16, and so is the product that it is compared with. On
            a GPU that is always so.
        traced: Whether torch's allocator sees its memory (not NumPy's).
    """

    forward: Callable[[], Any]
    check: Callable[[], None]
    inputs: Sequence[Tensor] = ()
    moved_bytes: int | None = None
    flops: int | None = None
    bf16: bool = False
    traced: bool = True

    @property
    def ceiling(self) -> str | None:
        """The key of `CEILINGS` that its rate is measured against."""
        if self.flops is not None:
            return "bf16_gemm_tflop_per_s" if self.bf16 else "gemm_tflop_per_s"
        return None if self.moved_bytes is None else "copy_gb_per_s"

    def step(self) -> None:
        """Forward and backward."""
        self.measure(wall_ms)

    def measure(self, clock: Callable[[Callable[[], Any]], tuple[float, Any]]) -> tuple[float, ...]:
        """Milliseconds of a forward and, where it has inputs, of the backward of that graph."""
        forward_ms, out = clock(self.forward)
        if not self.inputs:
            return (forward_ms,)
        out = out[0] if isinstance(out, tuple) else out
        grad = torch.ones_like(out)
        backward_ms, _ = clock(lambda: torch.autograd.grad(out, self.inputs, grad))
        return forward_ms, backward_ms


@dataclass(frozen=True)
class Ceiling:
    """What this machine can do at best; `work` by milliseconds is the rate."""

    run: Callable[[], Any]
    work: float

    def measure(self, clock: Clock) -> tuple[float, ...]:
        """Milliseconds of one call."""
        return clock(self.run)[:1]


def _copy(device: str) -> Ceiling:
    """GB/s of a copy, read and write."""
    size = (1024 if device == "cuda" else 128) * 2**20
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Ceiling(lambda: target.copy_(source), 2 * source.numel() / 1e6)


SIDES = {"cuda": 8192, "cpu": 2048}  # of the matrices: a larger product is no faster


def _gemm(device: str, dtype: torch.dtype) -> Ceiling:
    """TFLOP/s of a matrix product."""
    side = SIDES[device]
    a = torch.randn(side, side, device=device, dtype=dtype)
    return Ceiling(lambda: a @ a, 2 * side**3 / 1e9)


def _usual_gemm(device: str) -> Ceiling:
    """Of what models are trained in: bf16 on a GPU, fp32 on a CPU."""
    return _gemm(device, torch.bfloat16 if device == "cuda" else torch.float32)


CEILINGS = {
    "copy_gb_per_s": _copy,
    "gemm_tflop_per_s": _usual_gemm,
    "bf16_gemm_tflop_per_s": lambda device: _gemm(device, torch.bfloat16),
}


def ceilings(device: str) -> dict[str, float]:
    """Every one of `CEILINGS`, measured apart from any candidate."""
    clock = Clock(device)
    found = {name: make(device) for name, make in CEILINGS.items()}
    calls = [lambda ceiling=ceiling: ceiling.measure(clock) for ceiling in found.values()]
    run_rounds(calls)
    times = typical(run_rounds(calls, budget_s=1.0))
    return {name: found[name].work / ms for name, (ms,) in zip(found, times, strict=True)}


def steps_beside_products(
    steps: Iterable[Callable[[], Any]],
    device: str,
    *,
    least: int,
    most: int,
    budget_s: float,
    ceiling: str = "gemm_tflop_per_s",
) -> tuple[list[float], float, int]:
    """Times whole training steps, the host's part included, with a matrix product beside each.

    Args:
        steps: Each waits for the device.
        device: "cpu" or "cuda".
        least: As `run_rounds` takes it.
        most: As `run_rounds` takes it.
        budget_s: As `run_rounds` takes it.
        ceiling: The product, of `CEILINGS`.

    Returns:
        Milliseconds of each step, TFLOP/s of the products, and how many rounds there were.
    """
    clock, product = Clock(device), CEILINGS[ceiling](device)

    def measure(step: Callable[[], Any]) -> tuple[float, ...]:
        if device == "cuda":
            step()  # takes back the memory that the other steps have had
        return wall_ms(step)[:1]

    each: list[TimedCall] = []
    for step in steps:
        each += [functools.partial(product.measure, clock), functools.partial(measure, step)]
    rounds = run_rounds(each, least=least, most=most, budget_s=budget_s)
    times = [ms for (ms,) in typical(rounds)]
    return times[1::2], product.work / statistics.mean(times[::2]), len(rounds)


def peak_mib(run: Callable[[], Any], device: str) -> float:
    """Most memory that torch's allocator held during `run` beyond what it held before."""
    if device == "cuda":
        run()  # compiles, tunes, and makes the workspaces of cuBLAS
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(profile_memory=True) as profiler:
        run()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20
