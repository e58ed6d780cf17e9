"""The `bench` fixture: agreement first, then time, memory and one row of results."""

from __future__ import annotations

import ctypes
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import common
import pytest
import torch

_rows: dict[str, list[common.Row]] = {}
OURS = ("cuda", "triton", "cpu", "reference", "ours")
# What a run of a few minutes leaves out: a CPU's compiler, 16-bit products and steps of ten frames;
# a GPU's compiled peers where they would take a minute for each of many shapes.
SLOW = {
    "cpu": "compile|autocast|-T10-",
    "cuda": "(large_half|published|fp32).*(compiled formula|Flex)",
}


@dataclass
class Bench:
    """Times one candidate of one op; see `__call__`."""

    benchmark: Any
    device: str = field(default_factory=common.default_device)

    def __call__(
        self,
        op: str,
        shape: str,
        impl: str,
        forward: Callable[[], Any],
        *,
        check: Callable[[], None] | None = None,
        inputs: Sequence[torch.Tensor] = (),
        moved_bytes: int | None = None,
        flops: int | None = None,
        traced: bool = True,
    ) -> common.Row:
        """Checks, times and records one candidate; a peer that cannot run is skipped in its words.

        Args:
            op: The table the row belongs to.
            shape: Label of the shape, with whatever else varies (axis, dtype, dropout).
            impl: Name of the candidate.
            forward: Runs it once; returns the output or a tuple that starts with it.
            check: Raises if the candidate disagrees with the reference; runs before any timing.
            inputs: Tensors whose gradients the backward computes; empty: no backward.
            moved_bytes: Least traffic of forward and backward together.
            flops: Arithmetic of forward and backward together; given, the rate is in TFLOP/s.
            traced: Whether torch's allocator sees the candidate's memory (not NumPy's).
        """
        reason = None
        try:
            row = self._row(shape, impl, forward, check, inputs, moved_bytes, flops, traced)
        except Exception as error:  # a peer may raise anything
            if isinstance(error, AssertionError) or impl.split()[0] in OURS:
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
        if reason is not None:  # out here, where the error no longer holds the peer's memory
            pytest.skip(f"{impl} does not run here: {reason}")

        def once() -> None:
            forward()
            if self.device == "cuda":
                torch.cuda.synchronize()

        self.benchmark.extra_info.update(vars(row))
        self.benchmark.pedantic(once)
        _rows.setdefault(op, []).append(row)
        return row

    def require(self, op: str, impl: str) -> None:
        """Skips the test where `impl` of `op` would be absent, interpreted or emulated."""
        if impl not in common.impls(op, self.device):
            pytest.skip(f"{op} has no {impl} implementation for {self.device} here")

    def _row(
        self,
        shape: str,
        impl: str,
        forward: Callable[[], Any],
        check: Callable[[], None] | None,
        inputs: Sequence[torch.Tensor],
        moved_bytes: int | None,
        flops: int | None,
        traced: bool,
    ) -> common.Row:
        if check is not None:
            check()

        def step() -> None:
            out = forward()
            if inputs:
                out = out[0] if isinstance(out, tuple) else out
                torch.autograd.grad(out, inputs, torch.ones_like(out))

        peak = common.peak_mib(step, self.device) if traced else None
        fwd_ms = common.median_ms(forward, self.device)
        bwd_ms = self._backward_ms(forward, inputs) if inputs else None
        rate = common.rate(self.device, fwd_ms + (bwd_ms or 0.0), moved_bytes, flops)
        return common.Row(shape, impl, fwd_ms, bwd_ms, *rate, peak)

    def _backward_ms(self, forward: Callable[[], Any], inputs: Sequence[torch.Tensor]) -> float:
        # Every backward has its own graph: a compiled one may reuse what the forward saved.
        def prepare() -> tuple[torch.Tensor, torch.Tensor]:
            out = forward()
            out = out[0] if isinstance(out, tuple) else out
            return out, torch.ones_like(out)

        def backward(outputs: tuple[torch.Tensor, torch.Tensor]) -> None:
            out, grad = outputs
            torch.autograd.grad(out, inputs, grad)

        return common.median_ms(backward, self.device, prepare=prepare)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option for what a run of a few minutes leaves out."""
    parser.addoption("--full", action="store_true", help="every candidate, and more rounds")


def pytest_configure() -> None:
    """A run that is cut short writes what it has timed; memory stays with the process."""
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is slow on this device, unless the run is a full one."""
    if config.getoption("--full"):
        return
    for item in items:
        if re.search(SLOW[common.default_device()], item.name):
            item.add_marker(pytest.mark.skip(reason="slow here: --full"))


@pytest.fixture
def bench(benchmark: Any) -> Iterator[Bench]:
    """Times candidates; the tables are printed and written when the session ends."""
    yield Bench(benchmark)
    if "torch._dynamo" in sys.modules:  # after eight shapes of a function it compiles no more
        torch.compiler.reset()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints every op's table and merges it into results/<device>.json."""
    device = common.default_device()
    for op, rows in _rows.items():
        path = common.write_results(op, device, rows)
        terminalreporter.section(f"{op} on {common.device_name(device)}")
        terminalreporter.write_line(common.table(rows))
        terminalreporter.write_line(f"written to {path}")
