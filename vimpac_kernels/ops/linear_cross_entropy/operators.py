"""The three matrix products of linear_cross_entropy and the pass between them, as operators.

A chunk of rows: gather, z = x W^T, the row pass of the backend, dX = dz W, dW += dz^T x. The row
pass finishes the logits of rows first..first+m: it writes their losses, adds to counts (hits,
targets) and, for a gradient, turns z into dz, scaled by row_scale, zero beyond V and in rows that
do not count, and adds its column sums to dbias. It leaves out the factor of the mean, which the
backward applies together with the gradient of the loss, so nothing has to be counted beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vimpac_kernels.runtime import autograd, library, native
from vimpac_kernels.runtime.dtypes import cpu_product_dtype


@dataclass(frozen=True)
class Options:
    """What a call carries besides its tensors and the reduction."""

    ignore_index: int
    label_smoothing: float
    z_loss: float
    dtype: torch.dtype  # of the matrix products' operands


@dataclass(frozen=True)
class Backend:
    """How a backend takes the logits that its row pass finishes."""

    logits_dtype: Callable[[torch.dtype], torch.dtype]  # given that of the products' operands
    chunk_bytes: int  # of one chunk of logits
    padding: int  # V is padded to a multiple of it
    reads_count: bool  # whether the host may read `count`


def reduce_losses(losses: Tensor, counts: Tensor, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (M,) and counts (hits, targets) -> loss, accuracy, num_targets."""
    hits, targets = counts.unbind()
    divisor = targets.clamp(min=1)
    loss = losses if reduction == "none" else losses.sum()
    return loss / divisor if reduction == "mean" else loss, hits.float() / divisor, targets.clone()


