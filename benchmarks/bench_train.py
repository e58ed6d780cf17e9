"""The whole pre-training step, from masks to AdamW: the trainer's own against what people run.

    pytest benchmarks/bench_train.py --benchmark-only

`released` is the step of benchmarks/released_step.py, `plain` the best that plain PyTorch allows
(benchmarks/plain_step.py), `+ compile` a model under torch.compile; layout `THW` is the dense
baseline: ours by SDPA or, on a CPU, a kernel of ours; released with its probabilities in memory.
report.py sets the ratios of the paper's Tables 13 and 14 beside ours. The steps of one input size
are interleaved, with a matrix product beside each of them, against which MFU is given. A CPU takes
one video at a time and compares steps on the smaller inputs only. Without `--full` it takes two
rounds, no compiler and none of Table 14's larger inputs, all of which take minutes of their own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import interleaved
import phases
import pytest
import report_steps
import torch
from plain_step import PlainModel
from released_step import ReleasedModel, copy_weights, released_inputs
from torch import Tensor
from torch.utils.data import DataLoader

from vimpac import Vimpac
from vimpac.config import MaskConfig, PairBatchConfig, PretrainConfig
from vimpac.data.clips import ClipDataset
from vimpac.data.sampler import ResumableSampler
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.model.config import ModelConfig, preset
from vimpac.tokens import NUM_TOKENS
from vimpac.train.distributed import World
from vimpac.train.optim import make_optimizer
from vimpac.train.pretrain_step import PretrainStep
from vimpac.train.update import Update
from vimpac.train_config import OptimConfig

GPU = common.default_device() == "cuda"
VIDEOS = 32 if GPU else 1
BLOCKS = {(5, 8): 4, (5, 16): 5, (10, 16): 6, (5, 32): 6, (10, 32): 7}  # about 15 % masked
MODELS = {"released": ReleasedModel, "plain": PlainModel}
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


INPUTS: tuple[Size, ...] = ((5, 16), (10, 16), (5, 32), (10, 32)) if GPU else ((5, 8), (5, 16))
CASES = (
    *(Case(impl, size=size) for impl in ("released", "plain", "ours") for size in INPUTS),
    *(Case("ours", "THW", size) for size in INPUTS),
    *(Case("ours", size=size) for size in report_steps.TABLE_14 if size not in INPUTS),
    Case("released + compile"),
    Case("ours + compile"),
    Case("released", "THW"),
    Case("ours", "T,HW"),
    Case("ours", "T,H,W"),
)
SIZES = tuple(dict.fromkeys(case.size for case in CASES))


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


_timed: list[common.Timed] = []


def make_step(case: Case, device: str) -> Step:
    """Masks, forward, backward, clipping and update; bf16 autocast on a GPU, fp32 on a CPU.

    Ours is the trainer's own step.

    Args:
        case: Whose step.
        device: "cpu" or "cuda".
    """
    return _our_step(case, device) if case.impl.startswith("ours") else _other_step(case, device)


def _our_step(case: Case, device: str) -> Step:
    config = PretrainConfig(
        precision="bf16" if GPU else "fp32",
        compile="default" if case.impl.endswith("compile") else "none",
        model=case.config,
        mask=MaskConfig(blocks=BLOCKS[case.size]),
        batch=PairBatchConfig(VIDEOS, VIDEOS, VIDEOS),
    )
    model, world = Vimpac(config.model, config.loss).to(device), World(torch.device(device))
    step = PretrainStep(model, config, world, has_padding=False)
    if "THW" in case.layout:  # whose dropout a recorded graph draws from its generator
        step.seed.seeds_generator = False
    optimizer = _with_state(make_optimizer(model, config.optim), model)
    update = Update(step, model, optimizer, config.optim, world)

    def run(tokens: Tensor) -> None:
        update([[tokens.unflatten(0, (-1, 2))]], 0, config.optim.lr)

    return run


def _other_step(case: Case, device: str) -> Step:
    model = MODELS[case.impl.split()[0]](case.config).to(device)
    forward = torch.compile(model) if case.impl.endswith("compile") else model
    settings = OptimConfig()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )
    _with_state(optimizer, model)

    def run(tokens: Tensor) -> None:
        with phases.phase("masks"):
            inputs = released_inputs(tokens)
        with torch.autocast(device, torch.bfloat16, enabled=GPU):
            loss = forward(*inputs)
        loss.backward()
        with phases.phase("optimiser"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

    return run


def _with_state(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Makes the optimiser's state, which is no memory of a step."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


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

    whole()  # writes every parameter once: pages that forked workers share are copied at a write
    return phases.breakdown(whole, device)


@functools.cache
def _check_agreement() -> None:
    """The steps give one loss on the same weights, masks and no dropout."""
    model = Vimpac.from_preset("tiny", grid=(3, 4, 4), dropout=0.0)
    released, plain = ReleasedModel(model.config), PlainModel(model.config)
    copy_weights(model, released)
    plain.model.load_state_dict(model.state_dict())
    tokens = torch.randint(0, NUM_TOKENS, (4, 3, 4, 4))
    inputs, labels = released_inputs(tokens)
    ours = model(inputs, labels).loss
    for baseline in (released, plain):
        torch.testing.assert_close(ours, baseline(inputs, labels), rtol=1e-4, atol=1e-4)


def _prepare(case: Case, device: str, warm_up: int) -> tuple[Callable[[], None], Step, float]:
    """A step on one batch, the step on any, and the peak MiB of one, which also warms up."""
    step = make_step(case, device)
    T, side = case.size
    tokens = torch.randint(0, NUM_TOKENS, (2 * VIDEOS, T, side, side)).to(device)

    def run() -> None:
        step(tokens)
        if GPU:
            torch.cuda.synchronize()

    for _ in range(warm_up):
        run()
    return run, step, interleaved.peak_mib(run, device)


def _row(case: Case, step_ms: float, ceiling: float, peak_mib: float, taken_apart: Any) -> StepRow:
    rate = common.step_flops(VIDEOS, *case.size, case.layout) / step_ms / 1e9
    return StepRow(
        impl=case.impl,
        layout=case.layout,
        frames=case.size[0],
        side=case.size[1],
        videos=VIDEOS,
        step_ms=step_ms,
        videos_per_s=VIDEOS / step_ms * 1e3,
        model_tflop_per_s=rate,
        mfu_percent=100 * rate / ceiling,
        peak_mib=peak_mib,
        phases=taken_apart,
    )


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"T{size[0]}-S{8 * size[1]}")
def test_step(bench: Any, size: Size, tmp_path: Path) -> None:
    """Times the steps of one input size interleaved, and takes those that are compared apart."""
    _check_agreement()
    device = bench.device
    cases = {str(case): case for case in CASES if case.size == size}
    names, left_out = bench.wanted(cases)
    prepared = {}
    for name in names:
        try:
            warm_up = 3 if GPU or bench.full else 0
            prepared[cases[name]] = _prepare(cases[name], device, warm_up)
        except torch.OutOfMemoryError as error:
            left_out[name] = f"does not fit this GPU: {' '.join(str(error).split())[:200]}"
        if name in left_out:  # out here, where the error no longer holds the memory
            torch.cuda.empty_cache()
    if not prepared:
        bench.skip(left_out)
    times, ceiling, rounds = interleaved.steps_beside_products(
        [run for run, *_ in prepared.values()],
        device,
        least=3 if GPU else 5 if bench.full else 2,
        most=20 if GPU else 5 if bench.full else 2,
        budget_s=4.0 * len(prepared),
    )
    rows = []
    for (case, (_, step, peak)), ms in zip(prepared.items(), times, strict=True):
        apart = case in (Case("released"), Case("ours"))
        parts = _phases(case, step, device, tmp_path / case.impl) if apart else None
        rows.append(_row(case, ms, ceiling, peak, parts))
    timed = common.Timed(rows, {"gemm_tflop_per_s": ceiling}, rounds, left_out)
    _timed.append(timed)
    ours = next((case for case in prepared if case.impl == "ours"), next(iter(prepared)))
    bench.record("train", f"T={size[0]} S={8 * size[1]}", timed, prepared[ours][0])


@pytest.fixture(scope="module", autouse=True)
def _report() -> Iterator[None]:
    """Prints the table when the last step has been timed."""
    yield
    if _timed:
        rows = [dataclasses.asdict(row) for timed in _timed for row in timed.rows]
        said = common.left_out_lines(timed.left_out for timed in _timed)
        tables = [*report_steps.step_table(rows), "", *report_steps.phase_table(rows)]
        print("\n" + "\n".join([*tables, *said]))
