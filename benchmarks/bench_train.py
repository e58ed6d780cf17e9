"""The whole pre-training step: masks, forward, backward, AdamW; ours against what people run.

    pytest benchmarks/bench_train.py --benchmark-only

`released` is the step of benchmarks/released_step.py, `+ compile` a model under torch.compile;
layout `THW` is the dense baseline, ours through SDPA, released with its probabilities in memory.
report.py sets the ratios of the paper's Tables 13 and 14 beside ours. A CPU takes one video at a
time, the smaller inputs and, unless `--full` is given, two rounds and no compiler, which takes
minutes of its own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import phases
import pytest
import report
import torch
from released_step import ReleasedModel, copy_weights, released_inputs
from torch import Tensor
from torch.utils.data import DataLoader

import vimpac_kernels
from vimpac import Vimpac
from vimpac.data.clips import ClipDataset
from vimpac.data.layout import StoreMeta
from vimpac.data.sampler import ResumableSampler
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.presets import MASK_TOKEN, NUM_TOKENS, PAD_TOKEN, ModelConfig, preset

GPU = common.default_device() == "cuda"
VIDEOS = 32 if GPU else 1
BLOCKS = {(5, 8): 4, (5, 16): 5, (10, 16): 6, (5, 32): 6, (10, 32): 7}  # about 15 % masked
Size = tuple[int, int]  # T, tokens per side
Step = Callable[[Tensor], None]  # of clips (2 * VIDEOS, T, H, W)


@dataclasses.dataclass(frozen=True)
class Case:
    """One step to time."""

    impl: str
    layout: str = "T,H|W"
    size: Size = (5, 16)

    @property
    def config(self) -> ModelConfig:
        """The small model of this case."""
        T, side = self.size
        return preset("small", layout=self.layout, grid=(T, side, side))

    def __str__(self) -> str:
        return f"{self.impl}-{self.layout}-T{self.size[0]}-S{8 * self.size[1]}"


SIZES: tuple[Size, ...] = ((5, 16), (10, 16), (5, 32), (10, 32)) if GPU else ((5, 8), (5, 16))
CASES = (
    *(Case(impl, size=size) for impl in ("released", "ours") for size in SIZES),
    *(Case("ours", "THW", size) for size in SIZES),
    *(() if GPU else (Case("ours", size=(10, 16)),)),
    Case("released + compile"),
    Case("ours + compile"),
    Case("released", "THW"),
    Case("ours", "T,HW"),
    Case("ours", "T,H,W"),
)


@dataclasses.dataclass(frozen=True)
class StepRow:
    """A timed step."""

    impl: str
    layout: str
    frames: int
    side: int
    videos: int
    step_ms: float
    videos_per_s: float
    model_tflop_per_s: float
    mfu_percent: float
    peak_mib: float
    phases: dict[str, float] | None  # milliseconds, of the steps that are taken apart


_rows: list[StepRow] = []


def _loss(case: Case, device: str) -> tuple[torch.nn.Module, Callable[[Tensor], Tensor]]:
    """The model and the function that masks clips and gives their loss."""
    ours = case.impl.startswith("ours")
    model = (Vimpac if ours else ReleasedModel)(case.config).to(device)
    compiled = case.impl.endswith("compile")
    run = torch.compile(model) if compiled else model
    # Masks cover about 15 %; only eager code on a CPU reads how many rows there are.
    share = 0.25 if GPU or compiled else None

    def released_loss(tokens: Tensor) -> Tensor:
        with phases.phase("masks"):
            inputs = released_inputs(tokens)
        return run(*inputs)

    def loss(tokens: Tensor) -> Tensor:
        with phases.phase("masks"):
            masked = vimpac_kernels.mask_tokens(
                tokens,
                mask_token=MASK_TOKEN,
                num_blocks=BLOCKS[case.size],
                pad_token=PAD_TOKEN,
                row_offset=1,
            )
        return run(
            masked.inputs,
            tokens,
            positions=masked.positions,
            count=masked.count,
            max_masked=share and int(share * tokens.numel()),
            has_padding=False,
        ).loss

    return model, loss if ours else released_loss


def _make_step(case: Case, device: str) -> Step:
    """Masks, forward, backward and update; bf16 autocast on a GPU, fp32 on a CPU."""
    model, loss = _loss(case, device)
    fused = True if case.impl.startswith("ours") else None  # None: as PyTorch does by default
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=fused
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes its state, which is no memory of a step
    optimizer.zero_grad()

    def step(tokens: Tensor) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=GPU):
            value = loss(tokens)
        value.backward()
        with phases.phase("optimiser"):
            optimizer.step()
            optimizer.zero_grad()

    return step


def model_flops(size: Size, layout: str) -> float:
    """Arithmetic of one step that the losses call for, whoever computes more: 3 x forward.

    Per token and layer: 4 D^2 per attention block and 2 D * 4D for the MLP, a multiply-add being
    2 FLOP; attention 4 * L * D per token and axis (half the heads each in `H|W`). The losses read
    masked rows and [CLS], so the token head has only the former, and the last layer after its
    attention, D^2 + 8 D^2, only both.
    """
    T, side = size
    D, layers, clips, masked = 512, 6, 2 * VIDEOS, 0.15
    tokens = clips * T * side * side
    unread = 1 - masked - clips / tokens
    lengths = {"T": T, "H": side, "W": side, "HW": side * side, "THW": T * side * side}
    blocks = layout.split(",")
    weights = layers * (len(blocks) * 4 * D * D + 8 * D * D) - unread * 9 * D * D
    attention = sum(
        4 * D * sum(lengths[axis] for axis in block.split("|")) / len(block.split("|"))
        for block in blocks
    )
    head = masked * (D * D + D * common.VOCABULARY)
    return 3 * tokens * (2 * weights + layers * attention + 2 * head)


def _batches(store: Path, size: Size) -> Iterator[Tensor]:
    """Clips as the trainer reads them: from a token store, by two worker processes."""
    T, side = size
    ids = torch.randint(0, NUM_TOKENS, (1, 4 * T, side, side)).numpy()
    with TokenStoreWriter(store, StoreMeta("patch", NUM_TOKENS, side, side, fps=2.0)) as writer:
        for video in range(VIDEOS):
            writer.add(str(video), ids)
        writer.finish()
    dataset = ClipDataset(TokenStore(store), num_frames=T)
    sampler = ResumableSampler(VIDEOS, global_batch=VIDEOS)
    loader = DataLoader(dataset, batch_size=VIDEOS, sampler=sampler, num_workers=2, pin_memory=GPU)
    return iter(loader)


def _phases(case: Case, step: Step, device: str, store: Path) -> dict[str, float]:
    batches = _batches(store, case.size)
    next(batches)  # the workers have started

    def whole() -> None:
        with phases.phase("data wait"):
            clips = next(batches)
        step(clips.flatten(0, 1).to(device, non_blocking=True))

    return phases.breakdown(whole, device)


@functools.cache
def _check_agreement() -> None:
    """The released step and ours give one loss on the same weights, masks and no dropout."""
    model = Vimpac.from_preset("tiny", grid=(3, 4, 4), dropout=0.0)
    baseline = ReleasedModel(model.config)
    copy_weights(model, baseline)
    tokens = torch.randint(0, NUM_TOKENS, (4, 3, 4, 4))
    inputs, labels = released_inputs(tokens)
    ours = model(inputs, labels).loss
    torch.testing.assert_close(ours, baseline(inputs, labels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_step(benchmark: Any, request: pytest.FixtureRequest, case: Case, tmp_path: Path) -> None:
    """Times one step, and takes the steps that are compared apart."""
    full = GPU or request.config.getoption("--full")
    _check_agreement()
    device = common.default_device()
    step = _make_step(case, device)
    T, side = case.size
    tokens = torch.randint(0, NUM_TOKENS, (2 * VIDEOS, T, side, side)).to(device)

    def run() -> None:
        step(tokens)
        if GPU:
            torch.cuda.synchronize()

    try:
        for _ in range(3 if full else 0):
            run()
    except torch.OutOfMemoryError:
        pytest.skip("does not fit the memory of this GPU")
    peak_mib = common.peak_mib(run, device)  # in the short form also the warm-up
    benchmark.pedantic(run, rounds=20 if GPU else 5 if full else 2)
    milliseconds = benchmark.stats.stats.median * 1e3
    taken_apart = case in (Case("released"), Case("ours"))
    rate = model_flops(case.size, case.layout) / milliseconds / 1e9
    row = StepRow(
        impl=case.impl,
        layout=case.layout,
        frames=T,
        side=side,
        videos=VIDEOS,
        step_ms=milliseconds,
        videos_per_s=VIDEOS / milliseconds * 1e3,
        model_tflop_per_s=rate,
        mfu_percent=100 * rate / common.ceilings(device)["gemm_tflop_per_s"],
        peak_mib=peak_mib,
        phases=_phases(case, step, device, tmp_path / "store") if taken_apart else None,
    )
    _rows.append(row)
    benchmark.extra_info.update(dataclasses.asdict(row))


@pytest.fixture(scope="module", autouse=True)
def _report() -> Iterator[None]:
    """Prints and writes the table when the last step has been timed."""
    yield
    if _rows:
        rows = [dataclasses.asdict(row) for row in _rows]
        print("\n" + "\n".join([*report.step_table(rows), "", *report.phase_table(rows)]))
        common.write_results("train", common.default_device(), _rows)
