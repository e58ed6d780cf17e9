"""Tubelet embedding of the visible tubelets only, from the bytes of a clip.

    y[b, v] = conv3d((video / 255 - mean) / std, weight, bias, stride=(t, P, P)) at tubelet v
              + positions[v]

A masked autoencoder of videos sees 10 % of the tubelets. Eager PyTorch normalises the whole clip in
fp32, convolves all of it and throws 90 % away. Here ONE pass gathers the wanted bytes, normalises
them to pixels (B * V, K = 3 t P P) of the product's dtype and starts the rows with positions and
bias; torch's BLAS multiplies: 2 * B * V * K * D FLOP. A backend implements only that pass (C++ on
the CPU, Triton and CUDA C++ on the GPU); it is bound by bandwidth. The backward runs it again on
the bytes that were gathered.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vimpac_kernels.ops.tubelet_embed import operators, reference
from vimpac_kernels.ops.tubelet_embed.operators import Options
from vimpac_kernels.runtime import autograd, registry, sharded, transforms
from vimpac_kernels.runtime.checks import as_real, check_tensor
from vimpac_kernels.runtime.dtypes import product_dtype

_NAME = "tubelet_embed"
_KERNELS = ("cuda", "triton", "cpu")  # best first
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def tubelet_embed(
    video: Tensor,
    tubelets: Tensor,
    weight: Tensor,
    bias: Tensor,
    positions: Tensor,
    *,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    impl: str = "auto",
) -> Tensor:
    """The tubelet embedding (`nn.Conv3d`) of some tubelets of each clip, with their positions.

    Replaces, for x = ((video / 255 - mean) / std).movedim(-1, 1), the first formula by the second:

        y = F.conv3d(x, weight, bias, stride=weight.shape[2:]).flatten(2).mT + positions
        y.gather(1, tubelets.long()[..., None].expand(-1, -1, D))

    Args:
        video: (B, T, H, W, 3) uint8, T a multiple of t, H and W of P. Read in place if the pixels
            of a row lie in one piece, so a crop or every second frame costs no copy.
        tubelets: (B, V) int32: the tubelets of each clip, numbered over the grid (T/t, H/P, W/P),
            W/P running fastest; in any order, also repeatedly.
        weight: (D, 3, t, P, P), fp32, bf16, fp16; fp64 through the reference.
        bias: (D,), dtype of `weight` unless under autocast.
        positions: (N, D), N = T/t * H/P * W/P, any floating dtype: a fixed table, which gets no
            gradient.
        mean: Of each channel, of values in [0, 1].
        std: Of each channel, > 0.
        impl: "auto", "cuda", "triton", "cpu" or "reference".

    Returns:
        (B, V, D), dtype of `weight`, or autocast's.

    Raises:
        IndexError: On the CPU, if a tubelet is outside [0, N); on a GPU, where looking would cost a
            synchronisation, its row is NaN, and the gradients are undefined.
        TypeError: If a dtype is not among those above.
        ValueError: If a shape or an option is not as above.
        RuntimeError: If `impl` cannot run this call, with the reason.

    Pixels are normalised in fp32 and, as bias plus position is, rounded to the dtype of the result,
    in which torch multiplies, with sums in fp32. A CPU multiplies fp16, and without AVX512-BF16
    bf16 too, in fp32. Deterministic where torch's matrix products are. Kept for the backward: the
    bytes of the tubelets, not the clip. Extra memory: the pixels, (B * V, K) of the result's dtype.
    """
    if sharded.has_dtensors(video, tubelets, weight, bias, positions):
        rows = {"video": video, "tubelets": tubelets}
        batch = sharded.split(_NAME, rows, {"weight": weight, "bias": bias})
        table = sharded.local("positions", positions)
        y = tubelet_embed(**batch.tensors, positions=table, mean=mean, std=std, impl=impl)
        return batch.join(y)
    _check(video, tubelets, weight, bias, positions)
    numbers = _as_channels("mean", mean), _as_channels("std", std)
    if min(numbers[1]) <= 0:
        raise ValueError(f"std must be three numbers > 0, got {std}")
    options = Options(*numbers, product_dtype(weight))
    chosen = _select(impl, weight, options.dtype)
    tensors = (video, tubelets, weight, bias, positions)
    if chosen == "reference":
        _check_tubelets(tubelets, len(positions))
        return reference.tubelet_embed(*tensors, mean=options.mean, std=options.std)
    if autograd.needs_autograd(_NAME, weight, bias):
        return operators.TubeletEmbed.apply(*tensors, options, chosen)
    return operators.forward(tensors, options, False, chosen)[0]


def _check(
    video: Tensor, tubelets: Tensor, weight: Tensor, bias: Tensor, positions: Tensor
) -> None:
    named = {"video": video, "tubelets": tubelets, "weight": weight, "bias": bias}
    for name, tensor in (named | {"positions": positions}).items():
        check_tensor(name, tensor)
        if tensor.device != video.device:
            raise ValueError(f"{name} is on {tensor.device}, video on {video.device}")
    if video.dtype != torch.uint8:
        raise TypeError(f"video must be uint8, as decoders give it, got {video.dtype}")
    if video.dim() != 5 or video.shape[4] != 3 or 0 in video.shape[1:]:
        raise ValueError(f"video must be (B, T, H, W, 3), got {tuple(video.shape)}")
    if weight.dim() != 5 or weight.shape[1] != 3 or 0 in weight.shape:
        raise ValueError(f"weight must be (D, 3, t, P, P), got {tuple(weight.shape)}")
    if weight.shape[3] != weight.shape[4]:
        raise ValueError(f"weight must be (D, 3, t, P, P), one P, got {tuple(weight.shape)}")
    D, _, t, P, _ = weight.shape
    B, T, H, W, _ = video.shape
    if T % t or H % P or W % P:
        raise ValueError(
            f"video must be whole tubelets of weight, {(t, P, P)}, but its clips are {(T, H, W)}"
        )
    if tubelets.dtype != torch.int32:
        raise TypeError(f"tubelets must be int32, got {tubelets.dtype}")
    if tubelets.dim() != 2 or tubelets.shape[0] != B:
        raise ValueError(f"tubelets must be (B, V), B = {B}, got {tuple(tubelets.shape)}")
    if bias.shape != (D,):
        raise ValueError(f"bias must be {(D,)}, got {tuple(bias.shape)}")
    N = T // t * (H // P) * (W // P)
    if positions.shape != (N, D):
        raise ValueError(f"positions must be (N, D), {(N, D)}, got {tuple(positions.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.dtype not in (*_DTYPES, torch.float64):
            raise TypeError(f"{name} must be fp32, bf16, fp16 or fp64, got {tensor.dtype}")
    if not positions.dtype.is_floating_point:
        raise TypeError(f"positions must be floating, got {positions.dtype}")
    autocast = video.device.type != "meta" and torch.is_autocast_enabled(video.device.type)
    if bias.dtype != weight.dtype and not autocast:
        raise TypeError(
            f"bias is {bias.dtype}, weight {weight.dtype}: give them one dtype or use "
            "torch.autocast"
        )
    if positions.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "positions get no gradient: pass positions.detach(), or add learned ones to the result"
        )


def _as_channels(name: str, value: object) -> tuple[float, float, float]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} must be three numbers, got {value!r}")
    numbers = [as_real(name, number) for number in value]
    if len(numbers) != 3 or not all(abs(number) < math.inf for number in numbers):
        raise ValueError(f"{name} must be three finite numbers, got {value}")
    return numbers[0], numbers[1], numbers[2]


def _check_tubelets(tubelets: Tensor, N: int) -> None:
    if tubelets.is_cpu and not transforms.hides_values():
        wrong = ((tubelets < 0) | (tubelets >= N)).nonzero()
        if len(wrong):
            clip, number = wrong[0].tolist()
            raise IndexError(operators.outside(tubelets, clip, number, N))


def _select(impl: str, weight: Tensor, dtype: torch.dtype) -> str:
    def problem(backend: str) -> str | None:
        reason = registry.backend_problem(backend, _NAME, weight.device.type)
        if reason is None and dtype not in _DTYPES:
            reason = f"it takes fp32, bf16 and fp16, weight is {dtype}"
        if reason is None and weight.shape[0] % 8:
            reason = f"D must be a multiple of 8, got {weight.shape[0]}"
        return reason

    kernels = [(name, functools.partial(problem, name)) for name in _KERNELS]
    return registry.select(_NAME, impl, [*kernels, ("reference", lambda: None)])
