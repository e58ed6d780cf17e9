"""The gradients of a group of captioned videos: the trainer's own step against what people run.

    pytest benchmarks/bench_simvtp.py --benchmark-only

`released` is the step of benchmarks/released_simvtp.py, `+ SDPA` the same with fused attention,
`+ compile` a model under torch.compile, `eager pixels` has the formulas of `tubelet_embed` and
`tubelet_mse` in place of their kernels. All start from the same uint8 clips, texts and parameters,
and are timed only if their losses and gradients are those of `SimVTP.forward`. AdamW is left out:
it is the same for all, and runs once for many groups. Gradients are part of the peak memory.

The candidates are interleaved, with a matrix product beside each of them. MFU is against that
product, and counts the FLOPs that the losses need, the same for all. A CPU takes the base model
with half of its layers; `--full` adds the whole one, the compiler and more rounds.
`--only "^ours$"` times ours alone, with its phases, and writes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import common
import interleaved
import phases
import pytest
import torch
from released_simvtp import ReleasedSimVTP
from torch import Tensor

from vimpac.simvtp import (
    NetworkConfig,
    SimVTP,
    TextConfig,
    decoder,
    encoder,
    group_contrast,
    masking,
    model,
)
from vimpac.simvtp.mismatches import random_mismatches
from vimpac.simvtp.run_config import PairsBatchConfig, SimVTPConfig
from vimpac.simvtp.step import METRICS, PairStep
from vimpac.simvtp.text import SpecialTokens
from vimpac.train.distributed import World
from vimpac_kernels import tubelet_embed, tubelet_mse
from vimpac_kernels.runtime.dtypes import cpu_product_dtype

GPU = common.default_device() == "cuda"
NAMES = (
    *("released", "released + compile", "released + SDPA"),
    *("ours, eager pixels", "ours", "ours + compile", "ours in two micro-batches"),
)
PHASES = (
    *("masks", "tubelet embedding", "word embedding", "encoder", "decoder", "word head"),
    *("pixel loss", "contrast", "match", "other"),
)
PLACES: tuple[phases.Place, ...] = (
    (masking.Masker, "__call__", "masks"),
    (encoder.TubeletEmbedding, "forward", "tubelet embedding"),
    (encoder.WordEmbedding, "forward", "word embedding"),
    (encoder.JointEncoder, "together", "encoder"),
    (decoder.Decoder, "forward", "decoder"),
    (model, "word_loss", "word head"),
    (model, "tubelet_mse", "pixel loss"),
    (group_contrast, "contrastive_loss", "contrast"),
    (model, "match_loss", "match"),
    (ReleasedSimVTP, "normalise", "tubelet embedding"),
    (ReleasedSimVTP, "embed_tubelets", "tubelet embedding"),
    (ReleasedSimVTP, "embed_words", "word embedding"),
    (ReleasedSimVTP, "encode", "encoder"),
    (ReleasedSimVTP, "decode", "decoder"),
    (ReleasedSimVTP, "word_loss", "word head"),
    (ReleasedSimVTP, "pixel_loss", "pixel loss"),
    (ReleasedSimVTP, "contrastive_loss", "contrast"),
    (ReleasedSimVTP, "match_loss", "match"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and a group of pairs."""

    name: str
    network: NetworkConfig
    pairs: int
    words: int = 24  # tokens of the longest text
    precision: str = "bf16" if GPU else "fp32"

    def run_config(self, micro: int, compile: str = "none") -> Any:
        """The run of the trainer; without dropout, so that all candidates can be compared."""
        return SimVTPConfig(
            precision=self.precision,
            compile=compile,
            model=self.network,
            text=TextConfig(dropout=0.0),
            batch=PairsBatchConfig(self.pairs, self.pairs, micro),
        )


