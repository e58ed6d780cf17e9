"""AxialAttention: the weights of nn.MultiheadAttention, shapes, dropout, PyTorch's tools."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_kernels import AxialAttention, axial_attention

GRID = (2, 3, 4)
D, N = 24, 3


def _x(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, D, generator=generator, dtype=torch.float64).to(dtype)


def _layer(axes: str = "T", **options) -> AxialAttention:
    torch.manual_seed(1)
    return AxialAttention(D, N, axes, **options)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_joint_axes_equal_multihead_attention(bias: bool) -> None:
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(D, N, bias=bias, batch_first=True, dtype=torch.float64)
    if bias:
        nn.init.normal_(mha.in_proj_bias)
        nn.init.normal_(mha.out_proj.bias)
    layer = AxialAttention.from_multihead_attention(mha, axes="THW")
    x = _x(2, 25, dtype=torch.float64)
    padding = torch.rand(2, 24, generator=torch.Generator().manual_seed(2)) < 0.3
    hidden = F.pad(padding, (1, 0))  # [CLS] is never padding
    for ours, theirs in (
        (layer(x, GRID), mha(x, x, x)[0]),
        (layer(x, GRID, padding.view(2, *GRID)), mha(x, x, x, key_padding_mask=hidden)[0]),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_weights_move_to_and_from_multihead_attention() -> None:
    layer, mha = _layer("T"), nn.MultiheadAttention(D, N, dropout=0.2).eval().bfloat16()
    assert list(layer.state_dict()) == list(mha.state_dict())
    mha.load_state_dict(layer.state_dict())
    back = AxialAttention.from_multihead_attention(mha, "H")
    assert (back.axes, back.dropout, back.training) == ("H", 0.2, False)
    for (name, a), b in zip(back.named_parameters(), mha.parameters(), strict=True):
        assert a.dtype == torch.bfloat16 and torch.equal(a, b), name
        assert a.data_ptr() != b.data_ptr(), f"{name} is shared, not copied"


@pytest.mark.parametrize("options", [{"kdim": 8}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_refuses_a_multihead_attention_it_cannot_equal(options: dict) -> None:
    with pytest.raises(ValueError, match="self-attention without kdim"):
        AxialAttention.from_multihead_attention(nn.MultiheadAttention(D, N, **options))


def test_is_two_projections_around_the_op() -> None:
    layer, x = _layer("T|H|W", head_dim=16), _x(2, 25)
    qkv = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).view(2, 25, 3, N, 16)
    out = axial_attention(qkv, GRID, "T|H|W", impl="reference").flatten(2)
    torch.testing.assert_close(layer(x, GRID), layer.out_proj(out), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("axes", ["T", "T|H|W", "HW"])
def test_gradients_are_those_of_two_projections_around_the_op(axes: str, device: str) -> None:
    """That of the first bias, too, wherever it is added and summed."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    layer, x = _layer(axes, head_dim=32), _x(2, 25)
    nn.init.normal_(layer.in_proj_bias)
    gradients = []
    for impl in ("auto", "reference"):
        layer.zero_grad()
        if impl == "auto":
            out = layer.to(device)(x.to(device), GRID).cpu()
        else:
            layer.cpu()
            qkv = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).view(2, 25, 3, N, 32)
            out = layer.out_proj(axial_attention(qkv, GRID, axes, impl=impl).flatten(2))
        out.square().sum().backward()
        gradients.append([p.grad.cpu() for p in layer.parameters()])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_takes_a_grid_of_tokens_without_cls() -> None:
    layer, x = _layer("W"), _x(2, *GRID)
    out = layer(x)
    assert out.shape == x.shape
    assert torch.equal(out.flatten(1, 3), layer(x.flatten(1, 3), GRID))


def test_a_token_sees_its_line_and_cls_only() -> None:
    layer, x = _layer("H"), _x(1, 25).requires_grad_()
    t, h, w = 1, 2, 3
    layer(x, GRID)[0, 1 + (t * 3 + h) * 4 + w].sum().backward()
    seen = x.grad.abs().sum(-1)[0] > 0
    column = [1 + (t * 3 + i) * 4 + w for i in range(3)]
    assert seen.nonzero().flatten().tolist() == [0, *column]


def test_dropout_acts_in_training_only() -> None:
    layer, x = _layer("T", dropout=0.5), _x(2, 25)
    torch.manual_seed(0)
    first = layer(x, GRID)
    assert not torch.equal(first, layer(x, GRID))
    torch.manual_seed(0)
    assert torch.equal(first, layer(x, GRID))
    layer.eval()
    assert torch.equal(layer(x, GRID), layer(x, GRID))


def test_compiles_into_one_graph_under_autocast() -> None:
    layer, x = _layer("T|H|W"), _x(2, 25)

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x, GRID)

    expected = call(x)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(x), expected)


def test_trains_under_distributed_data_parallel(tmp_path) -> None:
    layer, x = _layer("H"), _x(2, 25)
    layer(x, GRID).square().sum().backward()
    expected = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/world", rank=0, world_size=1)
    try:
        nn.parallel.DistributedDataParallel(layer)(x, GRID).square().sum().backward()
    finally:
        dist.destroy_process_group()
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((_x(2, 25), None), "grid=None"),
        ((_x(2, 26), GRID), "needs 24, or 25 with"),
        ((_x(2, *GRID), (2, 4, 3)), "does not fit"),
        ((_x(25), GRID), "x must be"),
        ((_x(2, 25)[..., 1:], GRID), f"x must be {D} wide"),
    ],
    ids=["no grid", "wrong rows", "two grids", "no batch", "width"],
)
def test_rejects_inputs_that_do_not_fit(arguments: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _layer("T")(*arguments)


@pytest.mark.parametrize(
    ("num_heads", "axes", "dropout", "words"),
    [
        (5, "T", 0.0, "not a multiple of 5"),
        (3, "H|W", 0.0, "2 equal groups"),
        (3, "WH", 0.0, "axes must be one of"),
        (3, "T", 1.0, "dropout must be"),
        (0, "T", 0.0, "num_heads and head_dim must be positive"),
    ],
)
def test_rejects_settings_that_do_not_fit(
    num_heads: int, axes: str, dropout: float, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        AxialAttention(D, num_heads, axes, dropout=dropout)
