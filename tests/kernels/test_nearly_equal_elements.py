"""LayerNorm of rows whose elements are equal, or nearly: rstd is large, rounding must not show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vimpac_kernels import dropout_add_layer_norm, embed_tokens, reference

VALUES = (0.1, 3.3, 123.456, 3333.3, 60000.0, 100000.0)
EPS = (1e-12, 1e-5)
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = {
    "fp32": (FP32, FP32),
    "bf16": (BF16, BF16),
    "fp16": (FP16, FP16),
    "bf16-fp32": (BF16, FP32),
    "fp16-fp32": (FP16, FP32),
}
EVERY_WIDTH = (64, 72, 512, 768, 1024, 1544, 4096, 8192)
WIDTHS = [64, 776, 1032]  # for kernels that are emulated: rows of one, two and three warps


def _equal(D: int, dtype: torch.dtype) -> Tensor:
    """(rows, D), each row one of VALUES, with both signs, that `dtype` holds."""
    column = torch.tensor([v for v in VALUES if v < torch.finfo(dtype).max]).to(dtype)
    return torch.cat((column, -column))[:, None].expand(-1, D).contiguous()


def _nearly_equal(D: int) -> Tensor:
    """(rows, D), each row one of VALUES up to two units of its last place."""
    rows, generator = _equal(D, FP32), torch.Generator().manual_seed(D)
    units = torch.randint(-2, 3, rows.shape, generator=generator, dtype=torch.int32)
    return (rows.view(torch.int32) + units).view(FP32)


def _parameters(D: int) -> tuple[Tensor, Tensor]:
    """Weight and bias, which every dtype holds."""
    drawn = torch.randint(-255, 256, (2, D), generator=torch.Generator().manual_seed(D))
    return drawn[0] / 128, drawn[1] / 128


def _run(function, tensors: list[Tensor], dtype: torch.dtype | None = None, **options):
    """y and all gradients, in fp64 if `dtype` is; small ones, as rstd is up to 1e6."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    y = function(*leaves, **options)
    drawn = torch.randint(-64, 65, y.shape, generator=torch.Generator().manual_seed(1))
    return (y, *torch.autograd.grad(y, leaves, (drawn / 4096).to(y)))


def _check(actual: Tensor, truth: Tensor) -> None:
    """Apart from roundings of the result alone: eager PyTorch, 20 % off here, is no measure."""
    allowed = 8 * torch.finfo(torch.float32).eps + torch.finfo(actual.dtype).eps
    error = (actual.cpu().double() - truth.cpu()).abs().max()
    assert error <= allowed * truth.abs().max() + 1e-6


def _check_equal(impl, dtypes: tuple[torch.dtype, torch.dtype], D: int, eps: float) -> None:
    x, (weight, bias) = _equal(D, dtypes[0]), _parameters(D)
    residual = x.roll(1, 0).to(dtypes[1])  # 16 bits do not hold all of these sums
    tensors = [t.to(impl.device) for t in (x, residual, weight, bias)]
    truth = _run(reference.dropout_add_layer_norm, tensors, torch.float64, eps=eps)
    actual = _run(dropout_add_layer_norm, tensors, eps=eps, impl=impl.name)
    assert torch.equal(actual[0].cpu(), bias.to(x.dtype).expand_as(x))
    for ours, right in zip(actual, truth, strict=True):
        _check(ours, right)


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("dtypes", DTYPES)
def test_equal_elements_give_the_bias_at_every_width(impl, isa: str, dtypes: str, eps) -> None:
    for D in EVERY_WIDTH:
        _check_equal(impl, DTYPES[dtypes], D, eps)


@pytest.mark.impls("triton", "cuda")
@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("dtypes", DTYPES)
def test_equal_elements_give_the_bias(impl, dtypes: str, D: int) -> None:
    _check_equal(impl, DTYPES[dtypes], D, 1e-12)


@pytest.mark.impls("cpu", "triton", "cuda")
@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("eps", EPS)
def test_nearly_equal_elements_keep_their_differences(impl, eps: float, D: int) -> None:
    """The mean of such elements lies between two neighbouring numbers."""
    x, parameters = _nearly_equal(D), _parameters(D)
    tensors = [x, torch.zeros_like(x), *parameters]
    truth = reference.dropout_add_layer_norm(*(t.double() for t in tensors), eps=eps)
    moved = [t.to(impl.device) for t in tensors]
    _check(dropout_add_layer_norm(*moved, eps=eps, impl=impl.name), truth)


@pytest.mark.impls("cpu", "triton", "cuda")
@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_embeddings_of_equal_elements_give_the_bias(impl, dtype: torch.dtype, D: int) -> None:
    embedding, parameters = _equal(D, FP32), _parameters(D)
    tokens = torch.arange(len(embedding), device=impl.device).view(2, 1, 2, -1)
    tables = [torch.full((n, D), 0.3) for n in tokens.shape[1:]]
    tensors = [t.to(impl.device) for t in (embedding, *tables, *parameters)]

    def run(function, **options):
        def of_leaves(embedding: Tensor, *others: Tensor) -> Tensor:
            return function(tokens, embedding, others[:3], *others[3:], **options)

        return of_leaves

    truth = _run(run(reference.embed_tokens), tensors, torch.float64)
    actual = _run(run(embed_tokens, dtype=dtype, impl=impl.name), tensors)
    assert torch.equal(actual[0].cpu(), parameters[1].to(dtype).expand_as(actual[0]))
    for ours, right in zip(actual, truth, strict=True):
        _check(ours, right)
