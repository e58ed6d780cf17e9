"""The step as one CUDA graph: rehearsed on the CPU by capture.py, run where there is a GPU."""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.emulator import build
from tests.vimpac.capture import Replayed, capturing
from tests.vimpac.runs import make_store, tiny_config
from vimpac import Vimpac
from vimpac.checkpoints.training_state import load_checkpoint
from vimpac.config import PretrainConfig
from vimpac.settings import load_config
from vimpac.train import cuda_graph
from vimpac.train.batches import open_store
from vimpac.train.cuda_graph import WARM_UP, Graphed
from vimpac.train.distributed import World
from vimpac.train.loop import Loop
from vimpac.train.optim import make_optimizer
from vimpac.train.pretrain import Pretraining
from vimpac.train.pretrain_step import PretrainStep
from vimpac.train.update import Update
from vimpac_kernels import bias_gelu
from vimpac_kernels.runtime import registry

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = (2, 4, 4)
SETTINGS = ("batch.videos=8", "batch.contrastive=4", "batch.micro=2", "precision=fp32")
KINDS = [("batch.micro=4",), ("batch.micro=2",), ("batch.micro=2", "activation_checkpointing=true")]
CASES = pytest.mark.parametrize("words", KINDS, ids=["one-pass", "cached", "checkpointing"])


@pytest.fixture
def taped(monkeypatch) -> list[Replayed]:
    """Graphs are tapes: those that are made."""
    made: list[Replayed] = []

    def make(*arguments) -> Replayed:
        made.append(Replayed(*arguments))
        return made[-1]

    monkeypatch.setattr("vimpac.train.update.Graphed", make)
    return made


class Rehearsal(NamedTuple):
    """An update, and what it changes."""

    update: Update
    step: PretrainStep
    optimizer: torch.optim.Optimizer


def _make_update(*more: str, device: str = "cpu") -> Rehearsal:
    """Updates of two groups of four videos, which read nothing on the host."""
    config = load_config(PretrainConfig, "tiny", [*SETTINGS, *more])
    torch.manual_seed(0)
    model = Vimpac.from_preset("tiny", layers=2, grid=GRID, dropout=0.3).to(device)
    step = PretrainStep(model, config, World(torch.device(device)))
    step._read_count = False
    optimizer = make_optimizer(model, config.optim)
    update = Update(step, model, optimizer, config.optim, step.world, config.graph)
    return Rehearsal(update, step, optimizer)


def _run(rehearsal: Rehearsal, number: int) -> torch.Tensor:
    """Metrics and norm of the update with that number, which decides everything."""
    (update, step, _), generator = rehearsal, torch.Generator().manual_seed(number)
    videos = torch.randint(0, 8192, (step.groups, step.group_part, 2, *GRID), generator=generator)
    videos = videos.pin_memory() if step.world.device.type == "cuda" else videos
    first = step.groups * step.group_part * number
    return update((group.split(step.micro) for group in videos), first, 1e-3 / (1 + number))


def _train(rehearsal: Rehearsal, updates: int) -> list[torch.Tensor]:
    """Metrics and norms of updates, then the parameters, Adam's moments, BatchNorm's statistics."""
    results = [_run(rehearsal, number) for number in range(updates)]
    moments = [x for state in rehearsal.optimizer.state.values() for x in state.values()]
    return [*results, *rehearsal.step.model.state_dict().values(), *moments]


@CASES
def test_graph_of_an_update_is_the_plain_update(taped, words):
    """Tokens, masks, dropout and the learning rate reach it through its inputs, bit for bit."""
    updates, recorded = WARM_UP + 3, _make_update("graph=true", *words)
    expected = _train(_make_update(*words), updates)
    torch.testing.assert_close(_train(recorded, updates), expected, rtol=0, atol=0)
    assert [tape.replays for tape in taped] == [updates - WARM_UP]


def test_graph_of_a_bf16_update_is_the_plain_update(taped):
    words, updates = ("precision=bf16", "mask.noise=[0.8, 0.1, 0.1]"), WARM_UP + 2
    expected = _train(_make_update(*words), updates)
    recorded = _make_update("graph=true", *words)
    torch.testing.assert_close(_train(recorded, updates), expected, rtol=0, atol=0)


