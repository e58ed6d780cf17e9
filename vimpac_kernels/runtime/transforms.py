"""Errors for the transforms of PyTorch that kernels do not support.

A kernel's operator has a derivative by its autograd.Function only, in reverse and of first order.
Inside torch.func.grad or jvp the Function fails without naming the op. torch.vmap and torch.compile
hide that a tensor is differentiated: the bare operator would run, and its derivative would silently
be zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from vimpac_kernels.runtime.compiling import constant_in_graphs


def check_export(op: str) -> None:
    """Raises RuntimeError in an export to ONNX, which does not support these operators."""
    if torch.compiler.is_exporting() and _is_onnx_export():
        raise RuntimeError(f"{op}: kernels cannot be exported to ONNX: use impl='reference'")


def check_forward_mode(op: str, *tensors: Tensor | None) -> None:
    """Raises RuntimeError for a dual tensor: a kernel would lose its tangent."""
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(
                f"{op}: kernels have no forward-mode derivative (jvp): use impl='reference'"
            )


def hides_values() -> bool:
    """Whether Python cannot read the values of tensors: in torch.compile and vmap."""
    return torch.compiler.is_compiling() or "Vmap" in transforms()


@constant_in_graphs
def transforms() -> str:
    """The transforms of torch.func around this call, outermost first: "", "Grad", "Vmap Grad"."""
    if _functorch.maybe_current_level() is None:
        return ""
    return " ".join(i.key().name for i in _functorch.get_interpreter_stack() or ())


def check_transforms(op: str, around: str, *tensors: Tensor | None) -> None:
    """Raises RuntimeError if a transform differentiates one of the tensors.

    In torch.compile it raises if a transform might: vmap alone runs under torch.no_grad().

    Args:
        op: Name of the op, for the message.
        around: From `transforms`.
        tensors: Those that a kernel differentiates by.
    """
    if torch.compiler.is_compiling():  # which shows no levels of a tensor: any may be one
        refused = "Jvp" in around or (torch.is_grad_enabled() and "Functionalize" != around)
    else:
        levels = around.split()
        refused = any(t is not None and _is_differentiated(t, levels) for t in tensors)
    if refused:
        raise RuntimeError(
            f"{op}: kernels have no derivative inside torch.func's grad, jvp and vmap: "
            "use impl='reference'"
        )


def _is_differentiated(tensor: Tensor, levels: list[str]) -> bool:
    """Whether any of the transforms differentiates it; each of them has wrapped the tensor."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        level = _functorch.maybe_get_level(tensor)
        if levels[level - 1] == "Jvp" and tensor.is_floating_point():
            # Only the innermost level tells whether there is a tangent.
            if level < len(levels) or forward_ad.unpack_dual(tensor).tangent is not None:
                return True
        if tensor.requires_grad and torch.is_grad_enabled():
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return tensor.requires_grad and torch.is_grad_enabled()


@constant_in_graphs
def _is_onnx_export() -> bool:
    return torch.onnx.is_in_onnx_export()
