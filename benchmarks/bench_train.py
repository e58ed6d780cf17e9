"""The whole pre-training step: masks, forward, backward, AdamW; ours against what people run.

    pytest benchmarks/bench_train.py --benchmark-only

Table 13 of the paper compares layouts, Table 14 input sizes, both in videos per second of the
small model; their ratios stand beside ours. `released` is the step of benchmarks/released_step.py,
`released + compile` the same under torch.compile. A CPU takes one video and the smaller inputs.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import common
import pytest
import torch
from released_step import ReleasedModel, copy_weights, released_inputs
from torch import Tensor

import vimpac_kernels
from vimpac import Vimpac
from vimpac.presets import MASK_TOKEN, PAD_TOKEN, preset

GPU = common.default_device() == "cuda"
# Layout -> videos per second in Table 13; (T, tokens per side) -> in Table 14; one V100, 2021.
TABLE_13 = {"THW": 12.6, "T,HW": 20.0, "T,H,W": 26.4, "T,H|W": 32.0}
TABLE_14 = {(5, 16): 32.0, (10, 16): 16.5, (5, 32): 8.4, (10, 32): 4.4}
VIDEOS = 32 if GPU else 1
SIZES = list(TABLE_14) if GPU else list(TABLE_14)[:2]
BLOCKS = {(5, 16): 5, (10, 16): 6, (5, 32): 6, (10, 32): 7}  # about 15 % masked
ROUNDS = 20 if GPU else 3


@dataclasses.dataclass(frozen=True)
class StepRow:
    """One line of the table of steps."""

    table: str
    shape: str
    impl: str
    step_ms: float
    videos_per_s: float
    model_tflop_per_s: float
    mfu_percent: float
    peak_mib: float
    ratio: float  # to the first row of its table
    paper_ratio: float | None


_rows: list[StepRow] = []


def _clips(size: tuple[int, int], device: str) -> Tensor:
    T, side = size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 8192, (2 * VIDEOS, T, side, side), generator=generator)
    return ids.to(device)


def _ours(layout: str, size: tuple[int, int], device: str) -> tuple[Vimpac, Callable[[], Tensor]]:
    model = Vimpac.from_preset("small", layout=layout, grid=(size[0], size[1], size[1])).to(device)
    tokens = _clips(size, device)
    capacity = int(0.25 * tokens.numel())  # masks cover about 15 %

    def loss() -> Tensor:
        masked = vimpac_kernels.mask_tokens(
            tokens,
            mask_token=MASK_TOKEN,
            num_blocks=BLOCKS[size],
            pad_token=PAD_TOKEN,
            row_offset=1,
        )
        return model(
            masked.inputs,
            tokens,
            positions=masked.positions,
            count=masked.count,
            max_masked=capacity,
            has_padding=False,
        ).loss

    return model, loss


def _released(
    layout: str, size: tuple[int, int], device: str, compiled: bool
) -> tuple[ReleasedModel, Callable[[], Tensor]]:
    config = preset("small", layout=layout, grid=(size[0], size[1], size[1]))
    model = ReleasedModel(config).to(device)
    run = torch.compile(model) if compiled else model
    tokens = _clips(size, device)
    return model, lambda: run(*released_inputs(tokens))


def _step(model: torch.nn.Module, loss: Callable[[], Tensor], device: str) -> Callable[[], None]:
    """Forward, backward and update; bf16 autocast on a GPU, fp32 on a CPU."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=GPU):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def model_flops(size: tuple[int, int], layout: str) -> float:
    """Arithmetic of one step that the model calls for: 3 x forward, masked rows in the token head.

    Per token and layer: 4 D^2 per attention block and 2 D * 4D for the MLP, a multiply-add being
    2 FLOP; attention 4 * L * D per token and axis (half the heads each in `H|W`).
    """
    T, side = size
    D, layers, tokens = 512, 6, 2 * VIDEOS * T * side * side
    lengths = {"T": T, "H": side, "W": side, "HW": side * side, "THW": T * side * side}
    blocks = layout.split(",")
    weights = layers * (len(blocks) * 4 * D * D + 8 * D * D)
    attention = sum(
        4 * D * sum(lengths[axis] for axis in block.split("|")) / len(block.split("|"))
        for block in blocks
    )
    head = 0.15 * (D * D + D * common.VOCABULARY)
    return 3 * tokens * (2 * weights + layers * attention + 2 * head)


