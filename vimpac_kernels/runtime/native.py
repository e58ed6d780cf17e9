"""Starts a kernel of one backend, by name and keywords.

csrc/bind.hpp fills the arguments of csrc/<op>/arguments.hpp; Triton's launchers take their names.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from vimpac_kernels.runtime.registry import extension


def launch(impl: str, operator: str, /, **arguments: Any) -> int:
    """As in `launch("cpu", "bias_gelu_fwd", x=x, bias=bias, y=y)`, on the current stream.

    Args:
        impl: "cuda", "triton" or "cpu".
        operator: `<op>_fwd` or `<op>_bwd`.
        arguments: Contiguous tensors and numbers; those that the kernels fill are among them.

    Returns:
        The first index that a kernel of the CPU found out of range, or -1.

    Raises:
        RuntimeError: If `impl` is not built.
        TypeError: If an argument has a name or a dtype that the kernel does not take.
    """
    if impl == "cpu":
        return getattr(extension("cpu"), operator)(arguments, torch.get_num_threads())
    first = next(value for value in arguments.values() if isinstance(value, Tensor))
    with device_guard(first):
        if impl == "triton":
            op, _, direction = operator.rpartition("_")
            module = importlib.import_module(f"vimpac_kernels.ops.{op}.triton")
            getattr(module, f"launch_triton_{direction}")(**arguments)
        else:
            stream = torch.cuda.current_stream().cuda_stream if first.is_cuda else 0
            allocate = functools.partial(torch.empty, dtype=torch.float32, device=first.device)
            getattr(extension(impl), operator)(arguments, stream, allocate)
    return -1


def device_guard(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Makes a tensor's CUDA device current where it is not, as kernel launches need."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)
