"""Fills a configuration: dataclass defaults, then a YAML file, then `key=value` words.

A configuration is a dataclass whose fields are settings, or sections: dataclasses of settings. The
type of a field says how its text is read, so a text stays as it stands (`out=007`), and `setting`
says which values are legal and what they mean. An unknown key is an error that names the nearest
legal one, a wrong value an error that names the right ones.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import yaml

from vimpac.errors import UsageError
from vimpac.paths import is_url
from vimpac.presets import read_config
from vimpac.yaml_text import NULLS, parse, read_entries, write

RENAMED = {"optim.clip": "optim.max_grad_norm"}  # since version 0.1

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Range:
    """The legal numbers, or texts, of a setting."""

    must: str  # as in "lr=-1 must be positive"
    legal: Callable[[Any], bool]
    of: type = float


MOST_CLIPS = 10_000  # of a video
POSITIVE = Range("be positive", lambda x: x > 0)
NOT_NEGATIVE = Range("not be negative", lambda x: x >= 0)
SHARE = Range("lie in [0, 1]", lambda x: 0 <= x <= 1)
BELOW_ONE = Range("lie in [0, 1)", lambda x: 0 <= x < 1)
ABOVE_ZERO = Range("lie in (0, 1]", lambda x: 0 < x <= 1)
SIZE = Range("lie in [1, 65,536]", lambda x: 1 <= x <= 65_536)  # of a network
WEIGHTS = Range("lie in (0, 1,000]", lambda x: 0 < x <= 1000)
WORKERS = Range("lie in [0, 1,024]", lambda x: 0 <= x <= 1024)  # each takes its memory at once
CLIPS = Range("lie in [1, 10,000]", lambda x: 1 <= x <= MOST_CLIPS)
BOXES = Range("lie in [0, 65,536]", lambda x: 0 <= x <= 65_536)  # what mask_tokens takes
SEED = Range("lie in [0, 2^63)", lambda x: 0 <= x < 2**63)
PATH = Range("be a path on this machine, no URL", lambda x: not is_url(x), str)
FOLDER = Range("name a directory on this machine", lambda x: x.strip() and not is_url(x), str)
_FEW = 12  # keys that a message can name
LARGEST = 10**9  # no setting but the seed needs more, and everything can compute with it


def setting(
    default: Any, legal: Range | None = None, doc: str = "", *, of_a_run: bool = True
) -> Any:
    """A field of a configuration.

    Args:
        default: Its value where nothing else is said.
        legal: The values that it takes, if not all of its type; of a tuple, each of them.
        doc: What it means, as `--show` prints it.
        of_a_run: Whether a user can set it; else the program does.
    """
    metadata = {"legal": legal, "doc": doc, "of_a_run": of_a_run}
    return dataclasses.field(default=default, metadata=metadata)


def range_problem(config: Any, prefix: str = "") -> str | None:
    """What is wrong with the first value that is not legal, such as "optim.lr=-1 must ..."."""
    for field in dataclasses.fields(config):
        key, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            problem = range_problem(value, f"{key}.")
            if problem:
                return problem
            continue
        legal: Range | None = field.metadata.get("legal")
        if legal is not None and legal.of is str:
            if not legal.legal(str(value)):
                return f"{key}={value} must {legal.must}"
            continue
        for x in value if isinstance(value, tuple | list) else (value,):
            if isinstance(x, bool) or not isinstance(x, int | float):
                if legal is not None and x is not None:
                    return f"{key}={x!r} must be a number"
                continue
            if isinstance(x, float) and not math.isfinite(x):
                return f"{key}={x} must be finite"
            if legal is not SEED and abs(x) > LARGEST:
                return f"{key}={x} must be within {LARGEST:,} of 0"
            if legal is not None and not legal.legal(x):
                return f"{key}={value} must {legal.must}"
    return None


def type_problem(config: Any) -> str | None:
    """What is wrong with the first value of another type than the field's, as JSON may have it."""
    for name, wanted in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        choices = typing.get_args(wanted)
        legal = (int, float) if wanted is float else (wanted,)
        if not (value in choices if choices else type(value) in legal):
            return f"{name}={value!r} must be {_type_name(wanted)}"
    return None


