"""The pass over the pixels of tubelet_embed and its two matrix products, as operators.

The pass writes pixels (M = B * V, K = 3 t P P) in the order of a clip's bytes: frame, row, column,
channel. So the weight is multiplied in that order, (D, t, P, P, 3), and its gradient has it, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vimpac_kernels.runtime import autograd, library, native
from vimpac_kernels.runtime.dtypes import cpu_product_dtype


@dataclass(frozen=True)
class Options:
    """What a call carries besides its tensors."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dtype: torch.dtype  # of the result


class TubeletEmbed(torch.autograd.Function):
    """The rows of the tubelets, with the gradients of weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        video: Tensor,  # (B, T, H, W, 3)
        tubelets: Tensor,  # (B, V)
        weight: Tensor,  # (D, 3, t, P, P)
        bias: Tensor,  # (D,)
        positions: Tensor,  # (N, D)
        options: Options,
        impl: str,
    ) -> Tensor:  # (B, V, D)
        """Keeps the bytes of the tubelets, which nobody else can write to, not the clip."""
        tensors = (video, tubelets, weight, bias, positions)
        y, patches = forward(tensors, options, ctx.needs_input_grad[2], impl)
        ctx.save_for_backward(patches)
        ctx.size, ctx.options, ctx.impl = weight.shape[2:4], options, impl
        ctx.dtypes = weight.dtype, bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Makes pixels of the bytes again."""
        autograd.refuse_second_order("tubelet_embed")
        (patches,), options, (t, P) = ctx.saved_tensors, ctx.options, ctx.size
        needs_weight, needs_bias = ctx.needs_input_grad[2:4]
        dweight = dbias = None
        if needs_weight:
            flat = tubelet_embed_bwd(dy, patches, t, P, options.mean, options.std, ctx.impl)
            dweight = flat.view(-1, t, P, P, 3).permute(0, 4, 1, 2, 3).to(ctx.dtypes[0])
        if needs_bias:
            dbias = dy.sum((0, 1), dtype=torch.float32).to(ctx.dtypes[1])
        return None, None, dweight, dbias, None, None, None


def forward(
    tensors: tuple[Tensor, ...], options: Options, save: bool, impl: str
) -> tuple[Tensor, Tensor]:
    """The rows (B, V, D), and the bytes of their tubelets (M, K) or, if not wanted, (0, K)."""
    return tubelet_embed_fwd(
        *tensors, mean=options.mean, std=options.std, dtype=options.dtype, save=save, impl=impl
    )


def _product_dtype(dtype: torch.dtype, impl: str) -> torch.dtype:
    return cpu_product_dtype(dtype) if impl == "cpu" else dtype


def _fake_fwd(
    video: Tensor, tubelets: Tensor, weight: Tensor, *_: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    (B, V), D = tubelets.shape, weight.shape[0]
    K = weight.shape[1:].numel()
    return (
        weight.new_empty((B, V, D), dtype=options["dtype"]),
        video.new_empty((B * V if options["save"] else 0, K)),
    )


@library.operator(_fake_fwd)
def tubelet_embed_fwd(
    video: Tensor,
    tubelets: Tensor,
    weight: Tensor,
    bias: Tensor,
    positions: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    save: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """y (B, V, D), and patches (M, K) uint8, which are empty if not wanted."""
    outputs = _fake_fwd(video, tubelets, weight, dtype=dtype, save=save)
    y, patches = outputs
    if y.numel() == 0:
        return outputs
    D, _, t, P, _ = weight.shape
    product = _product_dtype(dtype, impl)
    W = weight.new_empty((D, t, P, P, 3), dtype=product).copy_(weight.permute(0, 2, 3, 4, 1))
    pixels = y.new_empty((tubelets.numel(), patches.shape[1]), dtype=product)
    rows = y if product == dtype else torch.empty_like(y, dtype=product)
    invalid = native.launch(
        impl, "tubelet_embed_fwd", **_clips(video, t, P, mean, std),
        tubelets=tubelets.contiguous(), V=tubelets.shape[1], pixels=pixels, patches=patches,
        positions=positions.float().contiguous(), bias=bias.float().contiguous(), rows=rows,
    )  # fmt: skip
    if invalid >= 0:
        raise IndexError(outside(tubelets, *divmod(invalid, tubelets.shape[1]), len(positions)))
    with torch.autocast(y.device.type, enabled=False):
        rows.flatten(0, 1).addmm_(pixels, W.view(D, -1).T)
    return (y if rows is y else y.copy_(rows)), patches


def outside(tubelets: Tensor, clip: int, number: int, N: int) -> str:
    """What is wrong with tubelets[clip, number]."""
    return f"tubelet {int(tubelets[clip, number])} of clip {clip} is outside [0, {N})"


def _clips(
    video: Tensor, t: int, P: int, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """Clips as kernels read them: a row of a picture lies in one piece, the rest anywhere.

    A pixel is scale * byte + shift of its channel.
    """
    if video.stride()[3:] != (3, 1):
        video = video.contiguous()
    _, T, H, W, _ = video.shape
    return {
        "video": video,
        "strides": video.stride()[:3],
        "grid": (T // t, H // P, W // P),
        "t": t,
        "P": P,
        "scales": [1 / (255 * s) for s in std],
        "shifts": [-m / s for m, s in zip(mean, std, strict=True)],
    }


def _fake_bwd(dy: Tensor, patches: Tensor, *_: Any) -> Tensor:
    return dy.new_empty((dy.shape[2], patches.shape[1]), dtype=torch.float32)


@library.operator(_fake_bwd)
def tubelet_embed_bwd(
    dy: Tensor,
    patches: Tensor,
    t: int,
    P: int,
    mean: Sequence[float],
    std: Sequence[float],
    impl: str,
) -> Tensor:
    """dweight (D, K) fp32, in the order of the bytes."""
    (M, K), product = patches.shape, _product_dtype(dy.dtype, impl)
    pixels = torch.empty((M, K), dtype=product, device=dy.device)
    if M:  # each tubelet is a clip of its own now
        native.launch(
            impl, "tubelet_embed_fwd", **_clips(patches.view(M, t, P, P, 3), t, P, mean, std),
            tubelets=torch.zeros(M, dtype=torch.int32, device=dy.device), V=1, pixels=pixels,
        )  # fmt: skip
    dy = dy.flatten(0, 1).to(product)
    with torch.autocast(dy.device.type, enabled=False):
        if product == torch.float32 or dy.device.type == "cpu":  # which cannot widen its result
            return torch.mm(dy.T, pixels).float()
        return torch.mm(dy.T, pixels, out_dtype=torch.float32)
