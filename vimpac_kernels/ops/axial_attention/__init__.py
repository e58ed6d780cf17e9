"""Attention along the axes of a T x H x W token grid; all lines share one [CLS] token.

Per line x_1..x_L: keys and queries are [x_1..x_L, CLS]; out = softmax(scale * q k^T) v; the [CLS]
row of the output is the mean over the lines. A line fits on chip, so every kernel reads q, k, v
and writes out once (4 units of (B, S, N, Dh)); the backward recomputes the probabilities, reads
q, k, v, dout and writes the packed dqkv (7 units). Nothing of size L x L reaches memory.

CUDA C++ and Triton serve GPUs, where joint axes ("HW", "THW") and lines longer than 64 tokens go
through F.scaled_dot_product_attention. C++ serves the CPU: short lines like those of GPUs, long and
joint ones some queries and keys at a time. The reference takes the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from vimpac_kernels.ops.axial_attention import operators, reference, sdpa
from vimpac_kernels.ops.axial_attention.operators import Plan
from vimpac_kernels.runtime import autograd, philox, registry, sharded
from vimpac_kernels.runtime.checks import (
    as_scale,
    as_sizes,
    check_dropout,
    check_flag,
    check_tensor,
)

JOINT_AXES = ("HW", "THW")
LEGAL_AXES = (
    *("|".join(p) for n in (1, 2, 3) for p in itertools.permutations("THW", n)),
    *JOINT_AXES,
)


def axial_attention(
    qkv: Tensor,
    grid: tuple[int, int, int],
    axes: str = "T",
    *,
    bias: Tensor | None = None,
    bias_in_qkv: bool = False,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: int | Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Attends along the axes of a token grid, with one [CLS] token for all lines.

    For axes="T" and S = 1 + T*H*W it replaces::

        cls, x = qkv[:, :1], qkv[:, 1:].unflatten(1, (T, H * W)).transpose(1, 2)
        x = torch.cat((x, cls[:, None].expand(B, H * W, 1, 3, N, Dh)), 2)    # every line + [CLS]
        q, k, v = x.transpose(2, 4).unbind(3)                                # (B, HW, N, T+1, Dh)
        y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        out = torch.cat((y[:, :, T].mean(1, True), y[:, :, :T].transpose(1, 2).flatten(1, 2)), 1)

    Args:
        qkv: (B, S, 3, N, Dh), fp16, bf16, fp32 (fp64: reference only): the packed output of one
            projection. S = 1 + T*H*W with [CLS] as row 0, or T*H*W. Strides with a unit last
            stride are read in place. fp32 is cast to the autocast dtype under autocast.
        grid: (T, H, W); the token (t, h, w) is row [1 +] (t*H + h)*W + w.
        axes: "T", "H" or "W"; distinct axes joined by "|", such as "H|W", split the heads into
            equal consecutive groups of one axis each; "HW" (one frame) and "THW" are joint lines.
        bias: (3, N, Dh), any floating dtype, the bias of the projection, added to qkv. Kernels sum
            its gradient in fp32 while they write that of qkv. The CPU kernel adds the bias while it
            reads; the other backends add it beforehand, in a pass over qkv.
        bias_in_qkv: Whether qkv already contains the bias; then only its gradient is computed. On a
            GPU the product adds it for free: qkv = F.linear(x, weight, bias.detach()).
        key_padding_mask: (B, T, H, W) bool, True = never a key. [CLS] is never masked.
        dropout_p: Dropout on the probabilities, [CLS] included, in [0, 1), in steps of 2^-16.
        scale: Factor of q k^T, within 1e30 of 0; default Dh**-0.5.
        seed: Of the dropout: int in [-2^63, 2^63), or 0-d int64 tensor (read on the device, so
            that a captured CUDA graph can change it). None draws one from PyTorch's generator.
        impl: "auto", "cuda", "triton", "cpu", "sdpa" or "reference".

    Returns:
        (B, S, N, Dh) contiguous, dtype of qkv. Row 0 is the mean over all lines of the axis of the
        outputs of [CLS]. A line without any key (no [CLS], all padding) gives zeros. NaN and inf
        propagate to every output that depends on them, on a GPU to others of the same clip, too.

    Raises:
        TypeError: If an argument has a wrong type or dtype, naming it.
        ValueError: If an argument is outside its range or a shape does not fit, naming it.
        RuntimeError: If `impl` cannot run this call, with the reason.

    Softmax and accumulation in fp32. cuda, triton and cpu repeat bit for bit, forward and
    backward (cuda on one model of GPU: how sums over lines are cut follows its size); the same
    seed drops the same elements there and in the reference. Extra memory: fp32 partial sums for
    [CLS] and the bias, at most a row each per line; on a CPU, per thread, tiles that grow with the
    line. sdpa takes dropout without a seed only.
    """
    if sharded.has_dtensors(qkv, bias, key_padding_mask):
        rows = {"qkv": qkv, "key_padding_mask": key_padding_mask}
        batch = sharded.split(
            "axial_attention", rows, {"bias": bias}, dropout_p=dropout_p, seed=seed
        )
        result = axial_attention(
            **batch.tensors, grid=grid, axes=axes, bias_in_qkv=bias_in_qkv, dropout_p=dropout_p,
            scale=scale, seed=sharded.local("seed", seed), impl=impl,
        )  # fmt: skip
        return batch.join(result)
    plan = _check(qkv, grid, axes, bias, key_padding_mask, dropout_p, scale)
    check_flag("bias_in_qkv", bias_in_qkv)
    if bias_in_qkv and bias is None:
        raise ValueError("bias_in_qkv=True needs the bias, to compute its gradient")
    device = qkv.device
    if qkv.dtype == torch.float32 and device.type != "meta":  # which knows no autocast
        if torch.is_autocast_enabled(device.type):
            qkv = qkv.to(torch.get_autocast_dtype(device.type))
    key = None if seed is None else philox.as_seed(seed, device)
    chosen = _select(impl, qkv, plan, seed)
    if chosen == "sdpa":
        qkv = qkv if bias is None else reference.add_bias(qkv, bias, bias_in_qkv)
        return sdpa.axial_attention(qkv, plan.grid, axes, key_padding_mask, dropout_p, plan.scale)
    if plan.threshold == 0:
        key = None
    elif key is None:
        key = philox.fresh_seed(device)
    if chosen == "reference":
        return reference.axial_attention(
            qkv, plan.grid, axes, bias=bias, bias_in_qkv=bias_in_qkv,
            key_padding_mask=key_padding_mask, dropout_p=dropout_p, scale=plan.scale,
            seed=0 if key is None else key,
        )  # fmt: skip
    if bias is not None and not bias_in_qkv and chosen != "cpu":
        qkv, bias_in_qkv = qkv + bias.detach().to(qkv.dtype), True
    if autograd.needs_autograd("axial_attention", qkv, bias):
        return operators.AxialAttention.apply(
            qkv, bias, bias_in_qkv, key_padding_mask, key, plan, chosen
        )
    added = None if bias_in_qkv else bias
    return operators.axial_attention_fwd(
        qkv, added, key_padding_mask, key, *plan.arguments(), chosen
    )


