"""Private operators: what torch.compile, meta tensors and autocast know of a kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from vimpac_kernels.runtime import native

_LIBRARY = torch.library.Library("vimpac_kernels", "DEF")


def define(name: str, schema: str, run: Callable, fake: Callable) -> Callable:
    """Registers the private operator `vimpac_kernels::<name>`.

    Args:
        name: Operator name, `<op>_fwd` or `<op>_bwd`.
        schema: Its signature in PyTorch's schema language, without the name.
        run: The implementation, on every device; that of its first argument is current in it.
        fake: Shapes and dtypes of the outputs, for torch.compile and meta tensors.

    Returns:
        The operator, callable from Python.
    """

    @functools.wraps(run)
    def run_on_device(*arguments: Any, **options: Any) -> Any:
        with native.device_guard(arguments[0]):
            return run(*arguments, **options)

    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, run_on_device, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vimpac_kernels::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.vimpac_kernels, name).default
