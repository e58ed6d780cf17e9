"""Private operators: what torch.compile, autocast and meta tensors know of a kernel's call."""

from __future__ import annotations

from collections.abc import Callable

import torch

_LIBRARY = torch.library.Library("vimpac_kernels", "DEF")


def operator(fake: Callable) -> Callable[[Callable], Callable]:
    """Registers the function below it as the private operator `vimpac_kernels::<its name>`.

    Its schema follows from its annotations: tensors, numbers, strings, dtypes and sequences.

    Args:
        fake: Takes the same arguments and makes outputs of the same shapes and dtypes, for
            torch.compile and meta tensors.

    Returns:
        A decorator that returns the operator, callable from Python.
    """

    def register(run: Callable) -> Callable:
        name = run.__name__
        _LIBRARY.define(name + torch.library.infer_schema(run, mutates_args=()))
        _LIBRARY.impl(name, run, "CompositeExplicitAutograd")  # on every device
        torch.library.register_fake(f"vimpac_kernels::{name}", fake, lib=_LIBRARY)
        return getattr(torch.ops.vimpac_kernels, name).default

    return register