def _check(
    qkv: Tensor,
    grid: tuple[int, int, int],
    axes: str,
    bias: Tensor | None,
    key_padding_mask: Tensor | None,
    dropout_p: float,
    scale: float | None,
) -> Plan:
    check_tensor("qkv", qkv)
    if qkv.dtype not in (*_HALF, torch.float32, torch.float64):
        raise TypeError(f"qkv must be fp16, bf16, fp32 or fp64, got {qkv.dtype}")
    if qkv.dim() != 5 or qkv.shape[2] != 3 or 0 in qkv.shape[3:]:
        raise ValueError(f"qkv must be (B, S, 3, N, Dh), got {tuple(qkv.shape)}")
    grid = as_sizes("grid", grid, "three sizes (T, H, W) >= 1")
    B, S, _, N, Dh = qkv.shape
    tokens = math.prod(grid)
    if S not in (tokens, tokens + 1):
        raise ValueError(
            f"qkv has {S} rows, grid {grid} needs {tokens}, or {tokens + 1} with [CLS] as row 0"
        )
    check_axes(axes, N)
    if bias is not None:
        check_tensor("bias", bias)
        if not bias.is_floating_point():
            raise TypeError(f"bias must be floating, got {bias.dtype}")
        if bias.shape != (3, N, Dh):
            raise ValueError(f"bias must be (3, N, Dh) = {(3, N, Dh)}, got {tuple(bias.shape)}")
        if bias.device != qkv.device:
            raise ValueError(f"bias is on {bias.device}, qkv on {qkv.device}")
    if key_padding_mask is not None:
        check_tensor("key_padding_mask", key_padding_mask)
        if key_padding_mask.dtype != torch.bool:
            raise TypeError(f"key_padding_mask must be bool, got {key_padding_mask.dtype}")
        if key_padding_mask.shape != (B, *grid):
            raise ValueError(
                f"key_padding_mask must be (B, T, H, W) = {(B, *grid)}, "
                f"got {tuple(key_padding_mask.shape)}"
            )
        if key_padding_mask.device != qkv.device:
            raise ValueError(
                f"key_padding_mask is on {key_padding_mask.device}, qkv on {qkv.device}"
            )
    check_dropout(dropout_p)
    scale = Dh**-0.5 if scale is None else as_scale(scale)
    return Plan(grid, axes, scale, philox.dropout_threshold(dropout_p))


