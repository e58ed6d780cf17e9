"""Fills a configuration: dataclass defaults, then a preset or YAML file, then `key=value` words.

An unknown key is an error that names the nearest legal one, a value of the wrong type an error
that names the right one.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from vimpac.errors import UsageError

PRESETS = Path(__file__).with_name("presets")

Config = TypeVar("Config")


def load_config(kind: type[Config], source: str | None, overrides: Sequence[str] = ()) -> Config:
    """Resolves a configuration.

    Args:
        kind: The dataclass of the command.
        source: A preset's name or a YAML file; None for the defaults.
        overrides: Words `key=value`, keys dotted: `optim.lr=3e-4`.

    Returns:
        The filled dataclass.

    Raises:
        UsageError: The preset, the file, a key or a value is wrong.
    """
    config = kind()
    if source is not None:
        for key, value in _leaves(_read_yaml(source)):
            _set(config, key, value, source)
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"'{word}' is not of the form key=value")
        _set(config, key, _parse(text), word)
    return config


def to_yaml(config: object) -> str:
    """The whole configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)  # type: ignore[call-overload]


def presets() -> list[str]:
    """Names of the presets."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def _read_yaml(source: str) -> dict:
    file = PRESETS / f"{source}.yaml" if source in presets() else Path(source)
    if not file.is_file():
        raise UsageError(f"--config {source}: no such file; presets: {', '.join(presets())}")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = str(error).replace("\n", " ")
        raise UsageError(f"--config {source} is no YAML: {line}") from error
    if not isinstance(values or {}, dict):
        raise UsageError(f"--config {source} must hold keys and values")
    return values or {}


def _leaves(values: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _keys(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, type) of every leaf."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _keys(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def _set(config: object, key: str, value: Any, where: str) -> None:
    legal = dict(_keys(type(config)))
    if key not in legal:
        raise UsageError(f"unknown key '{key}' in {where}{_nearest(key, list(legal))}")
    try:
        converted = _convert(value, legal[key])
    except (TypeError, ValueError, OverflowError):  # a whole number that no float holds
        name = _type_name(legal[key])
        raise UsageError(f"{where}: {key} must be {name}, not {value!r}") from None
    *parents, last = key.split(".")
    target = config
    for parent in parents:
        target = getattr(target, parent)
    setattr(target, last, converted)


def _nearest(key: str, legal: list[str]) -> str:
    """What the user may have meant."""
    same_leaf = [k for k in legal if k.rpartition(".")[2] == key.rpartition(".")[2]]
    section = [k for k in legal if k.startswith(f"{key}.")]
    close = same_leaf or difflib.get_close_matches(key, legal, 1, 0.0)
    if section:
        return f": it is a section with the keys {', '.join(section)}"
    return f": did you mean '{close[0]}'?"


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        return text


def _convert(value: Any, hint: Any) -> Any:
    """`value` as the annotated type; TypeError or ValueError if it is none."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(choice for choice in choices if choice is not type(None))
        return None if value is None else _convert(value, inner)
    if origin is Literal:
        value = "none" if value is None and "none" in choices else value
        if value not in choices:
            raise ValueError
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(choices):
            raise TypeError
        return tuple(_convert(v, h) for v, h in zip(value, choices, strict=True))
    if hint is float and not isinstance(value, bool):
        return float(value)  # YAML reads 1e-3, without a dot, as a string
    if hint is str and value is not None and not isinstance(value, dict | list):
        return str(value)
    if type(value) is not hint:
        raise TypeError
    return value


def _type_name(hint: Any) -> str:
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(choices)
    if origin is tuple:
        return f"[{', '.join(_type_name(c) for c in choices)}]"
    if choices:
        return " or ".join("null" if c is type(None) else _type_name(c) for c in choices)
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]


def _plain(value: Any) -> Any:
    """Tuples as lists, which YAML can express."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
