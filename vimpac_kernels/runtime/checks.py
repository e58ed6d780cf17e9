"""Checks of arguments that the ops share. Every error names the argument."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGEST_SCALE = 1e30


def check_tensor(name: str, value: object) -> None:
    """Raises TypeError if `value` is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {value!r}")


def check_flag(name: str, value: object) -> None:
    """Raises TypeError if `value` is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def as_int(name: str, value: object) -> int:
    """`value` if it is a whole number of 64 bits, also a symbolic or NumPy's; else an error."""
    if not _is_whole(value):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if isinstance(value, numbers.Integral) and not isinstance(value, int):
        value = int(value)  # the product of three uint8 does not fit a uint8
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must be within 64 bits, got {value}")
    return value  # type: ignore[return-value]


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, torch.SymInt, numbers.Integral)) and not isinstance(value, bool)


def as_sizes(
    name: str, value: object, meaning: str, largest: tuple[int, ...] | None = None
) -> tuple[int, int, int]:
    """`value` as three positive sizes, up to the `largest`; else TypeError or ValueError."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} must be {meaning}, got {value!r}")
    if not all(_is_whole(size) for size in value):
        raise TypeError(f"{name} must be {meaning}, whole numbers, got {tuple(value)}")
    sizes = [as_int(name, size) for size in value]
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"{name} must be {meaning}, got {tuple(value)}")
    if largest is not None and any(a > b for a, b in zip(sizes, largest, strict=True)):
        raise ValueError(f"{name} must be {meaning}, got {tuple(value)}")
    return sizes[0], sizes[1], sizes[2]


def as_real(name: str, value: object) -> float:
    """`value` as a float if it is a number; else TypeError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:  # a whole number that no float holds
        raise ValueError(f"{name} must be a number of a float's range") from None


def check_probabilities(name: str, value: object) -> None:
    """Raises unless they are three that sum to 1."""
    must = f"{name} must be three probabilities that sum to 1, got {value!r}"
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(must)
    shares = [as_real(name, share) for share in value]
    if len(shares) != 3 or min(shares) < 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise ValueError(must)


def check_dropout(dropout_p: object, name: str = "dropout_p") -> None:
    """Raises unless it is a number in [0, 1)."""
    if not 0 <= as_real(name, dropout_p) < 1:
        raise ValueError(f"{name} must be in [0, 1), got {dropout_p}")


def check_eps(eps: object) -> None:
    """Raises unless it is a finite number >= 0."""
    if not 0 <= as_real("eps", eps) < math.inf:
        raise ValueError(f"eps must be >= 0 and finite, got {eps}")


def as_scale(scale: object) -> float:
    """A factor of scores, whose products with them have to stay within fp32."""
    if isinstance(scale, Tensor):
        raise TypeError("scale must be a number, as it gets no gradient: multiply q by a tensor")
    if not abs(as_real("scale", scale)) <= _LARGEST_SCALE:
        raise ValueError(f"scale must be within {_LARGEST_SCALE:g} of 0, got {scale}")
    return as_real("scale", scale)
