"""Recorded calls: the GPU's time of a call, without the time of the host that launches it.

A recording is a CUDA graph of several calls; its timed call replays them. A backward is recorded
separately, on the autograd graph of a forward that ran before. Without a GPU, in a rehearsal, a
timed call is a plain call, so that everything else runs as it will on a GPU.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import interleaved
import torch
from torch import Tensor

REPLAY_MS = 2.0  # of calls in one graph


@functools.cache
def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


@contextmanager
def _recorded_stream(device: str) -> Iterator[None]:
    """The stream of all recordings, behind what has been launched before, and before the rest."""
    if device != "cuda":
        yield
        return
    stream = _stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def record(run: Callable[[], Any], device: str) -> interleaved.TimedCall:
    """Records `run`; the timed call gives the milliseconds of one run."""
    if device != "cuda":
        run()
        return lambda: interleaved.wall_ms(run)[:1]
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with _recorded_stream(device):
        run()
        start.record()
        run()
        stop.record()
    stop.synchronize()
    calls = int(min(50, max(1, REPLAY_MS / max(start.elapsed_time(stop), 1e-3))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=_stream()):
        for _ in range(calls):
            run()

    def replay() -> tuple[float, ...]:
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        return (start.elapsed_time(stop) / calls,)

    replay()
    return replay


def record_both(
    forward: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor], device: str
) -> interleaved.TimedCall:
    """A timed call of forward and, where there are inputs, backward."""
    timed = [record(forward, device)]
    if inputs:
        with _recorded_stream(device):  # backward runs on the stream of its forward
            out = [one for one in forward() if one.requires_grad]
            gradients = [torch.randn_like(one) for one in out]
        timed.append(
            record(lambda: torch.autograd.grad(out, inputs, gradients, retain_graph=True), device)
        )
    return lambda: tuple(ms for call in timed for ms in call())


def rounds(
    each: Sequence[interleaved.TimedCall], seconds: float, device: str
) -> interleaved.Rounds:
    """Runs rounds for so many seconds; a single one in a rehearsal."""
    if device != "cuda":
        return interleaved.run_rounds(each, least=1, most=1)
    return interleaved.run_rounds(each, least=3, most=50, budget_s=seconds)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN or the largest integer, so that what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class Log:
    """Lines of a stage: facts as they come, and failures that its end counts."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.failures = 0

    def say(self, line: str) -> None:
        """One fact, behind the seconds since the stage began."""
        print(f"{time.perf_counter() - self._start:6.1f} {line}", flush=True)

    def fail(self, what: str, error: object) -> None:
        """Prints a failure and its message; the summary repeats lines that begin like this."""
        self.failures += 1
        print(f"FAIL {what}: {' '.join(str(error).split())[:300]}", flush=True)

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Reports an error of its block, and the stage continues."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self.say(f"{what}: does not fit this GPU: {' '.join(str(error).split())[:120]}")
        except Exception as error:
            self.fail(what, f"{type(error).__name__}: {error}")
        if sys.exc_info()[0] is None and torch.cuda.is_available():
            torch.cuda.empty_cache()
