"""tubelet_mse below its checks: autograd, which keeps its inputs, and operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vimpac_kernels.runtime import autograd, library, native


class TubeletMse(torch.autograd.Function):
    """The loss with the gradient of pred."""

    @staticmethod
    def forward(
        ctx: Any,
        pred: Tensor,  # (B, M, t*P*P*3)
        video: Tensor,  # (B, T, H, W, 3) uint8
        tubelets: Tensor,  # (B, M) int32
        t: int,
        P: int,
        eps: float,
        impl: str,
    ) -> Tensor:  # 0-d
        """Keeps pred, the clips and the indices; on a CPU copies of the latter two."""
        ctx.save_for_backward(pred, autograd.kept(video), autograd.kept(tubelets))
        ctx.options = (t, P, eps, impl)
        return tubelet_mse_fwd(pred, video, tubelets, t, P, eps, impl)

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        """Computes the targets again."""
        autograd.refuse_second_order("tubelet_mse")
        return tubelet_mse_bwd(dloss, *ctx.saved_tensors, *ctx.options), *(None,) * 6


def _tensors(pred: Tensor, video: Tensor, tubelets: Tensor) -> dict[str, Tensor]:
    """As kernels take them."""
    packed = (tensor.contiguous() for tensor in (pred, video, tubelets))
    return dict(zip(("pred", "video", "tubelets"), packed, strict=True))


def _check_index(invalid: int, video: Tensor, tubelets: Tensor, t: int, P: int) -> None:
    if invalid >= 0:
        _, T, H, W, _ = video.shape
        raise outside(int(tubelets.flatten()[invalid]), T // t * (H // P) * (W // P))


def outside(index: int, N: int) -> IndexError:
    """The error of an index that no tubelet has."""
    return IndexError(f"tubelets: index {index} is outside [0, {N}), the tubelets of a clip")


def _fake_fwd(pred: Tensor, *_: Any) -> Tensor:
    return pred.new_empty((), dtype=torch.float32)


@library.operator(_fake_fwd)
def tubelet_mse_fwd(
    pred: Tensor, video: Tensor, tubelets: Tensor, t: int, P: int, eps: float, impl: str
) -> Tensor:
    """The loss, 0-d fp32."""
    loss = _fake_fwd(pred)
    if pred.numel():
        tensors = _tensors(pred, video, tubelets)
        invalid = native.launch(impl, "tubelet_mse_fwd", **tensors, t=t, P=P, eps=eps, loss=loss)
        _check_index(invalid, video, tubelets, t, P)
    else:
        loss.zero_()
    return loss


def _fake_bwd(dloss: Tensor, pred: Tensor, *_: Any) -> Tensor:
    return pred.new_empty(pred.shape)


@library.operator(_fake_bwd)
def tubelet_mse_bwd(
    dloss: Tensor,
    pred: Tensor,
    video: Tensor,
    tubelets: Tensor,
    t: int,
    P: int,
    eps: float,
    impl: str,
) -> Tensor:
    """dpred (B, M, t*P*P*3), dtype of pred."""
    dpred = _fake_bwd(dloss, pred)
    if pred.numel():
        tensors = _tensors(pred, video, tubelets)
        invalid = native.launch(
            impl, "tubelet_mse_bwd", **tensors, t=t, P=P, eps=eps, dloss=dloss, dpred=dpred
        )
        _check_index(invalid, video, tubelets, t, P)
    return dpred
