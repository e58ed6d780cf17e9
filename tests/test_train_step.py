"""The options of the training step change its speed and memory, never its gradients."""

import pytest
import torch

from vimpac import Vimpac
from vimpac.train.config import PretrainConfig
from vimpac.train.distributed import World
from vimpac.train.overrides import load_config
from vimpac.train.step import PretrainStep

GRID = (2, 4, 4)
SETTINGS = ("batch.videos=4", "batch.contrastive=4", "batch.micro=2", "precision=fp32")


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _encode(layout: str, cls: str, activation_checkpointing: bool) -> tuple[list, int]:
    """The encoder's gradients, with dropout, and the bytes that its forward kept for them."""
    torch.manual_seed(0)
    encoder = Vimpac.from_preset("tiny", layout=layout, cls=cls, grid=GRID, dropout=0.3).encoder
    encoder.activation_checkpointing = activation_checkpointing
    tokens = torch.randint(0, 8192, (2, *GRID))
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    def keep_input(_: torch.nn.Module, arguments: tuple) -> None:
        keep(arguments[0])

    for p in encoder.parameters():
        kept[p.untyped_storage().data_ptr()] = 0  # is there anyway
    for layer in encoder.layers:  # what checkpointing keeps, which no hook for saved tensors sees
        layer.register_forward_pre_hook(keep_input)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden = encoder(tokens)
    hidden.square().mean().backward()
    return [p.grad for p in encoder.parameters()], sum(kept.values())


@pytest.mark.parametrize(
    ("layout", "cls"), [("T,H|W", "released"), ("T,HW", "released"), ("T,H,W", "paper")]
)
def test_activation_checkpointing_keeps_less_and_every_bit_of_the_gradients(layout, cls):
    """HW and the paper's [CLS] draw dropout from the generator, the others from seeds."""
    expected, whole = _encode(layout, cls, activation_checkpointing=False)
    gradients, kept = _encode(layout, cls, activation_checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    assert kept < whole / 3


def _make_step(*more: str) -> PretrainStep:
    """A step whose groups are two micro-batches of two videos."""
    config = load_config(PretrainConfig, "tiny", [*SETTINGS, *more])
    torch.manual_seed(0)
    return PretrainStep(
        Vimpac.from_preset("tiny", layers=1, grid=GRID, dropout=0.3),
        config,
        World(torch.device("cpu")),
    )


def _group(step: PretrainStep, number: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The metrics and the gradients of one group of videos."""
    generator = torch.Generator().manual_seed(number)
    videos = torch.randint(0, 8192, (step.group_part, 2, *GRID), generator=generator)
    step.model.zero_grad()
    metrics = step.group(list(videos.split(step.micro)), step.group_part * number, is_last=True)
    return metrics, [p.grad for p in step.model.parameters()]


def _check_same(ours: tuple, plain: tuple, **tolerance: float) -> None:
    torch.testing.assert_close(ours[0], plain[0], **tolerance)
    torch.testing.assert_close(ours[1], plain[1], **tolerance)


def test_step_with_activation_checkpointing_is_the_plain_step():
    step = _make_step("activation_checkpointing=true")
    assert step.model.encoder.activation_checkpointing
    _check_same(_group(step), _group(_make_step()), rtol=0, atol=0)


def test_compiled_step_is_the_plain_step(monkeypatch):
    """In one graph, and with the dropout of the pass that caches [CLS], which is not compiled."""
    real, options = torch.compile, {}

    def without_inductor(module: torch.nn.Module, *, fullgraph: bool, dynamic: bool, **more):
        options.update(more["options"])
        return real(module, fullgraph=fullgraph, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_inductor)
    compiled = _group(_make_step("compile=max-autotune"))
    assert options["fallback_random"] and options["max_autotune"]
    _check_same(compiled, _group(_make_step()), rtol=1e-4, atol=1e-6)
