"""dropout_add_layer_norm with a y that two read: one memory, one gradient from both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vimpac.model.config import ModelConfig
from vimpac.model.encoder import VideoTokenEncoder
from vimpac_kernels import dropout_add_layer_norm


def _leaves(device: str, rows: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, 24), (rows, 24), (24,), (24,))
    drawn = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    return [t.requires_grad_() for t in drawn]


@pytest.mark.parametrize("reader", [0, 1])
def test_gradient_of_one_reader_alone_is_that_of_one_output(impl, reader: int) -> None:
    leaves, options = _leaves(impl.device), {"dropout_p": 0.2, "seed": 1, "impl": impl.name}
    expected = torch.autograd.grad(dropout_add_layer_norm(*leaves, **options).sin().sum(), leaves)
    pair = dropout_add_layer_norm(*leaves, readers=2, **options)
    actual = torch.autograd.grad(pair[reader].sin().sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_gradient_of_the_sum_alone_is_that_of_an_addition(impl) -> None:
    x, residual, *parameters = _leaves(impl.device)
    _, total = dropout_add_layer_norm(x, residual, *parameters, prenorm=True, impl=impl.name)
    upstream = torch.randn(total.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(
        total, (x, residual, *parameters), upstream.to(total), allow_unused=True
    )
    assert all(torch.equal(g, upstream.to(g)) for g in gradients[:2])
    assert not any(g is not None and g.any() for g in gradients[2:])


def test_outputs_are_one_memory(impl) -> None:
    leaves = _leaves(impl.device)
    first, second = dropout_add_layer_norm(*leaves, readers=2, impl=impl.name)
    assert first.data_ptr() == second.data_ptr() and torch.equal(first, second)
    with torch.no_grad():
        first, second = dropout_add_layer_norm(*leaves, readers=2, impl=impl.name)
    assert first.data_ptr() == second.data_ptr()


def test_outputs_refuse_to_be_changed_in_place(impl) -> None:
    """Where autograd sees it, at once; behind its back, when the other one is used again."""
    leaves = _leaves(impl.device)
    for changed in (0, 1):
        pair = dropout_add_layer_norm(*leaves, readers=2, impl=impl.name)
        with pytest.raises(RuntimeError, match="view and is being modified inplace"):
            pair[changed].add_(1)
        with torch.no_grad():
            pair[changed].zero_()
        with pytest.raises(RuntimeError, match="another view of its base has been modified"):
            pair[1 - changed].sum()


class _Additions(TorchDispatchMode):
    """The shapes of what is added while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_):
            self.shapes.append(arguments[0].shape)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_post_norm_backward_adds_no_gradients_of_hidden_states(recompute: bool) -> None:
    """But for those of the embedding, which no call of this op has made."""
    sizes = {"width": 32, "heads": 2, "head_dim": 16, "mlp_width": 64, "layers": 2}
    encoder = VideoTokenEncoder(ModelConfig(**sizes, grid=(2, 2, 2), layout="T,H,W", norm="post"))
    encoder.activation_checkpointing = recompute
    states = encoder(torch.randint(0, 8192, (3, 2, 2, 2)))
    with _Additions() as additions:
        states.square().sum().backward()
    assert additions.shapes.count(states.shape) == 1
