"""Shared by all benchmarks: shapes, byte and FLOP counts, rows, results.

A benchmark names the candidates for one op and shape; the `bench` fixture of conftest.py checks
each against the reference, times them interleaved (interleaved.py) and writes their rows to
results/<device>.json. Bytes are what an ideal kernel moves: every input read once, every output
written once. `% of ceiling` is against the machine's own copy or matrix product in those rounds.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import math
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = "shape | impl | fwd ms | bwd ms | GB/s or TFLOP/s | % of ceiling | peak MiB"
VOCABULARY = 8197
TritonCall = tuple[Any, tuple[Any, ...], dict[str, Any]]  # kernel, arguments, keyword arguments
KERNELS = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # by device: none interpreted or emulated


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
FRAMES = Shape("large frames", 1, 5, 32, 32, 8, 64)
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
    rows: int, width: int, itemsize: int, dropout: bool
) -> tuple[int, int]:
    """Forward reads x and residual, writes y and, for backward, the sum; backward reads dy and the
    sum, writes dx and dresidual, which are one without dropout."""
    unit = rows * width * itemsize
    return 4 * unit, (4 if dropout else 3) * unit


def bias_gelu_bytes(rows: int, width: int, itemsize: int) -> tuple[int, int]:
    """Forward reads x and writes y; backward reads dy and x and writes dx."""
    unit = rows * width * itemsize
    return 2 * unit, 3 * unit


def embed_tokens_bytes(shape: Shape, itemsize: int) -> tuple[int, int]:
    """Forward reads int64 ids and the fp32 embedding and writes y; backward reads ids, embedding
    and dy and writes the embedding's gradient. Other parameters are small."""
    ids, width = shape.B * shape.cells * 8, shape.N * shape.Dh
    table, unit = VOCABULARY * width * 4, shape.rows * width * itemsize
    return ids + table + unit, ids + 2 * table + unit


def mask_tokens_bytes(shape: Shape, itemsize: int) -> int:
    """Reads tokens; writes inputs, the mask (1 byte) and positions (4 bytes)."""
    return shape.B * shape.cells * (2 * itemsize + 1 + 4)


def tubelet_embed_flops(rows: int, width: int, channels: int, *tubelet: int) -> tuple[int, int]:
    """Forward is one product of the visible tubelets with the weight; backward is another, for the
    weight's gradient."""
    product = 2 * rows * width * channels * math.prod(tubelet)
    return product, product


def tubelet_mse_bytes(tubelets: int, elements: int, itemsize: int) -> tuple[int, int]:
    """Forward reads pred, a byte of the video for each of its elements, and an int32 index for each
    tubelet; backward does, too, and writes dpred."""
    read = tubelets * (elements * (itemsize + 1) + 4)
    return read, read + tubelets * elements * itemsize


def step_flops(videos: int, T: int, side: int, layout: str) -> float:
    """FLOPs that the losses of the small model's step need: 3 x forward. A step may compute more.

    Per token and layer: 4 D^2 per attention block and 2 D * 4D for the MLP, a multiply-add being
    2 FLOP; attention 4 * L * D per token and axis (half the heads each in `H|W`). The losses read
    masked rows and [CLS], so the token head has only the former, and the last layer after its
    attention, D^2 + 8 D^2, only both.
    """
    D, layers, clips, masked = 512, 6, 2 * videos, 0.15
    tokens = clips * T * side * side
    unread = 1 - masked - clips / tokens
    lengths = {"T": T, "H": side, "W": side, "HW": side * side, "THW": T * side * side}
    blocks = layout.split(",")
    weights = layers * (len(blocks) * 4 * D * D + 8 * D * D) - unread * 9 * D * D
    attention = sum(
        4 * D * sum(lengths[axis] for axis in block.split("|")) / len(block.split("|"))
        for block in blocks
    )
    head = masked * (D * D + D * VOCABULARY)
    return 3 * tokens * (2 * weights + layers * attention + 2 * head)


def default_device() -> str:
    """Benchmarks run on the GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Row:
    """One line of an op's table; times as of `interleaved.typical`, a rate of both together."""

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
    total_ms: float, moved_bytes: int | None, flops: int | None, ceiling: float | None
) -> tuple[float | None, str, float | None]:
    """(rate, unit, % of ceiling) of work done in `total_ms`; FLOPs count if they are given."""
    if ceiling is None:
        return None, "", None
    if flops is not None:
        value, unit = flops / total_ms / 1e9, "TFLOP/s"
    else:
        value, unit = (moved_bytes or 0) / total_ms / 1e6, "GB/s"
    return value, unit, 100 * value / ceiling


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


@functools.cache
def environment(device: str) -> dict[str, str]:
    """What a result depends on: device, versions, commit, day."""
    versions = {}
    for name in ("torch", "triton", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "device": device_name(device),
        "python": platform.python_version(),
        **versions,
        "cuda": str(torch.version.cuda),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _commit() -> str:
    """The commit, `-dirty` if a tracked file differs from it, other than the results.

    Without a repository it is that of the modules of gpu_variants.py, which came along.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    changes = git("diff", "--shortstat", "HEAD", "--", ".", ":!benchmarks/results")
    if known := git("rev-parse", "--short", "HEAD"):
        return known + ("-dirty" if changes else "")
    manifest = ROOT / "build" / "gpu" / "manifest.json"
    return str(json.loads(manifest.read_text())["commit"]) if manifest.exists() else "unknown"


@dataclass(frozen=True)
class Timed:
    """What one shape came to: its rows, all of the same rounds."""

    rows: Sequence[Any]  # dataclasses
    ceilings: Mapping[str, float]  # medians of those rounds
    rounds: int
    left_out: Mapping[str, str]  # candidate -> why


def left_out_lines(groups: Iterable[Mapping[str, str]]) -> list[str]:
    """`candidate: reason` for each of the candidates that shapes of an op left out."""
    return list(dict.fromkeys(f"{name}: {why}" for group in groups for name, why in group.items()))


def results_path(device: str) -> Path:
    """results/<device>.json."""
    return RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', device_name(device).lower()).strip('-')}.json"


def write_results(op: str, device: str, shape: str, timed: Timed) -> None:
    """Puts one shape of an op into results/<device>.json in the place of its former rows, which are
    of other rounds."""
    path = results_path(device)
    results = json.loads(path.read_text()) if path.exists() else {}
    results.setdefault(op, {})[shape] = {"environment": environment(device), **asdict(timed)}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