def check_values(config: Any) -> None:
    """Raises ValueError for the first value of a configuration that is not legal."""
    problem = type_problem(config) or range_problem(config)
    if problem:
        raise ValueError(problem)


def load_config(kind: type[Config], source: str | None, overrides: Sequence[str] = ()) -> Config:
    """Resolves a configuration.

    Args:
        kind: The dataclass of the command.
        source: One of `config_names(command)` or a YAML file; None for the defaults.
        overrides: Words `key=value`, keys dotted: `optim.lr=3e-4`.

    Returns:
        The filled dataclass, every number in its range.

    Raises:
        UsageError: The file, a key or a value is wrong.
    """
    config = kind()
    if source is not None:
        name = f"--config {source}"
        command: str = kind.command  # type: ignore[attr-defined]  # as every command's has
        entries = read_entries(read_config(command, source), name)
        _fill(config, [(key, text, f"{name}, line {line}") for key, text, line in entries])
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


def to_yaml(config: Any, *, comments: bool = False) -> str:
    """The whole configuration as YAML that `load_config` reads back.

    Args:
        config: A configuration.
        comments: Whether to add what each setting means and which values are legal.
    """
    lines = [*_lines(config, "")]
    width = max(len(line) for line, _ in lines if len(line) < 40)
    if not comments:
        width, lines = 0, [(line, "") for line, _ in lines]
    return "".join(
        f"{line:{width}}  # {comment}\n" if comment else f"{line}\n" for line, comment in lines
    )


def _lines(config: Any, indent: str) -> Iterator[tuple[str, str]]:
    """(YAML, comment) of every setting and section."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, data = getattr(config, field.name), field.metadata
        if dataclasses.is_dataclass(value):
            yield f"{indent}{field.name}:", (type(value).__doc__ or "").partition("\n")[0]
            yield from _lines(value, f"{indent}  ")
        elif data.get("of_a_run", True):
            legal = [_type_name(hints[field.name])]
            if data.get("legal"):
                legal = [*legal, f"must {data['legal'].must}"][data["legal"].of is str :]
            comment = f"{data.get('doc', '')} ({', '.join(legal)})"
            yield f"{indent}{field.name}: {write(value)}", comment


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
        elif dataclasses.is_dataclass(section) and text is None:
            continue  # nothing stands below its name
        if key not in legal:
            raise UsageError(f"unknown key '{key}' in {where}{_nearest(key, list(legal))}")
        try:
            value = _convert(text, legal[key])
        except (TypeError, ValueError, OverflowError, RecursionError, yaml.YAMLError):
            name, given = _type_name(legal[key]), "null" if text is None else repr(text)
            raise UsageError(f"{where}: {key} must be {name}, not {given}") from None
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
    close = difflib.get_close_matches(key, same_leaf or legal, 1) or same_leaf
    if section:
        return f": it is a section with the keys {', '.join(section)}"
    if close:
        return f": did you mean '{close[0]}'?"
    few = len(legal) <= _FEW  # of a command that has no --show
    return f": the keys are {', '.join(legal)}" if few else "; --show prints all keys"


def _convert(text: Any, hint: Any) -> Any:
    """A text, or a list of texts, as the annotated type; an error if it is none."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(choice for choice in choices if choice is not type(None))
        return None if text is None or text in NULLS else _convert(text, inner)
    if origin is tuple and choices[-1] is ...:  # any number of them, with or without brackets
        if isinstance(text, str):
            text = parse(text if text.startswith("[") else f"[{text}]")
        if not isinstance(text, list) or not text:
            raise TypeError
        return tuple(_convert(v, choices[0]) for v in text)
    if origin is tuple:
        values = parse(text) if isinstance(text, str) else text
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
    if origin is tuple and choices[-1] is ...:
        return f"[{_type_name(choices[0])}, ...]"
    if origin is tuple:
        return f"[{', '.join(_type_name(c) for c in choices)}]"
    if choices:
        return " or ".join("null" if c is type(None) else _type_name(c) for c in choices)
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]
