"""YAML as settings need it: every scalar a text that its setting gives a meaning, every key once.

YAML itself would read 010 as 8, 1:30 as 90 and yes as true, and keep the last of two equal keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from vimpac.errors import UsageError

NULLS = ("null", "Null", "NULL", "~", "")


class Entry(NamedTuple):
    """A setting in a file."""

    key: str  # dotted
    value: Any  # a text, None or a list of them
    line: int


def parse(text: str) -> Any:
    """A value or a whole file; a null stays the text that it is."""
    return yaml.load(text, Loader=yaml.BaseLoader)


def read_entries(text: str, name: str) -> list[Entry]:
    """The settings of a file.

    Args:
        text: What it holds.
        name: What it is called, for messages.

    Returns:
        Its settings in order.

    Raises:
        UsageError: It is no YAML, holds no keys and values, or has a key twice.
    """
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        entries = [] if node is None or _is_null(node) else [*_entries(node, "", name)]
    except (yaml.YAMLError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise UsageError(f"{name} is no YAML: {line}") from error
    _check_unique([(entry.key, entry.line) for entry in entries], name)
    return entries


def write(value: Any) -> str:
    """A value on one line."""
    plain = [*value] if isinstance(value, tuple) else value
    text = yaml.safe_dump([plain], default_flow_style=True, width=math.inf)
    if text.count("\n") > 1:  # a text of several lines
        text = yaml.safe_dump([plain], default_flow_style=True, width=math.inf, default_style='"')
    return text[1:-2]


def _entries(node: yaml.Node, prefix: str, name: str) -> Iterator[Entry]:
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{name} must hold keys and values")
    keys = []
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"{name}, line {line}: a key must be a text")
        keys.append((prefix + key.value, line))
        if isinstance(value, yaml.MappingNode):
            yield from _entries(value, f"{prefix}{key.value}.", name)
        else:
            yield Entry(prefix + key.value, _value(value), line)
    _check_unique(keys, name)


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return None if _is_null(node) else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    return {}  # which no setting takes


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in NULLS


def _check_unique(keys: list[tuple[str, int]], name: str) -> None:
    first: dict[str, int] = {}
    for key, line in keys:
        if key in first:
            raise UsageError(
                f"{name} has '{key}' in line {first[key]} and again in line {line}: keep one"
            )
        first[key] = line
