"""The `bench` fixture: agreement first, then time, memory and one row of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import common
import pytest
import torch

_rows: dict[str, list[common.Row]] = {}


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
        """Checks, times and records one candidate.

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
        total_ms = fwd_ms + (bwd_ms or 0.0)
        row = common.Row(
            shape,
            impl,
            fwd_ms,
            bwd_ms,
            *common.rate(self.device, total_ms, moved_bytes, flops),
            peak,
        )
        self.benchmark.extra_info.update(vars(row))
        self.benchmark.pedantic(forward)
        _rows.setdefault(op, []).append(row)
        return row

    def require(self, op: str, impl: str) -> None:
        """Skips the test where `impl` of `op` would be absent, interpreted or emulated."""
        if impl not in common.impls(op, self.device):
            pytest.skip(f"{op} has no {impl} implementation for {self.device} here")

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is slow on a CPU: its compiler, 16-bit products, a step of ten frames."""
    if common.default_device() == "cuda" or config.getoption("--full"):
        return
    for item in items:
        for word in ("compile", "autocast", "-T10-"):
            if word in item.name:
                item.add_marker(pytest.mark.skip(reason=f"{word!r} is slow on a CPU: --full"))


@pytest.fixture
def bench(benchmark: Any) -> Iterator[Bench]:
    """Times candidates; the tables are printed and written when the session ends."""
    yield Bench(benchmark)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints every op's table and merges it into results/<device>.json."""
    device = common.default_device()
    for op, rows in _rows.items():
        path = common.write_results(op, device, rows)
        terminalreporter.section(f"{op} on {common.device_name(device)}")
        terminalreporter.write_line(common.table(rows))
        terminalreporter.write_line(f"written to {path}")