class LinearCrossEntropy(torch.autograd.Function):
    """(loss, accuracy, num_targets) with the gradients of input, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,  # (..., D)
        weight: Tensor,  # (V, D)
        target: Tensor,  # (...)
        bias: Tensor | None,  # (V,)
        positions: Tensor | None,  # (capacity,)
        count: Tensor | None,  # 0-d
        options: Options,
        reduction: str,
        impl: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the loss and, unless the reduction is "none", the gradients up to a factor."""
        tensors = (input, weight, target, bias, positions, count)
        needs = tuple(ctx.needs_input_grad[i] for i in (0, 1, 3))
        by_row = reduction == "none"
        losses, counts, *grads = forward(
            tensors, None, options, (False,) * 3 if by_row else needs, impl
        )
        loss, accuracy, num_targets = reduce_losses(losses, counts, reduction)
        choice = [autograd.kept(t) for t in (positions, count)]
        if by_row:
            ctx.save_for_backward(input, weight, autograd.kept(target), bias, *choice)
        else:
            divisor = num_targets.clamp(min=1) if reduction == "mean" else None
            ctx.save_for_backward(*grads, *choice, divisor)
        ctx.needs, ctx.options, ctx.by_row, ctx.impl = needs, options, by_row, impl
        ctx.shape = input.shape
        ctx.dtypes = [None if t is None else t.dtype for t in (input, weight, bias)]
        ctx.mark_non_differentiable(accuracy, num_targets)
        return loss, accuracy, num_targets

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Applies the factor; for reduction "none" runs the products with a factor per row."""
        autograd.refuse_second_order("linear_cross_entropy")
        if ctx.by_row:
            *_, positions, count = tensors = ctx.saved_tensors
            grads = list(forward(tensors, dloss, ctx.options, ctx.needs, ctx.impl)[2:])
            scale = None
        else:
            *grads, positions, count, divisor = ctx.saved_tensors
            scale = dloss if divisor is None else dloss / divisor
        dinput, dweight, dbias = grads
        needs_dinput, needs_dweight, needs_dbias = ctx.needs
        if needs_dinput:
            dinput = linear_cross_entropy_bwd(
                dinput, scale, positions, count, math.prod(ctx.shape[:-1]), ctx.dtypes[0]
            )
        return (
            dinput.view(ctx.shape) if needs_dinput else None,
            _scaled(dweight, scale, ctx.dtypes[1]) if needs_dweight else None,
            None,
            _scaled(dbias, scale, ctx.dtypes[2]) if needs_dbias else None,
            *(None,) * 5,
        )


def forward(
    tensors: tuple[Tensor | None, ...],
    row_scale: Tensor | None,  # (M,) fp32
    options: Options,
    needs: tuple[bool, ...],  # input, weight, bias
    impl: str,
) -> tuple[Tensor, ...]:
    """losses (M,), counts (2,), dinput (M, D), dweight (V, D), dbias (V,); empty if not needed."""
    return linear_cross_entropy_fwd(
        *tensors, row_scale, needs=list(needs), dtype=options.dtype, z_loss=options.z_loss,
        ignore_index=options.ignore_index, label_smoothing=options.label_smoothing, impl=impl,
    )  # fmt: skip


# A CPU takes few rows at a time, so that the logits stay in the last-level cache.
BACKENDS: dict[str, Backend] = {
    "cuda": Backend(lambda dtype: dtype, 4 << 30, padding=64, reads_count=False),
    "cpu": Backend(cpu_product_dtype, 24 << 20, padding=1, reads_count=True),
    "triton": Backend(lambda dtype: dtype, 4 << 30, padding=64, reads_count=False),
}


def _fake_fwd(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    positions: Tensor | None,
    count: Tensor | None,
    row_scale: Tensor | None,
    dtype: torch.dtype,
    needs: Sequence[bool],
    **_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    V, D = weight.shape
    M = target.numel() if positions is None else positions.numel()
    return (
        input.new_empty(M, dtype=torch.float32),
        input.new_empty(2, dtype=torch.int32),
        input.new_empty((M if needs[0] else 0, D), dtype=dtype),
        input.new_empty((V if needs[1] else 0, D), dtype=torch.float32),
        input.new_empty(V if needs[2] else 0, dtype=torch.float32),
    )


@library.operator(_fake_fwd)
def linear_cross_entropy_fwd(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    positions: Tensor | None,
    count: Tensor | None,
    row_scale: Tensor | None,
    *,
    dtype: torch.dtype,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    needs: Sequence[bool],  # input, weight, bias
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """losses (M,), counts (2,), dinput (M, D), dweight (V, D), dbias (V,); empty if not needed."""
    backend = BACKENDS[impl]
    (V, D), device = weight.shape, input.device
    shapes = (input, weight, target, bias, positions, count, row_scale, dtype)
    losses, counts, dinput, _, dbias = _fake_fwd(*shapes, [needs[0], False, needs[2]])
    counts.zero_()
    dbias.zero_()
    M = losses.numel()
    if backend.reads_count and count is not None:
        M = min(M, max(int(count), 0))
        losses[M:].zero_()
        if positions is None:
            dinput[M:].zero_()
    x_all = input.reshape(-1, D)
    logits_dtype = backend.logits_dtype(dtype)
    W = _padded(weight.to(dtype), backend.padding).to(logits_dtype)  # (Vp, D)
    target = target.reshape(-1).contiguous()
    bias = None if bias is None else bias.float().contiguous()
    positions = None if positions is None else positions.contiguous()
    row_scale = None if row_scale is None else row_scale.float().contiguous()
    chunk = max(1, min(M, backend.chunk_bytes // (W.shape[0] * logits_dtype.itemsize)))
    z_buffer = torch.empty((chunk, W.shape[0]), dtype=logits_dtype, device=device)
    dweight = losses.new_empty((len(W) if needs[1] else 0, D))  # padded: odd extents are slow
    with torch.autocast(device.type, enabled=False):
        for first in range(0, M, chunk):
            rows = slice(first, min(first + chunk, M))
            x = x_all[rows]
            if positions is not None:
                x = x_all.index_select(0, positions[rows].clamp(min=0))
            x, z = x.to(dtype).to(logits_dtype), z_buffer[: rows.stop - first]
            torch.mm(x, W.T, out=z)
            invalid = native.launch(
                impl, "linear_cross_entropy_fwd", z=z, V=V, first=first, bias=bias, target=target,
                positions=positions, count=count, row_scale=row_scale, gradient=any(needs),
                losses=losses, counts=counts, dbias=dbias, ignore_index=ignore_index,
                label_smoothing=label_smoothing, z_loss=z_loss,
            )  # fmt: skip
            if invalid >= 0:
                raise _out_of_range(invalid, positions, target, V)
            if needs[0]:
                out = dinput[rows]
                torch.mm(z, W, out=out) if z.dtype == out.dtype else out.copy_(z @ W)
            if needs[1]:
                _accumulate(dweight, z, x, first == 0)
    if M == 0:
        dweight.zero_()
    return losses, counts, dinput, dweight[:V], dbias


def _out_of_range(number: int, positions: Tensor | None, target: Tensor, V: int) -> IndexError:
    row = number if positions is None else int(positions[number])
    if not 0 <= row < target.numel():
        return IndexError(f"position {row} is outside [0, {target.numel()}) and counts")
    return IndexError(f"target {int(target[row])} is outside [0, {V})")


def _padded(weight: Tensor, multiple: int) -> Tensor:
    extra = -weight.shape[0] % multiple
    return torch.nn.functional.pad(weight, (0, 0, 0, extra)) if extra else weight


def _accumulate(dweight: Tensor, dz: Tensor, x: Tensor, is_first: bool) -> None:
    """dweight (Vp, D) fp32 [+]= dz^T x, summed in fp32."""
    if dz.dtype == torch.float32 and is_first:
        torch.mm(dz.T, x, out=dweight)
    elif dz.dtype == torch.float32:
        dweight.addmm_(dz.T, x)
    elif dz.device.type == "cpu":  # where a product cannot widen its result
        product = torch.mm(dz.T, x)
        dweight.copy_(product) if is_first else dweight.add_(product)
    elif is_first:
        torch.ops.aten.mm.dtype_out(dz.T, x, torch.float32, out=dweight)
    else:
        dweight.add_(torch.mm(dz.T, x, out_dtype=torch.float32))


def _fake_bwd(dinput: Tensor, *arguments: Any) -> Tensor:
    *_, rows, dtype = arguments
    return dinput.new_empty((rows, dinput.shape[1]), dtype=dtype)


@library.operator(_fake_bwd)
def linear_cross_entropy_bwd(
    dinput: Tensor,  # (M, D) of the predicted rows
    scale: Tensor | None,  # 0-d
    positions: Tensor | None,
    count: Tensor | None,
    rows: int,
    dtype: torch.dtype,
) -> Tensor:
    """Scatters the predicted rows, times `scale`, into zeros (rows, D)."""
    if positions is None:  # scaled and converted in one pass
        factor = 1 if scale is None else scale
        return torch.mul(dinput, factor, out=torch.empty_like(dinput, dtype=dtype))
    index = positions.long()
    if dinput.device.type == "cpu" and count is not None:
        M = max(int(count), 0)
        index, dinput, count = index[:M], dinput[:M], None
    live = index >= 0
    if count is not None:
        live &= torch.arange(len(index), device=index.device) < count
    index = torch.where(live, index, rows)  # one more row, which is cut off
    full = dinput.new_zeros((rows + 1, dinput.shape[1]), dtype=dtype)
    return full.index_copy_(0, index, _scaled(dinput, scale, dtype))[:rows]


def _scaled(gradient: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (gradient if scale is None else gradient * scale).to(dtype)
