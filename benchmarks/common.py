"""What every benchmark shares: shapes, byte and FLOP counts, ceilings, clocks, results.

A benchmark names candidates for one op and shape; the `bench` fixture of conftest.py checks each
against the reference, times it and writes one row to results/<device>.json. Numbers are medians
after warm-up with cold caches; a GPU's are of its own time, without the host's. Bytes are what an
ideal kernel moves: every input read once, every output written once. `% of ceiling` is against this
machine's own copy or matrix product.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import vimpac_kernels

RESULTS = Path(__file__).parent / "results"
COLUMNS = "shape | impl | fwd ms | bwd ms | GB/s or TFLOP/s | % of ceiling | peak MiB"
VOCABULARY = 8197
HEAD_START = 2_000_000  # cycles of a GPU, about a millisecond


@dataclass(frozen=True)
class Shape:
    """One real configuration: clips, token grid, heads."""

    name: str
    B: int
    T: int
    H: int
    W: int
    N: int
    Dh: int

    @property
    def cells(self) -> int:
        """Tokens of a clip."""
        return self.T * self.H * self.W

    @property
    def rows(self) -> int:
        """Rows of the hidden buffer, [CLS] included."""
        return self.B * (1 + self.cells)

    @property
    def label(self) -> str:
        """As printed in tables."""
        return f"{self.name} B{self.B} {self.T}x{self.H}x{self.W} {self.N}x{self.Dh}"


SMALL = Shape("small", 64, 5, 16, 16, 8, 64)
LARGE = Shape("large", 16, 10, 32, 32, 16, 64)
LARGE_HALF = Shape("large_half", 16, 10, 32, 32, 16, 32)
PER_GPU = Shape("published batch", 2, 5, 16, 16, 8, 64)  # the paper's clips per GPU
LAPTOP = Shape("small", 4, 5, 16, 16, 8, 64)
LARGE_SLICE = Shape("large slice", 1, 10, 32, 32, 2, 64)  # one clip, 2 of its 16 heads
SHAPES = {"cuda": (SMALL, LARGE, LARGE_HALF, PER_GPU), "cpu": (LAPTOP,)}


def axial_attention_bytes(shape: Shape, itemsize: int) -> tuple[int, int]:
    """Forward reads q, k, v and writes out; backward reads q, k, v, dout and writes dq, dk, dv."""
    unit = shape.rows * shape.N * shape.Dh * itemsize
    return 4 * unit, 7 * unit


def axial_attention_flops(shape: Shape, length: int) -> tuple[int, int]:
    """Lines of `length` tokens with [CLS] as one more key and query; a multiply-add is 2 FLOP.

    Forward is two products (scores, values); backward five (scores again, dP, dQ, dK, dV).
    """
    lines = shape.B * shape.cells // length
    product = 2 * lines * (length + 1) ** 2 * shape.N * shape.Dh
    return 2 * product, 5 * product


def linear_cross_entropy_flops(rows: int, width: int, vocabulary: int) -> tuple[int, int]:
    """Forward is one product; backward two more (dinput, dweight); recomputing is not counted."""
    product = 2 * rows * width * vocabulary
    return product, 2 * product


def dropout_add_layer_norm_bytes(
    rows: int, width: int, branch_size: int, residual_size: int
) -> tuple[int, int]:
    """Forward reads x and residual, writes y and, for backward, the sum; backward reads dy and the
    sum, writes dx and dresidual."""
    branch, residual = rows * width * branch_size, rows * width * residual_size
    return 2 * branch + 2 * residual, 2 * branch + 2 * residual


def mask_tokens_bytes(shape: Shape, itemsize: int) -> int:
    """Reads tokens; writes inputs, the mask (1 byte) and positions (4 bytes)."""
    return shape.B * shape.cells * (2 * itemsize + 1 + 4)


def default_device() -> str:
    """Benchmarks run on the GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def impls(op: str, device: str) -> list[str]:
    """The implementations of `op` worth timing on `device`: none interpreted or emulated."""
    other = {"cpu": ("cuda", "triton"), "cuda": ("cpu",)}[device]
    return [i for i in vimpac_kernels.available_impls(op) if i not in other]


