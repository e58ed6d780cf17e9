"""Marks plain Python functions for torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def constant_in_graphs(function: F) -> F:
    """Makes a graph treat the result of `function` at trace time as a constant.

    Same mark as `torch.compiler.assume_constant_result`, which would import the compiler.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function
