"""What autograd is told, and what it must be kept from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def needs_autograd(*tensors: Tensor | None) -> bool:
    """Whether a call goes through its autograd.Function; else it keeps nothing for a backward.

    Under forward-mode AD it always does: having no jvp, the Function refuses a dual tensor, whose
    tangent the bare operator would lose without a word (and does in a compiled graph).
    """
    return getattr(forward_ad, "_current_level", -1) >= 0 or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    )


def kept(tensor: Tensor | None) -> Tensor | None:
    """An input without a gradient, as a backward may keep it.

    On a CPU that is a copy: its memory may be NumPy's, which a loader fills anew, unseen by
    autograd. What changes in place otherwise is refused by autograd.
    """
    return tensor.clone() if tensor is not None and tensor.is_cpu else tensor


def refuse_second_order(op: str) -> None:
    """Raises in a backward under create_graph=True, which would leave terms out without a word."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"{op}: kernels have no second derivative (create_graph=True): use impl='reference'"
        )
