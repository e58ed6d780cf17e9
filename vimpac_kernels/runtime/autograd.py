"""Whether a call needs autograd, and errors for derivatives that kernels do not have."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level
from torch.autograd import forward_ad

from vimpac_kernels.runtime import transforms


def needs_autograd(op: str, *tensors: Tensor | None) -> bool:
    """Whether a call goes through its autograd.Function; otherwise nothing is saved for backward.

    Args:
        op: Name of the op, for messages.
        tensors: Those that its kernels differentiate by.

    Raises:
        RuntimeError: Where kernels have no derivative, or cannot be exported.
    """
    dual = getattr(forward_ad, "_current_level", -1) >= 0
    if dual or torch.compiler.is_compiling() or maybe_current_level() is not None:
        transforms.check_export(op)
        around = transforms.transforms()
        if around:
            transforms.check_transforms(op, around, *tensors)
            return False
        if dual and torch.compiler.is_compiling():
            return True  # having no jvp, the Function refuses a dual tensor
        if dual:
            transforms.check_forward_mode(op, *tensors)
    if torch.is_grad_enabled():
        for tensor in tensors:  # any() of a generator takes longer
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def kept(tensor: Tensor | None) -> Tensor | None:
    """An input without a gradient, as a backward may keep it.

    On a CPU it is a copy: the memory may be a NumPy array that a data loader overwrites, which
    autograd does not see. Other in-place changes make autograd raise.
    """
    return tensor.clone() if tensor is not None and tensor.is_cpu else tensor


def refuse_second_order(op: str) -> None:
    """Raises in a backward under create_graph=True, which would silently leave terms out."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"{op}: kernels have no second derivative (create_graph=True): use impl='reference'"
        )
