"""Checks of arguments that the modules share. Every error names the argument."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor


def check_kind(name: str, value: object, kind: type) -> None:
    """Raises TypeError unless `value` is of that class."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of class {kind.__name__}, got {_shown(value)}")


def check_tensor(name: str, value: object) -> None:
    """Raises TypeError if `value` is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {_shown(value)}")


def check_integers(name: str, value: object) -> None:
    """Raises TypeError if `value` is no tensor, ValueError if it does not hold integers."""
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    dtype = value.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise ValueError(f"{name} must be integers, got {dtype}")


def check_floating(name: str, value: object, *shape: str | int) -> None:
    """Raises TypeError if `value` is no tensor, ValueError unless it is floating and of `shape`.

    Args:
        name: Of the argument.
        value: The argument.
        shape: Its sizes; texts stand for any.
    """
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    fits = len(shape) == value.dim() and all(
        isinstance(size, str) or size == actual
        for size, actual in zip(shape, value.shape, strict=True)
    )
    if not fits or not value.is_floating_point():
        sizes, got = ", ".join(map(str, shape)), f"{value.dtype} {tuple(value.shape)}"
        raise ValueError(f"{name} must be ({sizes}), floating, got {got}")


def check_flag(name: str, value: object) -> None:
    """Raises TypeError if `value` is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {_shown(value)}")


def check_whole(name: str, value: Any, least: int | None = None) -> None:
    """Raises TypeError if `value` is no whole number, ValueError if it is below `least`."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Integral, torch.SymInt)):
        raise TypeError(f"{name} must be a whole number, got {_shown(value)}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def as_number(name: str, value: object) -> float:
    """`value` as a float; TypeError if it is no number, ValueError if it is not finite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:  # a whole number that no float holds
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {_shown(value)}")
    return number


def check_seed(value: object) -> None:
    """Raises TypeError or ValueError unless it is None, an int or a 0-d int64 tensor."""
    must = f"seed must be an int in [-2^63, 2^63) or a 0-d int64 tensor, got {_shown(value)}"
    if isinstance(value, Tensor):
        if value.dim() or value.dtype != torch.int64:
            raise ValueError(f"{must} of {value.dtype} {tuple(value.shape)}")
    elif value is not None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(must)
        if not -(2**63) <= value < 2**63:
            raise ValueError(must)


def may_look(tensor: Tensor) -> bool:
    """Whether reading a tensor's values costs nothing: on a CPU, outside compiled code."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _shown(value: object) -> str:
    """What was given, in one line: a module or a tensor by its class alone."""
    plain = value is None or isinstance(value, str | int | float)
    text = repr(value) if plain else type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}..."
