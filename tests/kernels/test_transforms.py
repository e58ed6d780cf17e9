"""torch.func, forward mode and export: kernels refuse by name what only the reference does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jvp, vmap

from vimpac_kernels import (
    axial_attention,
    bias_gelu,
    dropout_add_layer_norm,
    embed_tokens,
    linear_cross_entropy,
    mask_tokens,
    tubelet_embed,
    tubelet_mse,
)

Op = Callable[[Tensor, str], Tensor]  # (5, 16) and impl -> a tensor


def _axial_attention(x: Tensor, impl: str) -> Tensor:
    padding, bias = torch.arange(5).view(1, 1, 1, 5) == 2, x[0, :12].view(3, 1, 4)
    options = {"bias": bias, "key_padding_mask": padding, "dropout_p": 0.5, "seed": 1}
    return axial_attention(x[:, :12].reshape(1, 5, 3, 1, 4), (1, 1, 5), "W", **options, impl=impl)


def _dropout_add_layer_norm(x: Tensor, impl: str) -> Tensor:
    options = {"linear_bias": x[1], "dropout_p": 0.5, "seed": 1, "readers": 2}
    return dropout_add_layer_norm(x, x, x[0], x[0], **options, impl=impl)[1]


def _linear_cross_entropy(x: Tensor, impl: str) -> Tensor:
    options = {"linear_bias": x[:, 0], "positions": torch.tensor([1, 3, -1]).int(), "z_loss": 0.1}
    return linear_cross_entropy(x, x, torch.arange(5), **options, impl=impl)


def _bias_gelu(x: Tensor, impl: str) -> Tensor:
    return bias_gelu(x, x[0], impl=impl)


def _embed_tokens(x: Tensor, impl: str) -> Tensor:
    tokens, options = torch.arange(10).view(2, 5) % 5, {"cls": x[2], "dropout_p": 0.5, "seed": 1}
    return embed_tokens(tokens, x, [x], x[0], x[1], **options, impl=impl)


VIDEO = torch.arange(96).view(1, 2, 4, 4, 3).to(torch.uint8)


def _tubelet_embed(x: Tensor, impl: str) -> Tensor:
    tubelets, weight = torch.tensor([[3, 0]]).int(), x.flatten()[:48].view(8, 3, 2, 1, 1)
    return tubelet_embed(VIDEO, tubelets, weight, x[0, :8], torch.ones(16, 8), impl=impl)


def _tubelet_mse(x: Tensor, impl: str) -> Tensor:
    tubelets = torch.arange(5, dtype=torch.int32)[None]
    return tubelet_mse(x[None, :, :12], VIDEOS[:1], tubelets, tubelet=(1, 2), impl=impl)


DIFFERENTIABLE = [
    *(_axial_attention, _dropout_add_layer_norm, _linear_cross_entropy, _bias_gelu),
    *(_embed_tokens, _tubelet_embed, _tubelet_mse),
]
VIDEOS = torch.arange(3 * 2 * 4 * 6 * 3).view(3, 2, 4, 6, 3).square().byte()
X = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
XS = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
every_op = pytest.mark.parametrize("op", DIFFERENTIABLE, ids=lambda op: op.__name__[1:])

# What is asked of a function of (5, 16) that returns a number
TRANSFORMS: dict[str, Callable[[Callable], Tensor]] = {
    "grad": lambda f: grad(f)(X),
    "vmap of grad": lambda f: vmap(grad(f))(XS),
    "grad of vmap": lambda f: grad(lambda xs: vmap(f)(xs).sum())(XS),
    "vmap of a leaf": lambda f: vmap(f)(XS.clone().requires_grad_()),
    "jvp": lambda f: jvp(f, (X,), (X,))[1],
    "jvp of vmap": lambda f: jvp(lambda xs: vmap(f)(xs), (XS,), (XS,))[1],
    "vmap of jvp": lambda f: vmap(lambda x: jvp(f, (x,), (x,))[1])(XS),
    "hessian": lambda f: hessian(f)(X),
}
every_transform = pytest.mark.parametrize("transform", TRANSFORMS)


def _number(op: Op, impl: str) -> Callable[[Tensor], Tensor]:
    return lambda x: op(x, impl).square().sum()


def _words(op: Op) -> str:
    return f"{op.__name__[1:]}: kernels have no .*: use impl='reference'"


@every_op
@every_transform
def test_kernels_refuse_a_derivative_inside_a_transform(op: Op, transform: str) -> None:
    with pytest.raises(RuntimeError, match=_words(op)):
        TRANSFORMS[transform](_number(op, "cpu"))


@every_transform
@pytest.mark.parametrize("fullgraph", [True, False], ids=["fullgraph", "breaks"])
def test_compiled_kernels_refuse_it_too(transform: str, fullgraph: bool) -> None:
    """Where the bare operator would give a gradient of zero."""
    f = _number(_bias_gelu, "cpu")
    torch._dynamo.reset()
    call = torch.compile(lambda: TRANSFORMS[transform](f), fullgraph=fullgraph, backend="aot_eager")
    with pytest.raises((RuntimeError, torch._dynamo.exc.Unsupported), match=_words(_bias_gelu)):
        call()


@every_op
def test_the_reference_goes_through_every_transform(op: Op) -> None:
    f = _number(op, "reference")
    results = {name: transform(f) for name, transform in TRANSFORMS.items()}
    leaves = [x.clone().requires_grad_() for x in (X, *XS)]
    numbers = [f(x) for x in leaves]
    first, *others = torch.autograd.grad(sum(numbers), leaves)
    slopes = torch.stack([(g * x).sum() for g, x in zip(others, XS, strict=True)])
    expected = {
        "grad": first,
        "vmap of grad": torch.stack(others),
        "grad of vmap": torch.stack(others),
        "vmap of a leaf": torch.stack(numbers[1:]),
        "jvp": (first * X).sum(),
        "jvp of vmap": slopes,
        "vmap of jvp": slopes,
        "hessian": torch.autograd.functional.hessian(f, X),
    }
    if op in (_dropout_add_layer_norm, _embed_tokens):  # vmap has F.layer_norm's second one wrong
        del results["hessian"], expected["hessian"]
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-4)


@every_op
def test_kernels_run_inside_transforms_that_do_not_differentiate_them(op: Op) -> None:
    expected = torch.stack([op(x, "cpu") for x in XS])
    torch.testing.assert_close(vmap(lambda x: op(x, "cpu"))(XS), expected)
    for wrap in (grad, lambda f: lambda y: jvp(f, (y,), (y,))[1]):
        slope = wrap(lambda y: y * op(X, "cpu").sum())(torch.tensor(1.0))
        torch.testing.assert_close(slope, op(X, "cpu").sum())
    frozen = grad(lambda y, x: y * op(x, "cpu").sum())(torch.tensor(1.0), X)
    torch.testing.assert_close(frozen, op(X, "cpu").sum())


def test_a_compiled_vmap_runs_kernels_without_gradients() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def call(xs: Tensor) -> Tensor:
        return vmap(lambda x: _bias_gelu(x, "cpu"))(xs)

    with torch.no_grad():
        torch.testing.assert_close(call(XS), torch.stack([_bias_gelu(x, "cpu") for x in XS]))


def _attend(x: Tensor, seed: Tensor, hidden: Tensor, impl: str) -> Tensor:
    options = {"key_padding_mask": hidden, "dropout_p": 0.5, "seed": seed}
    return axial_attention(x[:, :12].reshape(1, 5, 3, 1, 4), (1, 1, 5), "W", **options, impl=impl)


def _classify(x: Tensor, target: Tensor, positions: Tensor, count: Tensor, impl: str) -> Tensor:
    chosen = {"positions": positions, "count": count}
    return linear_cross_entropy(x, X, target, **chosen, impl=impl)


def _embed(ids: Tensor, seed: Tensor, impl: str) -> Tensor:
    return embed_tokens(ids[None], X, [X], dropout_p=0.5, seed=seed, impl=impl)


def _mask(ids: Tensor, seed: Tensor, impl: str) -> Tensor:
    return mask_tokens(ids.view(1, 1, 1, 5), mask_token=1, seed=seed, impl=impl).positions


def _embed_pixels(video: Tensor, tubelets: Tensor, weight: Tensor, impl: str) -> Tensor:
    weight = weight.flatten()[:48].view(8, 3, 2, 1, 1)
    return tubelet_embed(video[None], tubelets[None], weight, X[0, :8], torch.ones(1, 8), impl=impl)


def _compare(x: Tensor, video: Tensor, tubelets: Tensor, impl: str) -> Tensor:
    pred, options = x[None, :, :12], {"tubelet": (1, 2), "impl": impl}
    return tubelet_mse(pred, video[None], tubelets[None], **options)


IDS, SEEDS, HIDDEN = torch.arange(15).view(3, 5) % 5, torch.arange(3), XS[:, :, 0] > 0.5
POSITIONS, COUNTS = torch.tensor([[0, 2], [1, 3], [4, -1]]).int(), torch.tensor([2, 2, 1]).int()


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        (_attend, (XS, SEEDS, HIDDEN.view(3, 1, 1, 1, 5))),
        (_classify, (XS, IDS, POSITIONS, COUNTS)),
        (_embed, (IDS, SEEDS)),
        (_mask, (IDS, SEEDS)),
        (_embed_pixels, (VIDEO.view(-1, 2, 1, 1, 3)[:3], 0 * IDS.int(), XS)),
        (_compare, (XS, VIDEOS, IDS.int())),
    ],
    ids=[
        *("axial_attention", "linear_cross_entropy", "embed_tokens", "mask_tokens"),
        *("tubelet_embed", "tubelet_mse"),
    ],
)
def test_vmap_goes_over_ids_seeds_and_masks(op: Callable, inputs: tuple, name: str) -> None:
    """Where no check may look at a value."""
    expected = torch.stack([op(*slices, name) for slices in zip(*inputs, strict=True)])
    torch.testing.assert_close(vmap(lambda *slices: op(*slices, name))(*inputs), expected)


def test_masks_stand_in_grad() -> None:
    tokens = torch.zeros(1, 2, 2, 3, 4, dtype=torch.int64)
    count = grad(lambda y, t: y * mask_tokens(t, mask_token=1, seed=1).count)(X[0, 0], tokens[0])
    assert count == mask_tokens(tokens[0], mask_token=1, seed=1).count


class Module(nn.Module):
    """An op of a parameter's width, as exports take it."""

    def __init__(self, op: Op, impl: str) -> None:
        super().__init__()
        self.op, self.impl = op, impl

    def forward(self, x: Tensor) -> Tensor:
        """Runs the op."""
        return self.op(x, self.impl)


