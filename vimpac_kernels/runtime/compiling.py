"""What torch.compile is told of plain Python functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def constant_in_graphs(function: F) -> F:
    """A graph takes what `function` returns while it is traced for a constant.

    It sets what `torch.compiler.assume_constant_result` sets, which would import the compiler.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function
