"""The time of a training step of the small model on a GPU: floor, prediction, and measurement.

    python benchmarks/predict.py           prints the table of NOTES.md

Everything is calculated from the sizes of the step and from the rates of `DEVICES`, which are
assumed until a device is measured; the measured columns come from results/<device>.json where there
is one. A pass's floor is its bytes at the speed of a copy, a product's its operations at the
speed of a large square product; predictions expect less of both, as `EXPECTED` says.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import common

MASKED = 0.145  # share of tokens that five blocks hide, Table 2 of the paper
CAPACITY = 0.25  # the host's bound on it: products of the last rows are of that many
LAYERS, D = 6, 512
PADDED = -(-common.VOCABULARY // 64) * 64  # columns of the logits' buffer
PARAMETERS = 31_000_000  # of the encoder and both heads, rounded


@dataclass(frozen=True)
class Device:
    """Assumed rates of a GPU."""

    name: str
    file: str  # its results, as `common.results_path` names them
    copy: float  # GB/s, read and written
    product: float  # TFLOP/s in bf16, 8192 x 8192 x 8192
    narrow: float  # TFLOP/s expected of the step's products, whose inner dimension is mostly 512


DEVICES = (
    Device("H100", "nvidia-h100-80gb-hbm3.json", 3000, 790, 550),
    Device("H200", "nvidia-h200.json", 4300, 790, 550),
)
# Percent of a copy expected of (op, head dim or width): forward and backward, on each of DEVICES.
# Read off the machine code: registers, bytes in flight, instructions for each byte.
EXPECTED = {
    ("axial_attention", 64): ((86, 73), (75, 60)),
    ("axial_attention", 32): ((76, 65), (58, 52)),
    ("dropout_add_layer_norm", 512): ((84, 80), (70, 66)),
    ("dropout_add_layer_norm", 1024): ((84, 70), (70, 55)),
    ("bias_gelu", 2048): ((90, 92), (82, 88)),
    ("bias_gelu", 4096): ((90, 92), (82, 88)),
    ("embed_tokens", 512): ((80, 60), (66, 50)),
    ("linear_cross_entropy", PADDED): ((85, 85), (75, 75)),
    ("torch", 0): ((85, 85), (80, 80)),  # PyTorch's own element-wise kernels
}
FLASH = (350, 250)  # TFLOP/s that FlashAttention-2 is known for, forward and backward


@dataclass(frozen=True)
class Work:
    """One line of the table, all of its passes or products in a step together.

    Args:
        name: Of the line.
        amount: Bytes, or operations where `rates` are given.
        kind: The key of `EXPECTED` that a pass goes by.
        backward: Whether the second of its percentages counts.
        rates: (floor, expected) in TFLOP/s where products bound it, on any device.
        measured: (op, shape, times it is in a step), rows of results that add up to it.
    """

    name: str
    amount: float
    kind: tuple[str, int] = ("torch", 0)
    backward: bool = False
    rates: tuple[float, float] | None = None
    measured: tuple[tuple[str, str, float], ...] = ()

    def milliseconds(self, device: int) -> tuple[float, float]:
        """(floor, predicted) on one of `DEVICES`."""
        if self.rates is not None:
            return self.amount / self.rates[0] / 1e9, self.amount / self.rates[1] / 1e9
        floor = self.amount / DEVICES[device].copy / 1e6
        return floor, floor / EXPECTED[self.kind][device][self.backward] * 100

    def found(self, results: dict[str, Any]) -> float | None:
        """Milliseconds that results have for it; None where a row is missing."""
        total = 0.0
        for op, shape, count in self.measured:
            rows = results.get(op, {}).get(shape, {}).get("rows", [])
            ours = [r["bwd_ms" if self.backward else "fwd_ms"] for r in rows if r["impl"] == "cuda"]
            if not ours:
                return None
            total += count * ours[0]
        return total if self.measured else None


@dataclass(frozen=True)
class Product:
    """A matrix product of a step, (m, k) x (k, n), and the number of them in its forward."""

    name: str
    m: int
    n: int
    k: int
    count: int

    @property
    def flops(self) -> int:
        """FLOPs of one product; a multiply-add counts as two."""
        return 2 * self.m * self.n * self.k


@dataclass(frozen=True)
class Step:
    """A step: its clips and whether attention is axial (T, then H|W) or over all their tokens."""

    shape: common.Shape
    dense: bool = False

    @property
    def blocks(self) -> int:
        """Blocks of attention in a layer."""
        return 1 if self.dense else 2

    @property
    def live(self) -> int:
        """Rows that a loss reads: masked ones and [CLS]."""
        return int(self.shape.B * (self.shape.cells * MASKED + 1))

    @property
    def capacity(self) -> int:
        """Rows that are computed for them."""
        return int(self.shape.B * (self.shape.cells * CAPACITY + 1))

    @property
    def unit(self) -> int:
        """Bytes of one (B, S, D) tensor in bf16."""
        return self.shape.rows * D * 2

    def products(self) -> list[Product]:
        """The last layer, after its attention, computes the rows that a loss may read alone."""
        R, M = self.shape.rows, self.capacity
        return [
            Product("qkv", R, 3 * D, D, LAYERS * self.blocks),
            Product("attention out", R, D, D, LAYERS * self.blocks - 1),
            Product("MLP up", R, 4 * D, D, LAYERS - 1),
            Product("MLP down", R, D, 4 * D, LAYERS - 1),
            Product("last rows out", M, D, D, 1),
            Product("last rows up", M, 4 * D, D, 1),
            Product("last rows down", M, D, 4 * D, 1),
            Product("token head", M, D, D, 1),
            Product("logits", M, PADDED, D, 1),
        ]

    def work(self) -> Iterator[Work]:
        """The passes and products of the step, forward and backward."""
        flops = 3 * sum(p.count * p.flops for p in self.products())
        rates = (DEVICES[0].product, DEVICES[0].narrow)
        yield Work("matrix products", flops, rates=rates)
        yield from self._attention()
        label, U, last = self.shape.label, self.unit, self.capacity / self.shape.rows
        norms = LAYERS * (self.blocks + 1) - 2 + 2 * last
        op, of = "dropout_add_layer_norm", (f"{label} bfloat16 dropout 0.1 readers 2", norms)
        yield Work("add + LN, forward", 4 * U * norms, (op, D), False, measured=((op, *of),))
        # It reads the gradients of both readers of its output, which nothing has added before.
        yield Work("add + LN, backward", 5 * U * norms, (op, D), True, measured=((op, *of),))
        op, mlps = "bias_gelu", LAYERS - 1 + last
        of = (f"{label} bfloat16", mlps)
        yield Work("GELU, forward", 8 * U * mlps, (op, 4 * D), False, measured=((op, *of),))
        yield Work("GELU, backward", 12 * U * mlps, (op, 4 * D), True, measured=((op, *of),))
        op, of = "embed_tokens", (f"{label} bfloat16 dropout 0.1", 1.0)
        yield Work("embedding, forward", U, (op, D), False, measured=((op, *of),))
        yield Work("embedding, backward", 2 * U, (op, D), True, measured=((op, *of),))
        logits = self.live * PADDED * 2
        yield Work("logits to their gradient", 2 * logits, ("linear_cross_entropy", PADDED))
        yield Work("rows of last layer and head", 40 * U * last)
        # AdamW reads p, g, m, v and writes p, m, v in fp32; a cast to bf16, one of the gradient.
        yield Work("AdamW, casts of weights", PARAMETERS * (28 + 6 + 6))

    def _attention(self) -> Iterator[Work]:
        if self.dense:
            S = 1 + self.shape.cells
            flops = 4 * self.shape.B * S * S * D * LAYERS
            yield Work("attention, forward", flops, rates=(DEVICES[0].product, FLASH[0]))
            yield Work("attention, backward", 2.5 * flops, rates=(DEVICES[0].product, FLASH[1]))
            return
        U, op, n = self.unit, "axial_attention", LAYERS * self.blocks
        of = tuple((op, f"{self.shape.label} {a} bfloat16 dbias", LAYERS) for a in ("T", "H|W"))
        yield Work("attention core, forward", 4 * U * n, (op, 64), False, measured=of)
        yield Work("attention core, backward", 7 * U * n, (op, 64), True, measured=of)


def percents(op: str, width: int, device_name: str) -> tuple[float, float] | None:
    """The entry of EXPECTED for a case on a device, both directions."""
    for i, device in enumerate(DEVICES):
        if device.name in device_name and (op, width) in EXPECTED:
            return EXPECTED[op, width][i]
    return None


@functools.cache
def _results(file: str) -> dict[str, Any]:
    path = common.RESULTS / file
    return json.loads(path.read_text()) if path.exists() else {}


def _step_ms(device: Device, impl: str, layout: str, clips: int, size: str) -> float | None:
    rows = _results(device.file).get("step", {}).get(f"{size} B{clips}", {}).get("rows", [])
    of = [r["graph_ms"] or r["step_ms"] for r in rows if (r["impl"], r["layout"]) == (impl, layout)]
    return of[0] if of else None


def _line(name: str, amount: str, cells: list[tuple[float, float, float | None]]) -> str:
    columns = [ms for cell in cells for ms in cell]
    said = ("" if ms is None else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" for ms in columns)
    return f"| {name} | {amount} | {' | '.join(said)} |"


def total(step: Step, device: int) -> tuple[float, float]:
    """(floor, predicted) milliseconds of a step whose passes and products do not overlap."""
    both = [work.milliseconds(device) for work in step.work()]
    return sum(floor for floor, _ in both), sum(predicted for _, predicted in both)


def table() -> list[str]:
    """Markdown: the step of 64 clips at T=5 S=128 line by line, then other steps."""
    heads = " | ".join(f"{d.name} floor | predicted | measured" for d in DEVICES)
    lines = [f"| ms of a step | work | {heads} |", "|---|---|" + "---|" * 3 * len(DEVICES)]
    ours = Step(common.SMALL)
    for work in ours.work():
        large = f"{work.amount / 1e12:.1f} TFLOP" if work.rates else f"{work.amount / 1e9:.1f} GB"
        cells = [
            (*work.milliseconds(i), work.found(_results(device.file)))
            for i, device in enumerate(DEVICES)
        ]
        lines.append(_line(work.name, large, cells))
    long = common.Shape("small", 16, 10, 32, 32, 8, 64)
    for shape, size in ((common.SMALL, "T=5 S=128"), (long, "T=10 S=256")):
        for dense in (False, True):
            step = Step(shape, dense)
            layout = "THW" if dense else "T,H|W"
            cells = [
                (*total(step, i), _step_ms(device, "ours", layout, shape.B, size))
                for i, device in enumerate(DEVICES)
            ]
            what = "dense, FlashAttention-2" if dense else "ours"
            lines.append(_line(f"**{what}**, {shape.B} clips, {size}", "", cells))
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