def median_ms(
    run: Callable[..., Any],
    device: str,
    *,
    prepare: Callable[[], Any] | None = None,
    budget_s: float = 0.5,
) -> float:
    """Median time of a call in milliseconds: up to 3 warm-up calls, 3 to 200 with cold caches.

    Args:
        run: What is timed.
        device: "cpu" or "cuda".
        prepare: Makes the argument of `run` before each call, untimed; None: there is none.
        budget_s: Seconds after which no call starts that is not needed; warm-up has as many.
    """
    flush = torch.empty(64 * 2**20 if device == "cuda" else 8 * 2**20, dtype=torch.int32)
    flush = flush.to(device)  # larger than the last-level cache of any GPU; a CPU's mid-level
    clock = _event_ms if device == "cuda" else _wall_ms

    def once() -> float:
        arguments = () if prepare is None else (prepare(),)
        flush.zero_()
        return clock(lambda: run(*arguments))

    def repeat(least: int, most: int) -> list[float]:
        times: list[float] = []
        end = time.perf_counter() + budget_s
        while len(times) < least or (len(times) < most and time.perf_counter() < end):
            times.append(once())
        return times

    repeat(1, 3)
    return statistics.median(repeat(3, 200))


def _event_ms(run: Callable[[], Any]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HEAD_START)  # in which the host launches what would else wait for it
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def _wall_ms(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


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


@functools.cache
def ceilings(device: str) -> dict[str, float]:
    """This machine's copy bandwidth (read + write, GB/s) and matrix product (TFLOP/s)."""
    gpu = device == "cuda"
    dtype, side = (torch.bfloat16, 8192) if gpu else (torch.float32, 1024)
    source = torch.zeros((1024 if gpu else 128) * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = median_ms(lambda: target.copy_(source), device)
    a = torch.randn(side, side, device=device, dtype=dtype)
    gemm = median_ms(lambda: a @ a, device)
    return {
        "copy_gb_per_s": 2 * source.numel() / copy / 1e6,
        "gemm_tflop_per_s": 2 * side**3 / gemm / 1e9,
    }


@dataclass(frozen=True)
class Row:
    """One line of an op's table; a rate is of forward and backward together."""

    shape: str
    impl: str
    fwd_ms: float
    bwd_ms: float | None
    rate: float | None
    rate_unit: str
    percent_of_ceiling: float | None
    peak_mib: float | None

    def cells(self) -> list[str]:
        """Formatted for the table."""
        rate = "-" if self.rate is None else f"{self.rate:.4g} {self.rate_unit}"
        numbers = (self.fwd_ms, self.bwd_ms, self.percent_of_ceiling, self.peak_mib)
        fwd, bwd, percent, peak = ("-" if n is None else f"{n:.4g}" for n in numbers)
        return [self.shape, self.impl, fwd, bwd, rate, percent, peak]


def rate(
    device: str, total_ms: float, moved_bytes: int | None, flops: int | None
) -> tuple[float | None, str, float | None]:
    """(rate, unit, % of ceiling) of work done in `total_ms`; FLOPs count if they are given."""
    if flops is not None:
        value, unit, ceiling = flops / total_ms / 1e9, "TFLOP/s", "gemm_tflop_per_s"
    elif moved_bytes is not None:
        value, unit, ceiling = moved_bytes / total_ms / 1e6, "GB/s", "copy_gb_per_s"
    else:
        return None, "", None
    return value, unit, 100 * value / ceilings(device)[ceiling]


def table(rows: Sequence[Row]) -> str:
    """Rows under COLUMNS, aligned."""
    lines = [COLUMNS.split(" | "), *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def device_name(device: str) -> str:
    """The GPU's or the processor's name and how many threads torch uses."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return f"{models[0] if models else platform.machine()}, {torch.get_num_threads()} threads"


def environment(device: str) -> dict[str, str]:
    """What a result depends on: device, versions, commit, day."""
    versions = {}
    for name in ("torch", "triton", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "device": device_name(device),
        "python": platform.python_version(),
        **versions,
        "cuda": str(torch.version.cuda),
        "commit": commit or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def write_results(op: str, device: str, rows: Sequence[Row]) -> Path:
    """Puts the rows of one op into results/<device>.json beside the other ops' rows."""
    name = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    path = RESULTS / f"{name}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[op] = {
        "environment": environment(device),
        "ceilings": ceilings(device),
        "rows": [asdict(row) for row in rows],
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path
