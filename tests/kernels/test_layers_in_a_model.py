"""What a model needs of the layers: to fuse what follows attention, a weight in two places."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from vimpac_kernels import (
    AxialAttention,
    LinearCrossEntropyOutput,
    TiedLinearCrossEntropy,
    axial_attention,
    dropout_add_layer_norm,
)

GRID = (2, 3, 4)
D, N = 16, 2


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _attention(axes: str = "H|W", **options) -> AxialAttention:
    torch.manual_seed(1)
    layer = AxialAttention(D, N, axes, **options)
    nn.init.normal_(layer.out_proj.bias)
    return layer


@pytest.mark.parametrize("shape", [(2, 25, D), (2, 24, D), (2, *GRID, D)], ids=str)
def test_attend_is_forward_without_the_output_projection(shape: tuple[int, ...]) -> None:
    layer, x, padding = _attention(head_dim=24), _draw(*shape), torch.zeros(2, *GRID).bool()
    padding[:, :, 1] = True
    attended = layer.attend(x, GRID, padding)
    assert attended.shape == (2, 25 if shape[1] == 25 else 24, N, 24)
    expected = layer.out_proj(attended.flatten(2)).view(shape)
    assert torch.equal(layer(x, GRID, padding), expected)


def test_a_model_fuses_what_follows_for_the_rows_that_it_needs() -> None:
    layer, x, norm = _attention(), _draw(2, 25, D), nn.LayerNorm(D)
    rows = torch.tensor([0, 25, 7])
    stream = x.flatten(0, 1)[rows]
    update = F.linear(layer.attend(x, GRID).flatten(2).flatten(0, 1)[rows], layer.out_proj.weight)
    bias = {"linear_bias": layer.out_proj.bias, "eps": norm.eps}
    fused = dropout_add_layer_norm(update, stream, norm.weight, norm.bias, **bias)
    torch.testing.assert_close(fused, norm(x + layer(x, GRID)).flatten(0, 1)[rows])


@pytest.mark.parametrize("axes", ["H|W", "THW"])
def test_dropout_follows_the_seed_and_not_the_generator(axes: str) -> None:
    layer, x = _attention(axes, dropout=0.5), _draw(2, 25, D)
    before = torch.get_rng_state()
    first = layer(x, GRID, seed=torch.tensor(5))
    assert torch.equal(first, layer(x, GRID, seed=5))
    assert not torch.equal(first, layer(x, GRID, seed=6))
    assert torch.equal(torch.get_rng_state(), before)
    qkv = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).unflatten(-1, (3, N, D // N))
    out = axial_attention(qkv, GRID, axes, dropout_p=0.5, seed=5)
    torch.testing.assert_close(first, layer.out_proj(out.flatten(2)))


@pytest.mark.parametrize("wrong", ["1", 1.5, torch.zeros(2, dtype=torch.int64)])
def test_a_wrong_seed_is_named(wrong) -> None:
    with pytest.raises(ValueError, match="seed must be"):
        _attention(dropout=0.5)(_draw(2, 25, D), GRID, seed=wrong)


def test_says_where_dropout_follows_the_seed() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [_attention("H|W").follows_seed(d) for d in (cpu, cuda)] == [True, True]
    assert [_attention("THW").follows_seed(d) for d in (cpu, cuda)] == [True, False]


@pytest.mark.gpu
def test_joint_axes_on_a_gpu_take_a_seed_and_draw_from_the_generator() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    layer, x = _attention("THW", dropout=0.5).cuda(), _draw(2, 25, D).cuda()
    torch.manual_seed(0)
    first = layer(x, GRID, seed=5)
    assert not torch.equal(first, layer(x, GRID, seed=5))
    torch.manual_seed(0)
    assert torch.equal(first, layer(x, GRID, seed=6))


class Model(nn.Module):
    """An embedding and a classifier of the same weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(37, D)
        self.head = TiedLinearCrossEntropy(self.embedding)

    def forward(self, ids: Tensor, **options) -> LinearCrossEntropyOutput:
        """Predicts the id after each id."""
        return self.head(self.embedding(ids), ids + 1, **options)


IDS = torch.arange(0, 36, 3)


def _expected(weight: Tensor) -> Tensor:
    """The gradient of the weight by both of its uses."""
    weight = weight.detach().clone().requires_grad_()
    loss = F.cross_entropy(F.linear(F.embedding(IDS, weight), weight), IDS + 1)
    return torch.autograd.grad(loss, weight)[0]


def test_an_embedding_stays_the_only_owner_of_its_weight() -> None:
    model = Model()
    assert sorted(model.state_dict()) == ["embedding.weight", "head.bias"]
    assert sorted(model.head.state_dict()) == ["bias"]
    assert [name for name, _ in model.head.named_modules()] == [""]
    assert repr(model.head) == f"TiedLinearCrossEntropy({D}, 37, bias=True)"
    model(IDS).loss.backward()
    torch.testing.assert_close(model.embedding.weight.grad, _expected(model.embedding.weight))


def _assign(model: Model) -> Model:
    other = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(other | {"head.bias": torch.zeros(37)}, assign=True)
    return model


def _replace(model: Model) -> Model:
    model.embedding.weight = nn.Parameter(torch.randn(37, D))
    return model


@pytest.mark.parametrize("change", [_assign, _replace, copy.deepcopy, torch.compile])
def test_the_tie_outlives_what_happens_to_a_model(change) -> None:
    old = Model()
    model = change(old)
    model(IDS).loss.backward()
    torch.testing.assert_close(model.embedding.weight.grad, _expected(model.embedding.weight))
    assert change is not copy.deepcopy or old.embedding.weight.grad is None


def test_the_tie_outlives_fully_shard(tmp_path: Path) -> None:
    model = Model()
    expected = _expected(model.embedding.weight)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/world", rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        fully_shard(model, mesh=mesh)
        model(IDS).loss.backward()
        torch.testing.assert_close(model.embedding.weight.grad.full_tensor(), expected)
    finally:
        dist.destroy_process_group()


def test_the_classifier_takes_rows_and_an_ignored_target() -> None:
    model, target = Model(), torch.where(IDS > 20, -1, IDS)
    positions, count = torch.tensor([2, 8, 3, -1], dtype=torch.int32), torch.tensor(3).int()
    hidden = model.embedding(IDS)
    output = model.head(hidden, target, positions, count, ignore_index=-1)
    rows = [2, 3]  # row 8 is ignored
    logits = F.linear(hidden[rows], model.embedding.weight)
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, target[rows]))
    assert output.num_targets == 2
