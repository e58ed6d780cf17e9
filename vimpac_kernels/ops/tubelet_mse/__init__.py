"""The loss of predicted pixels: mean (pred - target)^2 over chosen tubelets of uint8 clips.

    target = (x - mean) / (std + eps) of each tubelet and channel,  x = video / 255
    dpred = dloss * 2 (pred - target) / count

No target is ever in memory: each direction reads pred and the chosen tubelets' bytes once and
computes the statistics, in integers, on the way; the backward also writes dpred. In eager PyTorch
every tubelet of a clip is normalised in fp32 first, of which the chosen ones are then gathered.
Serves CPU (C++), CUDA and Triton; bound by bandwidth.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from vimpac_kernels.ops.tubelet_mse import operators, reference
from vimpac_kernels.runtime import autograd, registry, sharded, transforms
from vimpac_kernels.runtime.checks import as_int, check_eps, check_tensor

_NAME = "tubelet_mse"
_KERNELS = ("cuda", "triton", "cpu")  # best first
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_PIXELS = 4096  # of a tubelet, which kernels hold on chip; kMostPixels of csrc


def tubelet_mse(
    pred: Tensor,
    video: Tensor,
    tubelets: Tensor,
    *,
    tubelet: tuple[int, int] = (2, 16),
    eps: float = 1e-6,
    impl: str = "auto",
) -> Tensor:
    """`F.mse_loss` of predicted pixels against each tubelet's normalised ones (VideoMAE's loss).

    In place of `x = tubelets of video / 255`, `(x - x.mean(-2)) / (x.var(-2).sqrt() + eps)`, a
    gather of the masked ones, and `F.mse_loss`.

    Args:
        pred: (B, M, t*P*P*3), the pixels of tubelet m in the order frame, row, column, channel:
            fp32, bf16, fp16; fp64 through the reference.
        video: (B, T, H, W, 3) uint8; T a multiple of t, H and W of P.
        tubelets: (B, M) int32: for each row of `pred` the index of its tubelet in the flattened
            grid (T/t, H/P, W/P). Any order; one may be there twice.
        tubelet: (t, P): frames of a tubelet and pixels on its side; at least 2 pixels in all.
        eps: >= 0, added to the standard deviation of values in [0, 1].
        impl: "auto", "cuda", "triton", "cpu" or "reference".

    Returns:
        The loss, 0-d fp32 (fp64 for an fp64 `pred`). Of no tubelets it is 0, with gradient 0.

    Raises:
        IndexError: On the CPU, if an index is outside the grid. On a GPU, where looking would cost
            a synchronisation, the loss is NaN, as are the gradients of that tubelet.
        TypeError: If a dtype is not among those above.
        ValueError: If a shape or an option is not as above.
        RuntimeError: If `impl` cannot run this call, with the reason.

    Mean and unbiased variance are exact, from integer sums, so the target of a flat tubelet is 0,
    whatever `eps`. The rest is fp32, the loss summed in ordered stages, on the CPU in fp64;
    deterministic. Only `pred` has a gradient, of its dtype. Kept for the backward: the three
    tensors, on a CPU copies of `video` and `tubelets`, as their memory may be filled anew.
    """
    if sharded.has_dtensors(pred, video, tubelets):
        rows = {"pred": pred, "video": video, "tubelets": tubelets}
        batch = sharded.split(_NAME, rows, {})
        own = batch.tensors["pred"]
        loss = tubelet_mse(**batch.tensors, tubelet=tubelet, eps=eps, impl=impl)
        return batch.sum(loss * (len(own) / max(len(pred), 1)))
    t, P = _check(pred, video, tubelets, tubelet, eps)
    chosen = _select(impl, pred, video, t, P)
    if chosen == "reference":
        _check_indices(tubelets, video, t, P)
        return reference.tubelet_mse(pred, video, tubelets, tubelet=(t, P), eps=eps)
    options = (pred, video, tubelets, t, P, float(eps), chosen)
    if autograd.needs_autograd(_NAME, pred):
        return operators.TubeletMse.apply(*options)
    return operators.tubelet_mse_fwd(*options)


def _check(
    pred: Tensor, video: Tensor, tubelets: Tensor, tubelet: tuple[int, int], eps: float
) -> tuple[int, int]:
    """(t, P)."""
    for name, tensor in (("pred", pred), ("video", video), ("tubelets", tubelets)):
        check_tensor(name, tensor)
        if tensor.device != pred.device:
            raise ValueError(f"{name} is on {tensor.device}, pred on {pred.device}")
    if pred.dtype not in (*_DTYPES, torch.float64):
        raise TypeError(f"pred must be fp32, bf16, fp16 or fp64, got {pred.dtype}")
    if video.dtype != torch.uint8:
        raise TypeError(f"video must be uint8, got {video.dtype}")
    if tubelets.dtype != torch.int32:
        raise TypeError(f"tubelets must be int32, got {tubelets.dtype}: use tubelets.int()")
    check_eps(eps)
    t, P = _as_tubelet(tubelet)
    if video.dim() != 5 or video.shape[4] != 3 or 0 in video.shape[1:]:
        raise ValueError(f"video must be (B, T, H, W, 3), got {tuple(video.shape)}")
    B, T, H, W, _ = video.shape
    if T % t or H % P or W % P:
        raise ValueError(
            f"video must have T a multiple of {t}, H and W of {P}, those of tubelet {(t, P)}, "
            f"got {tuple(video.shape)}"
        )
    if tubelets.dim() != 2 or tubelets.shape[0] != B:
        raise ValueError(f"tubelets must be (B, M), B = {B}, got {tuple(tubelets.shape)}")
    if pred.shape != (*tubelets.shape, t * P * P * 3):
        raise ValueError(
            f"pred must be (B, M, t*P*P*3) = {(*tubelets.shape, t * P * P * 3)} for tubelets "
            f"{tuple(tubelets.shape)} of {(t, P)}, got {tuple(pred.shape)}"
        )
    return t, P


def _as_tubelet(tubelet: tuple[int, int]) -> tuple[int, int]:
    must = f"tubelet must be two sizes (t, P) >= 1, got {tubelet!r}"
    if not isinstance(tubelet, Sequence) or isinstance(tubelet, str):
        raise TypeError(must)
    if len(tubelet) != 2:
        raise ValueError(must)
    t, P = (as_int("tubelet", size) for size in tubelet)
    if t < 1 or P < 1:
        raise ValueError(must)
    if t * P * P < 2:
        raise ValueError(
            f"tubelet {(t, P)} has one pixel, and one value no unbiased variance: use 2 or more"
        )
    return t, P


def _check_indices(tubelets: Tensor, video: Tensor, t: int, P: int) -> None:
    if tubelets.is_cpu and tubelets.numel() and not transforms.hides_values():
        _, T, H, W, _ = video.shape
        N = T // t * (H // P) * (W // P)
        low, high = (int(end) for end in torch.aminmax(tubelets))
        if low < 0 or high >= N:
            raise operators.outside(low if low < 0 else high, N)


def _select(impl: str, pred: Tensor, video: Tensor, t: int, P: int) -> str:
    def problem(backend: str) -> str | None:
        reason = registry.backend_problem(backend, _NAME, pred.device.type)
        if reason is None and pred.dtype not in _DTYPES:
            reason = f"it takes fp32, bf16 and fp16, pred is {pred.dtype}"
        if reason is None and t * P * P > _MAX_PIXELS:
            reason = f"it takes tubelets of up to {_MAX_PIXELS} pixels, these have {t * P * P}"
        if reason is None and max(pred.shape[:2].numel(), t * video.shape[2:].numel()) >= 2**31:
            reason = "it takes fewer than 2^31 tubelets, from t frames of fewer than 2^31 bytes"
        return reason

    kernels = [(name, functools.partial(problem, name)) for name in _KERNELS]
    return registry.select(_NAME, impl, [*kernels, ("reference", lambda: None)])