@CASES
def test_update_can_be_captured(words):
    """The tape does refuse what a capture would, and it sees every part of the step."""
    rehearsal = _make_update(*words)
    _run(rehearsal, 0)
    (update, step, _), clip, lr = rehearsal, torch.tensor(0), torch.tensor(1e-3)
    parts = torch.randint(0, 8192, (8, 2, *GRID)).split(step.micro)
    with capturing() as tape:
        update._recorded(clip, lr, *parts)
    names = {function.name() for function, *_ in tape.operators}
    ops = ("mask_tokens", "axial_attention", "linear_cross_entropy", "embed_tokens", "bias_gelu")
    for seen in (*(f"{op}_fwd" for op in ops), "_foreach_norm", "_fused_adamw_"):
        assert any(seen in name for name in names), seen


def test_run_with_a_graph_is_the_plain_run_also_when_it_is_resumed(taped, tmp_path):
    store = make_store(tmp_path / "store")

    def end(graph: bool, last: int, path: Path | None = None) -> Path:
        """The checkpoint of a run that is stopped after a step."""
        out = tmp_path / ("graph" if graph else "plain")
        config = tiny_config(store, out, "optim.steps=9", f"graph={graph}")
        world = World(torch.device("cpu"))
        run = Loop(Pretraining(config, open_store(str(store)), world), config, world, path)
        run.step._read_count = False
        return run.run(lambda: run.done == last, quiet=True).checkpoint

    first = end(True, 2 + WARM_UP)
    ends = end(True, 9, first), end(False, 9)
    resumed, plain = map(load_checkpoint, ends)
    assert resumed.state.pop("sampler") == plain.state.pop("sampler")
    resumed, plain = resumed[1:], plain[1:]
    torch.testing.assert_close(resumed, plain, rtol=0, atol=0)


REFUSED = {
    "waits for the device": [torch.Tensor.item, torch.Tensor.tolist, bool, torch.nonzero],
    "copied from the host": [lambda x: torch.tensor([1.0]) + x],
    "draws from PyTorch's generator": [torch.rand_like, torch.nn.functional.dropout],
}


@pytest.mark.parametrize(
    ("message", "call"), [(message, call) for message, calls in REFUSED.items() for call in calls]
)
def test_capture_refuses(message, call):
    with pytest.raises(AssertionError, match=message), capturing():
        call(torch.ones(()))


def test_first_update_launches_what_no_later_one_does(taped, monkeypatch):
    """It allocates Adam's moments: a graph would load code if it were recorded without it."""
    monkeypatch.setattr(cuda_graph, "WARM_UP", 1)
    rehearsal = _make_update("graph=true")
    _run(rehearsal, 0)
    with pytest.raises((AssertionError, ValueError)):
        _run(rehearsal, 1)


@pytest.fixture
def kernels() -> Iterator[Callable[[], int]]:
    """Counts the CUDA kernels that have run since the test began, emulated, each one once."""
    if build.unavailable() is not None:
        pytest.skip(str(build.unavailable()))
    module = build.load()
    build.set_schedule(module, 0)
    library = ctypes.CDLL(str(module.__file__))
    library.emulator_forget_kernels()
    with registry.override_extension("cuda", module):
        yield library.emulator_kernels


def test_recording_runs_no_kernel_for_the_first_time(kernels, monkeypatch):
    counts = []

    class Counting(Replayed):
        def _record(self):
            counts.append(kernels())
            replay = super()._record()
            counts.append(kernels())
            return replay

    monkeypatch.setattr("vimpac.train.update.Graphed", Counting)
    rehearsal = _make_update("graph=true", "batch.videos=1", "batch.contrastive=1")
    for number in range(WARM_UP + 1):
        _run(rehearsal, number)
    assert counts[0] == counts[1] >= 10
    bias_gelu(torch.ones(1, 8).half(), torch.ones(8))  # which the step has not met
    assert kernels() == counts[1] + 1


def test_graph_refuses_other_shapes(taped):
    doubled = Replayed(lambda x: 2 * x, torch.device("cpu"))
    assert doubled(torch.ones(2)).tolist() == [2, 2]
    for other in (torch.ones(()), torch.ones(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="a graph of tensors .* cannot take"):
            doubled(other)


@pytest.mark.gpu
@CASES
def test_captured_update_is_the_eager_update_and_neither_waits_for_the_device(words):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    results = []
    for recorded in (False, True):
        settings = (*words, f"graph={recorded}")
        _train(_make_update(*settings, device="cuda"), 1)  # compiles kernels
        rehearsal = _make_update(*settings, device="cuda")
        assert isinstance(rehearsal.update._graph, Graphed) == recorded
        torch.cuda.set_sync_debug_mode("error")
        try:
            results.append(_train(rehearsal, WARM_UP + 2))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
