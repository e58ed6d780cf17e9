"""Fills a configuration: dataclass defaults, then a YAML file, then `key=value` words.

A configuration is a dataclass whose fields are settings, or sections: dataclasses of settings. The
type of a field says how its text is read, so a text stays as it stands (`out=007`), and `setting`
says which numbers are legal. An unknown key is an error that names the nearest legal one, a wrong
value an error that names the right ones.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from vimpac.errors import UsageError

CONFIGS = Path(__file__).with_name("configs")
RENAMED = {"optim.clip": "optim.max_grad_norm"}  # since version 0.1

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Range:
    """The legal numbers of a setting."""

    must: str  # as in "lr=-1 must be positive"
    legal: Callable[[float], bool]


POSITIVE = Range("be positive", lambda x: x > 0)
NOT_NEGATIVE = Range("not be negative", lambda x: x >= 0)
SHARE = Range("lie in [0, 1]", lambda x: 0 <= x <= 1)
BELOW_ONE = Range("lie in [0, 1)", lambda x: 0 <= x < 1)
SIZE = Range("lie in [1, 65,536]", lambda x: 1 <= x <= 65_536)  # of a network
SEED = Range("lie in [0, 2^63)", lambda x: 0 <= x < 2**63)
_LARGEST = 10**9  # no setting but the seed needs more, and everything can compute with it


def setting(default: Any, legal: Range | None = None, *, of_a_run: bool = True) -> Any:
    """A field of a configuration.

    Args:
        default: Its value where nothing else is said.
        legal: The numbers that it takes; of a tuple, each of them.
        of_a_run: Whether a user can set it; else the program does.
    """
    return dataclasses.field(default=default, metadata={"legal": legal, "of_a_run": of_a_run})


def range_problem(config: Any, prefix: str = "") -> str | None:
    """What is wrong with the first number that is out of range, such as "optim.lr=-1 must ..."."""
    for field in dataclasses.fields(config):
        key, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            problem = range_problem(value, f"{key}.")
            if problem:
                return problem
            continue
        legal: Range | None = field.metadata.get("legal")
        for x in value if isinstance(value, tuple | list) else (value,):
            if isinstance(x, bool) or not isinstance(x, int | float):
                if legal is not None and x is not None:
                    return f"{key}={x!r} must be a number"
                continue
            if isinstance(x, float) and not math.isfinite(x):
                return f"{key}={x} must be finite"
            if legal is not SEED and abs(x) > _LARGEST:
                return f"{key}={x} must be within {_LARGEST:,} of 0"
            if legal is not None and not legal.legal(x):
                return f"{key}={value} must {legal.must}"
    return None


def load_config(kind: type[Config], source: str | None, overrides: Sequence[str] = ()) -> Config:
    """Resolves a configuration.

    Args:
        kind: The dataclass of the command.
        source: One of `config_names()` or a YAML file; None for the defaults.
        overrides: Words `key=value`, keys dotted: `optim.lr=3e-4`.

    Returns:
        The filled dataclass, every number in its range.

    Raises:
        UsageError: The file, a key or a value is wrong.
    """
    config = kind()
    if source is not None:
        _fill(config, [(key, text, source) for key, text in _leaves(_read_yaml(source))])
    words = []
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"'{word}' is not of the form key=value")
        words.append((key, text, word))
    _fill(config, words)
    problem = range_problem(config)
    if problem:
        raise UsageError(problem)
    return config


def to_yaml(config: object) -> str:
    """The whole configuration as YAML that `load_config` reads back."""
    values = dataclasses.asdict(config)  # type: ignore[call-overload]  # a dataclass
    plain: dict[str, Any] = {}
    for key, _ in _keys(type(config)):
        *sections, name = key.split(".")
        into, value = plain, values
        for section in sections:
            into, value = into.setdefault(section, {}), value[section]
        into[name] = list(value[name]) if isinstance(value[name], tuple) else value[name]
    return yaml.safe_dump(plain, sort_keys=False)


def config_names() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(file.stem for file in CONFIGS.glob("*.yaml"))


def _read_yaml(source: str) -> dict:
    names = config_names()
    file = CONFIGS / f"{source}.yaml" if source in names else Path(source)
    if not file.is_file():
        raise UsageError(f"--config {source}: no such file; there are also {', '.join(names)}")
    try:
        values = yaml_texts(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        line = str(error).replace("\n", " ")
        raise UsageError(f"--config {source} is no YAML: {line}") from error
    if not isinstance(values or {}, dict):
        raise UsageError(f"--config {source} must hold keys and values")
    return values or {}


def yaml_texts(text: str) -> Any:
    """YAML whose scalars all stay texts; the type of a field says what a text means."""
    return yaml.load(text, Loader=yaml.BaseLoader)


def _leaves(values: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _keys(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, type) of every setting."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _keys(typing.cast(type, hint), f"{prefix}{field.name}.")
        elif field.metadata.get("of_a_run", True):
            yield f"{prefix}{field.name}", hint


def _fill(config: Any, words: list[tuple[str, Any, str]]) -> None:
    """Sets (dotted key, text, where it stands); a section is made anew with all of its own."""
    legal = dict(_keys(type(config)))
    sections: dict[str, dict[str, Any]] = {}
    for key, text, where in words:
        section = getattr(config, key, None)
        if dataclasses.is_dataclass(section) and hasattr(section, "shorthand"):
            key = f"{key}.{section.shorthand}"
        if key not in legal:
            raise UsageError(f"unknown key '{key}' in {where}{_nearest(key, list(legal))}")
        try:
            value = _convert(text, legal[key])
        except (TypeError, ValueError, OverflowError, RecursionError, yaml.YAMLError):
            name = _type_name(legal[key])
            raise UsageError(f"{where}: {key} must be {name}, not {text!r}") from None
        name, _, inner = key.partition(".")
        if inner:
            sections.setdefault(name, {})[inner] = value
        else:
            setattr(config, name, value)
    for name, values in sections.items():
        section = getattr(config, name)
        try:
            if "name" in values and hasattr(section, "named"):
                section = section.named(values["name"])  # a preset, which the others change
            setattr(config, name, dataclasses.replace(section, **values))
        except ValueError as error:
            raise UsageError(f"{name}.{error}") from None


def _nearest(key: str, legal: list[str]) -> str:
    """What the user may have meant."""
    if key in RENAMED:
        return f": it is '{RENAMED[key]}' now"
    same_leaf = [k for k in legal if k.rpartition(".")[2] == key.rpartition(".")[2]]
    section = [k for k in legal if k.startswith(f"{key}.")]
    close = same_leaf or difflib.get_close_matches(key, legal, 1)
    if section:
        return f": it is a section with the keys {', '.join(section)}"
    return f": did you mean '{close[0]}'?" if close else "; --show prints all keys"


def _convert(text: Any, hint: Any) -> Any:
    """A text, or a list of texts, as the annotated type; an error if it is none."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(choice for choice in choices if choice is not type(None))
        return None if text in ("null", "Null", "NULL", "~", "") else _convert(text, inner)
    if origin is tuple:
        values = yaml_texts(text) if isinstance(text, str) else text
        if not isinstance(values, list) or len(values) != len(choices):
            raise TypeError
        return tuple(_convert(v, h) for v, h in zip(values, choices, strict=True))
    if not isinstance(text, str):
        raise TypeError
    if hint is str:
        return text
    if origin is Literal:
        if text not in choices:
            raise ValueError
        return text
    if hint is int:
        return int(text)  # YAML 1.1 reads 010 as 8 and 1:30 as 90
    if hint is float and text not in (".inf", "-.inf", ".nan"):
        return float(text)
    value = yaml.safe_load(text)
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