def check_axes(axes: str, num_heads: int) -> None:
    """Raises ValueError if `axes` is not legal or does not split `num_heads` evenly."""
    if axes not in LEGAL_AXES:
        raise ValueError(f"axes must be one of {', '.join(LEGAL_AXES)}, got {axes!r}")
    groups = axes.count("|") + 1
    if num_heads % groups:
        raise ValueError(f"axes {axes!r} needs heads in {groups} equal groups, got {num_heads}")


_HALF = (torch.float16, torch.bfloat16)
# What each kernel takes: dtypes, head dims (None: up to 256), tokens of a line (None: any number,
# and joint axes).
_LIMITS: dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...] | None, int | None]] = {
    "cuda": ((*_HALF, torch.float32), (32, 64, 128), 64),
    "triton": ((*_HALF, torch.float32), (16, 32, 64, 128), 64),
    "cpu": ((*_HALF, torch.float32), None, None),
}
_EAGER_LINE = 256  # tokens up to which a CPU without kernels takes the formula rather than SDPA


def _limit(impl: str, qkv: Tensor, plan: Plan) -> str | None:
    dtypes, head_dims, max_line = _LIMITS[impl]
    head_dim = qkv.shape[-1]
    if max_line is not None:
        if plan.axes in JOINT_AXES:
            return "joint axes go through F.scaled_dot_product_attention (impl='sdpa')"
        if plan.longest_line > max_line:
            return f"a line has {plan.longest_line} tokens, it takes at most {max_line}"
    if qkv.dtype not in dtypes:
        return f"it does not take {qkv.dtype}"
    if head_dims is None:
        return None if head_dim <= 256 else f"it takes head dims up to 256, not {head_dim}"
    return None if head_dim in head_dims else f"it takes head dims {head_dims}, not {head_dim}"


def _select(impl: str, qkv: Tensor, plan: Plan, seed: int | Tensor | None) -> str:
    device = qkv.device.type

    def kernel(name: str) -> tuple[str, Callable[[], str | None]]:
        problem = registry.backend_problem
        return name, lambda: _limit(name, qkv, plan) or problem(name, "axial_attention", device)

    def sdpa_problem() -> str | None:
        if qkv.dtype == torch.float64:
            return "fp64 is for the reference"
        if plan.threshold > 0 and seed is not None:
            return "it draws dropout from PyTorch's generator and cannot follow a seed"
        return None

    last = [("sdpa", sdpa_problem), ("reference", lambda: None)]
    if device == "cpu" and plan.axes not in JOINT_AXES and plan.longest_line <= _EAGER_LINE:
        last.reverse()  # on short lines of the CPU the eager formula is the faster of the two
    candidates = [kernel("cuda"), kernel("triton"), kernel("cpu"), *last]
    return registry.select("axial_attention", impl, candidates)