def _time(step: Callable[[], None], device: str) -> float:
    """Median milliseconds of a step, after two."""
    times = []
    for i in range(ROUNDS + 2):
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def _measure(
    benchmark,
    table: str,
    shape: str,
    impl: str,
    model: torch.nn.Module,
    loss: Callable[[], Tensor],
    flops: float,
    paper_ratio: float | None = None,
) -> StepRow:
    device = common.default_device()
    step = _step(model, loss, device)
    milliseconds = _time(step, device)
    rate = flops / milliseconds / 1e9
    first = next((row.step_ms for row in _rows if row.table == table), milliseconds)
    row = StepRow(
        table,
        shape,
        impl,
        milliseconds,
        VIDEOS / milliseconds * 1e3,
        rate,
        100 * rate / common.ceilings(device)["gemm_tflop_per_s"],
        common.peak_mib(step, device),
        first / milliseconds,
        paper_ratio,
    )
    _rows.append(row)
    benchmark.extra_info.update(dataclasses.asdict(row))
    benchmark.pedantic(step, rounds=1)
    return row


def test_steps_agree() -> None:
    """The released step and ours give one loss on the same weights, masks and no dropout."""
    model = Vimpac.from_preset("tiny", grid=(3, 4, 4), dropout=0.0)
    baseline = ReleasedModel(model.config)
    copy_weights(model, baseline)
    tokens = torch.randint(0, 8192, (4, 3, 4, 4))
    inputs, labels = released_inputs(tokens)
    ours = model(inputs, labels).loss
    torch.testing.assert_close(ours, baseline(inputs, labels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", ["released", "released + compile", "ours"])
def test_against_the_released_step(benchmark, impl: str) -> None:
    """The default layout: eager re-expression of the released step, compiled, and ours."""
    size, layout, device = (5, 16), "T,H|W", common.default_device()
    if impl == "ours":
        model, loss = _ours(layout, size, device)
    elif impl == "released + compile" and not GPU:
        pytest.skip("compiling the step takes minutes of a CPU run")
    else:
        model, loss = _released(layout, size, device, compiled=impl != "released")
    shape = f"{layout} T5 S128"
    _measure(benchmark, "step", shape, impl, model, loss, model_flops(size, layout))


@pytest.mark.parametrize("impl", ["materialised 2021", "sdpa", "T,HW", "T,H,W", "T,H|W"])
def test_layouts(benchmark, impl: str) -> None:
    """Table 13: layouts at T=5, S=128; the dense baseline with SDPA and as in 2021."""
    size, device = (5, 16), common.default_device()
    layout = "THW" if impl in ("materialised 2021", "sdpa") else impl
    if impl == "materialised 2021":
        model, loss = _released("THW", size, device, compiled=False)
    else:
        model, loss = _ours(layout, size, device)
    paper = TABLE_13[layout] / TABLE_13["THW"]
    flops = model_flops(size, layout)
    _measure(benchmark, "Table 13", layout, impl, model, loss, flops, paper)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"T{size[0]}-S{8 * size[1]}")
def test_input_sizes(benchmark, size: tuple[int, int]) -> None:
    """Table 14: frames and resolutions of the default layout."""
    model, loss = _ours("T,H|W", size, common.default_device())
    paper = TABLE_14[size] / TABLE_14[5, 16]
    flops = model_flops(size, "T,H|W")
    shape = f"T{size[0]} S{8 * size[1]}"
    _measure(benchmark, "Table 14", shape, "ours", model, loss, flops, paper)


@pytest.fixture(scope="module", autouse=True)
def _report(request: pytest.FixtureRequest):
    """Prints and writes the table when the last step has been timed."""
    yield
    if not _rows:
        return
    lines = ["table | shape | impl | step ms | videos/s | TFLOP/s | MFU % | MiB | ratio | paper"]
    for row in _rows:
        *names, step, videos, rate, mfu, peak, ratio = dataclasses.astuple(row)[:-1]
        paper = "-" if row.paper_ratio is None else f"{row.paper_ratio:.2f}"
        numbers = (f"{step:.1f}", f"{videos:.2f}", f"{rate:.3g}", f"{mfu:.1f}", f"{peak:.0f}")
        lines.append(" | ".join((*names, *numbers, f"{ratio:.2f}", paper)))
    print("\n" + "\n".join(lines))
    common.write_results("train", common.default_device(), _rows)
