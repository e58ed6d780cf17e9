"""A test of a classifier, 10 clips x 3 crops of every video: ours against a loop over the views.

    pytest benchmarks/bench_evaluate.py --benchmark-only

`plain loop` encodes every view with all rows of the best plain PyTorch model
(benchmarks/plain_step.py), `released loop` with the released one (benchmarks/released_step.py).
`ours` is what `vimpac evaluate` runs: the last layer computes [CLS] only, and clips that are the
same, as those of short videos are, are encoded once. Views per second are those asked for, so
their ratio is that of videos. Checked before they are timed: all give the same probabilities.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import interleaved
import pytest
import torch
from plain_step import PlainModel
from released_step import ReleasedModel, copy_weights
from torch import Tensor

from vimpac import VideoClassifier, Vimpac
from vimpac.data.even_clips import EvenClips, even_starts
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.eval.evaluate import classify
from vimpac.model.config import preset
from vimpac.tokens import NUM_TOKENS
from vimpac.train.distributed import World

GPU = common.default_device() == "cuda"
CLIPS, CROPS, CLASSES, BATCH = 10, 3, 101, 30
VIDEOS = 32 if GPU else 1
INPUTS = ((5, 16), (10, 32)) if GPU else ((5, 8), (5, 16))  # T, tokens per side
LENGTHS = {"long": 40, "short": 3}  # stored frames beyond those of a clip
NAMES = ("released loop", "plain loop", "ours")
Test = Callable[[], Tensor]  # probabilities (videos, classes)


@dataclasses.dataclass(frozen=True)
class EvaluateRow:
    """A timed test."""

    impl: str
    frames: int
    side: int
    length: str
    videos: int
    views: int  # asked for
    encoded: int
    ms: float
    views_per_s: float
    peak_mib: float


_timed: list[common.Timed] = []


def write_store(path: Path, frames: int, T: int, side: int) -> TokenStore:
    """Videos of random ids in the three crops."""
    names = ("1x-topleft", "1x-center", "1x-bottomright")
    generator = torch.Generator().manual_seed(0)
    with TokenStoreWriter(path, StoreMeta("patch", NUM_TOKENS, side, side, 2.0, names)) as writer:
        for video in range(VIDEOS):
            size = (CROPS, T + frames, side, side)
            writer.add(str(video), torch.randint(0, NUM_TOKENS, size, generator=generator).numpy())
        writer.finish()
    return TokenStore(path)


def make_tests(store: TokenStore, T: int, side: int, device: str) -> tuple[dict[str, Test], int]:
    """Every candidate's test of all videos, and how many views ours encodes."""
    torch.manual_seed(0)
    model = Vimpac(preset("small", grid=(T, side, side), dropout=0.0))
    classifier = VideoClassifier(model.encoder, CLASSES).eval()
    torch.nn.init.normal_(classifier.classifier.weight, std=0.1)
    plain, released = PlainModel(model.config), ReleasedModel(model.config)
    plain.model.load_state_dict(model.state_dict())
    copy_weights(model, released)
    for one in (classifier, plain, released):
        one.to(device).eval()
    encoders = {
        "plain loop": lambda tokens: plain.encode(tokens)[:, 0],
        "released loop": lambda tokens: released.encode(tokens)[0],
    }
    head = classifier.classifier
    tests: dict[str, Test] = {
        name: functools.partial(_loop, store, T, encode, head, device)
        for name, encode in encoders.items()
    }
    views = EvenClips(
        store, range(VIDEOS), frames=T, stride=1, clips=[CLIPS], variants=range(CROPS)
    )
    tests["ours"] = functools.partial(_ours, classifier, views, device)
    return {name: tests[name] for name in NAMES}, len(views)


@torch.no_grad()
def _loop(
    store: TokenStore,
    T: int,
    encode: Callable[[Tensor], Tensor],
    head: torch.nn.Module,
    device: str,
) -> Tensor:
    """Video by video, view by view, as evaluation scripts do."""
    found = []
    for video in range(len(store)):
        starts = even_starts(store.num_frames(video) - T, CLIPS)
        clips = [
            torch.from_numpy(store.read(video, start, start + T, crop).astype("int32"))
            for crop in range(CROPS)
            for start in starts
        ]
        with torch.autocast(device, torch.bfloat16, enabled=GPU):
            logits = head(encode(torch.stack(clips).to(device)).float())
        found.append(logits.float().softmax(-1).mean(0).cpu())
    return torch.stack(found)


def _ours(classifier: VideoClassifier, views: EvenClips, device: str) -> Tensor:
    world = World(torch.device(device))

    def logits(tokens: Tensor) -> Tensor:
        with world.autocast("bf16" if GPU else "fp32"):
            return classifier(tokens.to(device, non_blocking=True), has_padding=False)

    labels = torch.zeros(len(views.videos), dtype=torch.int64)
    how: dict[str, int] = {"batch": BATCH, "workers": 0}
    return classify(logits, views, labels, CLASSES, world, **how).probabilities[CLIPS]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("size", INPUTS, ids=lambda size: f"T{size[0]}-S{8 * size[1]}")
def test_evaluate(bench: Any, size: tuple[int, int], length: str, tmp_path: Path) -> None:
    """Times the tests of one input size and length of videos, interleaved."""
    (T, side), device = size, bench.device
    if not GPU and side > 8 and not bench.full:
        bench.skip({"T5-S128": "slow here: --full"})
    store = write_store(tmp_path / "store", LENGTHS[length], T, side)
    tests, encoded = make_tests(store, T, side, device)
    names, left_out = bench.wanted(tests)
    expected = tests["plain loop"]()
    for name in names:
        tolerance = 3e-2 if GPU else 1e-4
        torch.testing.assert_close(tests[name](), expected, rtol=tolerance, atol=tolerance)
    peaks = {name: interleaved.peak_mib(tests[name], device) for name in names}
    each = [functools.partial(_measure, tests[name]) for name in names]
    rounds = interleaved.run_rounds(each, least=3, most=20, budget_s=5.0)
    rows, asked = [], VIDEOS * CLIPS * CROPS
    for name, (ms,) in zip(names, interleaved.typical(rounds), strict=True):
        own = encoded if name == "ours" else asked
        rate = asked / ms * 1e3
        rows.append(EvaluateRow(name, T, side, length, VIDEOS, asked, own, ms, rate, peaks[name]))
    timed = common.Timed(rows, {}, len(rounds), left_out)
    _timed.append(timed)
    bench.record("evaluate", f"T={T} S={8 * side} {length}", timed, tests[names[-1]])


def _measure(test: Test) -> tuple[float, ...]:
    return interleaved.wall_ms(test)[:1]


@pytest.fixture(scope="module", autouse=True)
def _report() -> Iterator[None]:
    """Prints the table when the last test has been timed."""
    yield
    if _timed:
        print("\nvideos | input | impl | views asked | encoded | views/s | peak MiB")
    for timed in _timed:
        for row in timed.rows:
            print(
                f"{row.length} | T={row.frames} S={8 * row.side} | {row.impl} | {row.views} | "
                f"{row.encoded} | {row.views_per_s:.4g} | {row.peak_mib:.0f}"
            )