def _exported_ops(op: Op, impl: str, strict: bool = False) -> set[str]:
    program = torch.export.export(Module(op, impl), (X,), strict=strict)
    targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
    return {t.namespace for t in targets if isinstance(t, torch._ops.OpOverload)}


def _without_dropout(op: Op) -> Op:
    """ONNX has none of the bits that dropout draws."""
    return {
        _axial_attention: lambda x, impl: axial_attention(
            x[:, :12].reshape(1, 5, 3, 1, 4), (1, 1, 5), "W", impl=impl
        ),
        _dropout_add_layer_norm: lambda x, impl: dropout_add_layer_norm(
            x, x, x[0], x[0], impl=impl
        ),
        _embed_tokens: lambda x, impl: embed_tokens(
            torch.arange(5)[None], x, [x], x[0], x[1], impl=impl
        ),
    }.get(op, op)


@every_op
def test_exports_with_its_kernels_or_as_the_formula(op: Op) -> None:
    assert "vimpac_kernels" in _exported_ops(op, "cpu")
    assert _exported_ops(_without_dropout(op), "reference") == {"aten"}


@every_op
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_an_export_to_onnx_names_the_op(monkeypatch, op: Op, strict: bool) -> None:
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    words = f"{op.__name__[1:]}: kernels cannot be exported to ONNX: use impl='reference'"
    with pytest.raises((RuntimeError, torch._dynamo.exc.Unsupported), match=words):
        _exported_ops(op, "cpu", strict)


@every_op
def test_onnx_takes_the_reference_and_names_what_it_does_not(op: Op) -> None:
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
    op = _without_dropout(op)
    torch.onnx.export(Module(op, "reference"), (X,), dynamo=True, verbose=False)
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="impl='reference'"):
        torch.onnx.export(Module(op, "cpu"), (X,), dynamo=True, verbose=False)
