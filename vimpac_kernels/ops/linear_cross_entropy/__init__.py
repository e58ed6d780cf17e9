"""Softmax cross-entropy of a linear layer, at chosen rows only, without a separate softmax pass.

    z = x W^T + b,  lse = log sum exp z,  loss = lse - z[target],  dz = softmax(z) - onehot(target)

Three matrix products by torch's BLAS (z, dX, dW: 6 * M * D * V FLOP, nothing recomputed) and ONE
fused pass over the rows of z between them: bias, maximum, sum, arg-max, loss, dz in place, db.
A backend implements only that pass (C++ on the CPU, Triton and CUDA C++ on the GPU). The forward
computes the gradients but for a scalar factor, by which the backward multiplies them. Only with
reduction="none", where the factor differs by row, does the backward run the products again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vimpac_kernels.ops.linear_cross_entropy import operators, reference
from vimpac_kernels.ops.linear_cross_entropy.operators import Options
from vimpac_kernels.ops.linear_cross_entropy.reference import LinearCrossEntropyOutput
from vimpac_kernels.ops.linear_cross_entropy.sharded import of_dtensors
from vimpac_kernels.runtime import autograd, registry, sharded, transforms
from vimpac_kernels.runtime.checks import as_int, as_real, check_flag, check_tensor
from vimpac_kernels.runtime.dtypes import product_dtype

_NAME = "linear_cross_entropy"
_MAX_CLASSES_CUDA = 32_768  # 512 threads, 64 columns each
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_REDUCTIONS = ("mean", "sum", "none")


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    positions: Tensor | None = None,
    count: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    return_stats: bool = False,
    impl: str = "auto",
) -> Tensor | LinearCrossEntropyOutput:
    """`F.cross_entropy(F.linear(input, linear_weight, linear_bias), target)` in one operator.

    Names and order are those of `torch.nn.functional.linear_cross_entropy` (torch >= 2.13).

    Args:
        input: (..., D), or (D,) for one row; fp32, bf16, fp16; fp64 through the reference.
        linear_weight: (V, D), dtype of `input` unless under autocast.
        target: (...), int32 or int64 in [0, V), or `ignore_index`.
        linear_bias: (V,), dtype of `linear_weight`.
        positions: (capacity,) int32, distinct rows of the flattened input: only the rows
            positions[:count] are predicted. `mask_tokens` returns it. A GPU multiplies all of
            them, as it does not wait for the count: pass positions[:bound] where you know one.
        count: 0-d int32 on the device, read there: how many positions count, or, without
            positions, how many rows, the first ones. None: every row, or as many as positions
            are not -1; all -1 must be last. A GPU multiplies the other rows by zero: what
            they hold must be finite.
        reduction: "mean" over the targets that count, "sum", or "none": one loss per row.
        ignore_index: Targets equal to it do not count.
        label_smoothing: In [0, 1]: weight of the mean over all classes.
        z_loss: >= 0: adds z_loss * lse^2 to each loss.
        return_stats: Also return accuracy and number of targets.
        impl: "auto", "cuda", "triton", "cpu" or "reference".

    Returns:
        loss: fp32, 0-d, or (rows,) for reduction "none"; with `return_stats` a
        LinearCrossEntropyOutput(loss, accuracy 0-d fp32, num_targets 0-d int32). Without any
        target that counts, loss, accuracy and all gradients are 0. The gradient of the weight
        multiplies ignored rows by zero, as eager PyTorch does: they must be finite, too.

    Raises:
        IndexError: On the CPU, if a target is outside [0, V) or a position that counts is outside
            the rows, and, but for compiled code, if such a position is there twice or count is
            outside [0, number of positions or rows]. On a GPU, where looking would cost a
            synchronisation, the loss of such a target or negative position is NaN, and the rest
            must be right.
        TypeError: If a dtype is not among those above.
        ValueError: If a shape or an option is not as above.
        RuntimeError: If `impl` cannot run this call, with the reason.

    Softmax, loss, and the sums over rows in dW and db are fp32, whatever the input dtype; the
    operands and results of the products, so also the logits, have that of `input` or autocast. A
    CPU multiplies fp16, and without AVX512-BF16 bf16 too, in fp32; with it, the dW of each chunk of
    rows is rounded before chunks are added in fp32. On a GPU a bf16 dX is summed over V as torch's
    products are: see `torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction`.
    Deterministic, on a CPU for one number of threads. Extra memory: one (M, V) tensor of 4 GiB at
    most, on the CPU 24 MiB.
    """
    if sharded.has_dtensors(input, linear_weight, target, linear_bias):
        return of_dtensors(
            linear_cross_entropy, {"input": input, "target": target},
            {"linear_weight": linear_weight, "linear_bias": linear_bias},
            {n: sharded.local(n, t) for n, t in (("positions", positions), ("count", count))},
            reduction, return_stats, ignore_index=ignore_index, label_smoothing=label_smoothing,
            z_loss=z_loss, impl=impl,
        )  # fmt: skip
    _check(input, linear_weight, target, linear_bias, positions, count, reduction)
    check_options(label_smoothing, z_loss)
    ignore_index = as_int("ignore_index", ignore_index)
    check_flag("return_stats", return_stats)
    if positions is not None and count is None:
        count = (positions >= 0).sum(dtype=torch.int32)
    if input.is_cpu and not transforms.hides_values():
        _check_choice(positions, count, target.numel())
    options = Options(ignore_index, float(label_smoothing), float(z_loss), product_dtype(input))
    tensors = (input, linear_weight, target, linear_bias, positions, count)
    chosen = _select(impl, input, linear_weight, options.dtype)
    if chosen == "reference":
        if input.device.type == "cpu" and not transforms.hides_values():
            _check_targets(target, positions, count, ignore_index, linear_weight.shape[0])
        result = reference.linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            positions=positions,
            count=count,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
        )
    elif autograd.needs_autograd(_NAME, input, linear_weight, linear_bias):
        result = LinearCrossEntropyOutput(
            *operators.LinearCrossEntropy.apply(*tensors, options, reduction, chosen)
        )
    else:
        losses, counts, *_ = operators.forward(tensors, None, options, (False,) * 3, chosen)
        result = LinearCrossEntropyOutput(*operators.reduce_losses(losses, counts, reduction))
    return result if return_stats else result.loss


def _check(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    positions: Tensor | None,
    count: Tensor | None,
    reduction: str,
) -> None:
    check_tensor("input", input)
    check_tensor("linear_weight", weight)
    check_tensor("target", target)
    if bias is not None:
        check_tensor("linear_bias", bias)
    shapes = f"input {tuple(input.shape)}, linear_weight {tuple(weight.shape)}"
    if input.dim() < 1 or weight.dim() != 2 or input.shape[-1] != weight.shape[1]:
        raise ValueError(f"input must be (..., D) and linear_weight (V, D), got {shapes}")
    if target.shape != input.shape[:-1]:
        raise ValueError(
            f"target must be {tuple(input.shape[:-1])} as the rows of input, "
            f"got {tuple(target.shape)}"
        )
    if target.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"target must be int32 or int64, got {target.dtype}")
    named = {"input": input, "linear_weight": weight, "linear_bias": bias}
    dtypes = {name: t.dtype for name, t in named.items() if t is not None}
    for name, dtype in dtypes.items():
        if dtype not in (*_DTYPES, torch.float64):
            raise TypeError(f"{name} must be fp32, bf16, fp16 or fp64, got {dtype}")
    autocast = input.device.type != "meta" and torch.is_autocast_enabled(input.device.type)
    if len({*dtypes.values()}) > 1 and not autocast:
        found = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{found}: give them one dtype or use torch.autocast")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear_bias must be {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    for name, tensor, dim in (("positions", positions, 1), ("count", count, 0)):
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a {dim}-d int32 tensor, got {tensor!r}")
        if tensor is not None and (tensor.dtype != torch.int32 or tensor.dim() != dim):
            raise ValueError(
                f"{name} must be {dim}-d int32, got {tensor.dtype} {tuple(tensor.shape)}"
            )
    others = {"linear_weight": weight, "target": target, "linear_bias": bias}
    for name, other in (others | {"positions": positions, "count": count}).items():
        if other is not None and other.device != input.device:
            raise ValueError(f"{name} is on {other.device}, input on {input.device}")
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")


def check_options(label_smoothing: float, z_loss: float) -> None:
    """Raises unless both are within their ranges."""
    if not 0 <= as_real("label_smoothing", label_smoothing) <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if not 0 <= as_real("z_loss", z_loss) < math.inf:
        raise ValueError(f"z_loss must be >= 0 and finite, got {z_loss}")


def _check_choice(positions: Tensor | None, count: Tensor | None, rows: int) -> None:
    if count is not None:
        most = rows if positions is None else len(positions)
        if not 0 <= int(count) <= most:
            of = "rows" if positions is None else "positions"
            raise IndexError(f"count {int(count)} is outside [0, {most}], the number of {of}")
    if positions is None:
        return
    live = positions[: None if count is None else int(count)]
    wrong = live[(live < 0) | (live >= rows)]
    if wrong.numel():
        raise IndexError(
            f"position {int(wrong[0])} is outside [0, {rows}) and one of the {len(live)} that count"
        )
    twice = torch.bincount(live, minlength=1) > 1
    if twice.any():
        which = int(twice.nonzero()[0])
        raise IndexError(f"position {which} is there twice: positions must be distinct")


def _check_targets(
    target: Tensor, positions: Tensor | None, count: Tensor | None, ignore_index: int, V: int
) -> None:
    live = slice(None if count is None else int(count))
    labels = target.flatten()
    labels = labels[live] if positions is None else labels[positions[live].long()]
    wrong = labels[((labels < 0) | (labels >= V)) & (labels != ignore_index)]
    if wrong.numel():
        raise IndexError(f"target {int(wrong[0])} is outside [0, {V})")


def _select(impl: str, input: Tensor, weight: Tensor, dtype: torch.dtype) -> str:
    def problem(backend: str) -> str | None:
        reason = registry.backend_problem(backend, _NAME, input.device.type)
        if reason is None and dtype not in _DTYPES:
            reason = f"it takes fp32, bf16 and fp16, these are {dtype}"
        if reason is None and (weight.shape[1] % 8 or 0 in weight.shape):
            reason = f"D must be a positive multiple of 8 and V > 0, got {tuple(weight.shape)}"
        if reason is None and backend == "cuda" and weight.shape[0] > _MAX_CLASSES_CUDA:
            reason = f"its blocks hold rows of {_MAX_CLASSES_CUDA} classes, not {weight.shape[0]}"
        return reason

    return registry.select(
        _NAME,
        impl,
        [
            ("cuda", lambda: problem("cuda")),
            ("triton", lambda: problem("triton")),
            ("cpu", lambda: problem("cpu")),
            ("reference", lambda: None),
        ],
    )