BASE = NetworkConfig().named("base")
HALF = dataclasses.replace(BASE, layers=BASE.layers // 2, decoder_layers=BASE.decoder_layers // 2)
CPU_CASES = (
    Case("half", HALF, 2),
    Case("half bf16", HALF, 2, precision="bf16"),
    Case("whole-base", BASE, 4),
)
CASES = (Case("base", BASE, 16),) if GPU else CPU_CASES


@dataclasses.dataclass(frozen=True)
class StepRow:
    """A timed step."""

    shape: str
    impl: str
    pairs: int
    step_ms: float
    pairs_per_s: float
    ratio: float | None  # to the released step
    model_tflop_per_s: float
    mfu_percent: float
    peak_mib: float
    phases: dict[str, float] | None  # milliseconds, of the steps that are taken apart


@dataclasses.dataclass(frozen=True)
class Batch:
    """A group of pairs, as ours takes it and as the released step does."""

    pairs: tuple[Tensor, Tensor]  # clips (B, T, S, S, 3) uint8 and ids (B, L) int32
    released: tuple[Tensor, ...]  # the arguments of ReleasedSimVTP, masked as ours masks
    ids: Tensor  # (B, L)

    @property
    def masked_words(self) -> int:
        """How many words are predicted."""
        return int((self.released[4] >= 0).sum())


Gradients = Callable[[], Tensor]  # adds them; pixel, word, contrastive and match loss, (4,)


def step_flops(network: NetworkConfig, pairs: int, words: int, masked_words: int) -> float:
    """FLOPs that the losses of a group need; a step may compute more.

    A multiply-add is 2 FLOP. A layer of width D has weights 4 D^2 + 2 D * MLP per row, and
    attention 2 D per query and key. Backward is twice forward, but a tubelet's pixels need no
    gradient.
    """
    hidden = SimVTPConfig().mask.masked_cells(network.cells)
    masked = network.grid[0] * hidden
    visible = network.tubelets - masked

    def encode(rows: int) -> float:
        D = network.width
        weights = 4 * D * D + 2 * D * network.mlp_width
        return network.layers * (rows * weights + 2 * rows * rows * D)

    D, N = network.decoder_width, network.tubelets
    rest = 2 * D * D + 2 * D * network.decoder_mlp_width + 2 * D * N  # q, out, MLP and attention
    decode = network.decoder_layers * N * (2 * D * D + rest)
    decode -= visible * rest  # the last layer: of visible rows only k and v
    decode += visible * network.width * D + masked * D * network.pixels
    # Two joint passes: of the pairs and of the mismatches.
    encoders = 2 * encode(visible + words) + encode(visible) + encode(words)
    head = masked_words * network.width * network.vocabulary
    embed = visible * network.pixels * network.width
    return 3 * 2 * (pairs * (encoders + decode) + head) + 2 * 2 * pairs * embed


def make_batch(case: Case, network: SimVTP, device: str) -> Batch:
    """Clips of noise and texts of half to all of the words, masked as the trainer does."""
    config = case.run_config(case.pairs)
    frames, side = case.network.frames, case.network.size
    video = torch.randint(0, 256, (case.pairs, frames, side, side, 3)).to(torch.uint8)
    ids = torch.randint(5, case.network.vocabulary, (case.pairs, case.words), dtype=torch.int32)
    special = SpecialTokens()
    for row, end in zip(ids, torch.linspace(case.words // 2, case.words, case.pairs), strict=True):
        row[0], row[int(end) - 1], row[int(end) :] = special.cls, special.sep, special.pad
    video, ids = video.to(device), ids.to(device)
    part = PairStep(network, config, special, World(torch.device(device))).mask(video, ids, 0)
    mask = torch.zeros(case.pairs, case.network.tubelets, dtype=torch.bool, device=device)
    mask.scatter_(1, part.masked.long(), True)
    negatives = random_mismatches(config.seed, 0, case.pairs, 0, case.pairs)
    texts = part.masked_ids.long(), part.attention, part.words.labels.long()
    released = (video, mask, *texts, torch.tensor(negatives, device=device))
    return Batch((video, ids), released, ids.long())


def make_step(name: str, case: Case, network: SimVTP, batch: Batch) -> Gradients:
    """One of `NAMES`, that adds the gradients of a group to those of the network."""
    world = World(batch.ids.device)
    if name.startswith("ours"):
        micro = case.pairs // 2 if name.endswith("micro-batches") else case.pairs
        compiler = "default" if name.endswith("compile") else "none"
        config = case.run_config(micro, compiler)
        ours = PairStep(network, config, SpecialTokens(), world)
        parts = [*zip(*(x.split(micro) for x in batch.pairs), strict=True)]
        wanted = [i for i, metric in enumerate(METRICS) if metric.endswith("loss")]
        if name.endswith("eager pixels"):
            return with_eager_pixels(lambda: ours.gradients([parts], 0)[wanted])
        return lambda: ours.gradients([parts], 0)[wanted]
    released = ReleasedSimVTP(network, sdpa=name.endswith("SDPA"))
    forward = torch.compile(released) if name.endswith("compile") else released

    def gradients() -> Tensor:
        with world.autocast(case.precision):
            losses = forward(*batch.released)
        losses.sum().backward()
        return losses.detach()

    return gradients


def with_eager_pixels(gradients: Gradients) -> Gradients:
    """The same, by the reference of the two ops of tubelets."""
    embed = functools.partial(tubelet_embed, impl="reference")

    def mse(*args: Any, **kwargs: Any) -> Tensor:
        with phases.phase("pixel loss"):
            return tubelet_mse(*args, impl="reference", **kwargs)

    def run() -> Tensor:
        with mock.patch.object(encoder, "tubelet_embed", embed):
            with mock.patch.object(model, "tubelet_mse", mse):
                return gradients()

    return run


def check_agreement(steps: dict[str, Gradients], network: SimVTP, batch: Batch) -> None:
    """Raises AssertionError unless all losses and gradients are those of `SimVTP.forward`."""
    video, mask, masked_ids, attention, labels, negatives = batch.released
    output = network(video, mask, batch.ids, attention, masked_ids, labels, negatives)
    output.loss.backward()
    parts = output.pixel_loss, output.word_loss, output.contrastive_loss, output.match_loss
    expected = _take_gradients(network)
    for name, gradients in steps.items():
        torch.testing.assert_close(gradients(), torch.stack(parts).detach(), rtol=1e-4, atol=1e-5)
        for parameter, gradient in _take_gradients(network).items():
            difference = float((gradient - expected[parameter]).norm())
            limit = 1e-4 * float(expected[parameter].norm())
            assert difference <= limit, f"{name}: gradient of {parameter}: {difference} > {limit}"


def _take_gradients(network: SimVTP) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


def time_case(bench: Any, case: Case) -> common.Timed:
    """Checks and times the candidates of one case, and takes those that are compared apart."""
    device = bench.device
    torch.manual_seed(0)
    network = SimVTP(case.network, TextConfig(dropout=0.0)).to(device)
    batch = make_batch(case, network, device)
    names, left_out = bench.wanted(NAMES)
    exact = dataclasses.replace(case, precision="fp32")
    steps = {name: make_step(name, exact, network, batch) for name in names}
    check_agreement(steps, network, batch)
    steps = {name: make_step(name, case, network, batch) for name in names}

    def whole(gradients: Gradients) -> Callable[[], None]:
        def run() -> None:
            gradients()
            network.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    runs = {name: whole(gradients) for name, gradients in steps.items()}
    peaks = {name: interleaved.peak_mib(run, device) for name, run in runs.items()}
    rounds = 5 if bench.full else 3
    times, ceiling, rounds = interleaved.steps_beside_products(
        runs.values(),
        device,
        least=rounds,
        most=20 if device == "cuda" else rounds,
        budget_s=4.0 * len(runs),
        ceiling="bf16_gemm_tflop_per_s" if case.precision == "bf16" else "gemm_tflop_per_s",
    )
    flops = step_flops(case.network, case.pairs, case.words, batch.masked_words)
    released_ms = times[names.index("released")] if "released" in names else None
    rows = []
    for (name, run), ms in zip(runs.items(), times, strict=True):
        apart = name in ("released", "ours, eager pixels", "ours")
        rows.append(
            StepRow(
                shape=case.name,
                impl=name,
                pairs=case.pairs,
                step_ms=ms,
                pairs_per_s=case.pairs / ms * 1e3,
                ratio=released_ms and released_ms / ms,
                model_tflop_per_s=flops / ms / 1e9,
                mfu_percent=100 * flops / ms / 1e9 / ceiling,
                peak_mib=peaks[name],
                phases=phases.breakdown(run, device, PLACES, PHASES) if apart else None,
            )
        )
    timed = common.Timed(rows, {"gemm_tflop_per_s": ceiling}, rounds, left_out)
    bench.record("simvtp", f"{case.name} B={case.pairs}", timed, runs[names[-1]])
    return timed


_timed: list[common.Timed] = []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_simvtp(bench: Any, case: Case) -> None:
    """Times the steps of one case interleaved."""
    names, left_out = bench.wanted(NAMES)
    if not names:
        bench.skip(left_out)
    if not GPU and case.precision == "bf16" and cpu_product_dtype(torch.bfloat16) == torch.float32:
        pytest.skip("this processor does not multiply bf16")
    _timed.append(time_case(bench, case))


@pytest.fixture(scope="module", autouse=True)
def _report() -> Iterator[None]:
    """Prints the tables when the last case has been timed."""
    yield
    for timed in _timed:
        print("\n\nshape | impl | ms | pairs/s | ratio | MFU | peak MiB")
        for row in timed.rows:
            ratio = "-" if row.ratio is None else f"{row.ratio:.2f}x"
            print(
                f"{row.shape} B={row.pairs} | {row.impl} | {row.step_ms:.0f} | "
                f"{row.pairs_per_s:.3g} | {ratio} | {row.mfu_percent:.0f} % | {row.peak_mib:.0f}"
            )
        apart = [row for row in timed.rows if row.phases]
        print(f"phase, ms | {' | '.join(row.impl for row in apart)}")
        for name in PHASES:
            print(f"{name} | {' | '.join(f'{row.phases[name]:.1f}' for row in apart)}")
    print("\n".join(common.left_out_lines(timed.left_out for timed in _timed)))
