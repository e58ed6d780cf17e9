"""The `bench` fixture: agreement first, then memory, then all candidates of a shape interleaved."""

from __future__ import annotations

import ctypes
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import common
import interleaved
import pytest
import torch

import vimpac_kernels

_timed: dict[str, dict[str, common.Timed]] = {}  # op -> shape
SECONDS = 1.0  # of rounds, per candidate
# What a run of a few minutes leaves out: a CPU's compiler, 16-bit products and large steps; a GPU's
# compiled peers where they would take a minute for each of many shapes.
SLOW = {
    "cpu": "compile|autocast|-T10-|-S256|whole-base",
    "cuda": "(large_half|published|fp32).*(compiled formula|Flex)",
}


class Bench:
    """Times the candidates of one op and shape; see `__call__`.

    Args:
        benchmark: The fixture of pytest-benchmark.
        test: Id of the test, which `SLOW` looks at.
        only: Regular expression of the candidates that are wanted; empty: all, and it writes.
        full: Whether the slow ones are wanted, too.
        device: "cpu" or "cuda"; by default the GPU where there is one.
    """

    def __init__(
        self,
        benchmark: Any,
        *,
        test: str = "",
        only: str = "",
        full: bool = False,
        device: str | None = None,
    ) -> None:
        self.benchmark, self.test, self.only, self.full = benchmark, test, only, full
        self.device = device or common.default_device()

    def __call__(
        self,
        op: str,
        shape: str,
        names: Iterable[str],
        make: Callable[[str], interleaved.Candidate],
    ) -> common.Timed:
        """Checks, times and records; a peer that cannot run is left out, with its error message.

        If an implementation of ours fails, or any candidate disagrees with the reference, the test
        fails after the others have been timed and recorded.

        Args:
            op: The table the rows belong to.
            shape: Label of the shape, with whatever else varies (axis, dtype, dropout).
            names: The candidates.
            make: Makes one of them; may raise what keeps it from running.
        """
        names, left_out = self.wanted(names)
        candidates: dict[str, interleaved.Candidate] = {}
        peaks: dict[str, float | None] = {}
        failures: list[Exception] = []
        for name in names:
            try:
                candidate = make(name)
                candidate.check()
                peaks[name] = self._peak_mib(candidate)
                candidates[name] = candidate
            except Exception as error:  # a peer may raise anything
                traceback.clear_frames(error.__traceback__)  # which hold its memory
                wrong = isinstance(error, AssertionError)
                said = "disagrees with the reference" if wrong else "does not run here"
                left_out[name] = f"{said}: {words(error)}"
                if wrong or _must_run(op, name):
                    failures.append(error)
        if candidates:
            timed = self._time(shape, candidates, peaks, left_out)
            _timed.setdefault(op, {})[shape] = timed
            self.record(op, shape, timed, next(iter(candidates.values())).forward)
        if failures:
            raise failures[0]
        if not candidates:
            self.skip(left_out)
        return timed

    def wanted(self, names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
        """The candidates that the options ask for, and why those that --only names are left out."""
        names = [name for name in names if re.search(self.only, name)]
        left_out = {
            name: "slow here: --full"
            for name in names
            if not self.full and re.search(SLOW[self.device], f"{self.test} {name}")
        }
        return [name for name in names if name not in left_out], left_out

    def skip(self, left_out: dict[str, str]) -> NoReturn:
        """Skips a test that no candidate is left to, saying why."""
        pytest.skip("; ".join(common.left_out_lines([left_out])) or "--only leaves none")

    def record(self, op: str, shape: str, timed: common.Timed, run: Callable[[], Any]) -> None:
        """Writes the rows at once, so that a run that is cut short keeps them.

        Args:
            op: The table.
            shape: Label of the shape.
            timed: Its rows.
            run: What pytest-benchmark times once, for its own table.
        """
        if not self.only:  # its rows would take the place of those that it left out
            common.write_results(op, self.device, shape, timed)

        def once() -> None:
            run()
            if self.device == "cuda":
                torch.cuda.synchronize()

        self.benchmark.extra_info["rows"] = [vars(row) for row in timed.rows]
        self.benchmark.pedantic(once)

    def _peak_mib(self, candidate: interleaved.Candidate) -> float | None:
        return interleaved.peak_mib(candidate.step, self.device) if candidate.traced else None

    def _time(
        self,
        shape: str,
        candidates: dict[str, interleaved.Candidate],
        peaks: dict[str, float | None],
        left_out: dict[str, str],
    ) -> common.Timed:
        clock = interleaved.Clock(self.device)
        needed = {c.ceiling for c in candidates.values()}
        ceilings = {n: make(self.device) for n, make in interleaved.CEILINGS.items() if n in needed}
        timed = (*candidates.values(), *ceilings.values())
        each = [lambda one=one: one.measure(clock) for one in timed]
        interleaved.run_rounds(each, least=1, most=3, budget_s=SECONDS / 2)  # all have run before
        rounds = interleaved.run_rounds(each, budget_s=SECONDS * len(candidates))
        times = dict(zip((*candidates, *ceilings), interleaved.typical(rounds), strict=True))
        rates = {name: ceiling.work / times[name][0] for name, ceiling in ceilings.items()}
        rows = []
        for name, one in candidates.items():
            fwd_ms, bwd_ms = (*times[name], None)[:2]
            ceiling = rates.get(one.ceiling or "")
            rate = common.rate(sum(times[name]), one.moved_bytes, one.flops, ceiling)
            rows.append(common.Row(shape, name, fwd_ms, bwd_ms, *rate, peaks[name]))
        return common.Timed(rows, rates, len(rounds), left_out)


def words(error: Exception) -> str:
    """The message of an error, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _must_run(op: str, name: str) -> bool:
    """Whether a candidate is ours and this machine can run it."""
    impl = name.split()[0]
    if impl in (*common.KERNELS["cpu"], *common.KERNELS["cuda"], "reference"):
        return impl in vimpac_kernels.available_impls(op)
    return impl == "ours"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options for what is timed."""
    parser.addoption("--full", action="store_true", help="every candidate, and more rounds")
    parser.addoption(
        "--only", default="", help="candidates that match this expression; results are not written"
    )


def pytest_configure() -> None:
    """A run that is cut short prints what it has timed; memory stays with the process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _hold_memory()


def _hold_memory() -> None:
    """Lets glibc keep what is freed, as it comes to do in a process that trains.

    Otherwise the calls before decide whether a call pays for fresh pages, which a virtual machine
    makes so dear that they can take longer than the call.
    """
    no_trimming, no_mmap = (-1, -1), (-4, 0)  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(*no_trimming)
        libc.mallopt(*no_mmap)


@pytest.fixture
def bench(benchmark: Any, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Times candidates; the tables are printed when the session ends."""
    option = request.config.getoption
    only, full = option("--only"), option("--full")
    yield Bench(benchmark, test=request.node.name, only=only, full=full)
    if "torch._dynamo" in sys.modules:  # after eight shapes of a function it compiles no more
        torch.compiler.reset()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints every op's table, and below it who was left out and why."""
    device = common.default_device()
    for op, shapes in _timed.items():
        terminalreporter.section(f"{op} on {common.device_name(device)}")
        rows = [row for timed in shapes.values() for row in timed.rows]
        terminalreporter.write_line(common.table(rows))
        for line in common.left_out_lines(timed.left_out for timed in shapes.values()):
            terminalreporter.write_line(line)
    if _timed and not terminalreporter.config.getoption("--only"):
        terminalreporter.write_line(f"written to {common.results_path(device)}")
