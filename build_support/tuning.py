"""Other values for the tuning constants of the CUDA kernels, at build time.

`csrc/cuda/<op>_tuning.cuh` holds what only a measurement can settle, one constant a line:

    constexpr int kMaskThreads = 256; // of a block, and why

`VIMPAC_KERNELS_TUNING="mask_tokens.kMaskThreads=128 ..."` builds with other values: a changed copy
of the header stands earlier on the include path. Objects are named after the values they were
compiled with, so builds that differ in one op share the objects of all others.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from build_support.toolchain import BuildError

TUNING_SWITCH = "VIMPAC_KERNELS_TUNING"
CONSTANT = re.compile(r"^constexpr (int|bool) (k\w+) = ([^;]+);", re.MULTILINE)
VALUES = {"int": "-?(0|[1-9][0-9]{0,8})", "bool": "true|false"}

Changes = Mapping[str, Mapping[str, str]]  # op -> constant -> value


def tables(folder: Path) -> dict[str, Path]:
    """The header of each op that has one, in csrc/cuda."""
    headers = sorted(folder.glob("*_tuning.cuh"))
    return {header.stem.removesuffix("_tuning"): header for header in headers}


def parse(text: str, folder: Path) -> dict[str, dict[str, str]]:
    """Reads "op.constant=value ...".

    Args:
        text: The changes, separated by spaces; "" is none.
        folder: csrc/cuda, whose tables say what is legal.

    Raises:
        BuildError: If an op, a constant or a value is not legal, with what is.
    """
    changes: dict[str, dict[str, str]] = {}
    for change in text.split():
        match = re.fullmatch(r"(\w+)\.(\w+)=(\S+)", change)
        if match is None:
            raise BuildError(f"{TUNING_SWITCH}: {change!r} is not like op.kConstant=1")
        op, name, value = match.groups()
        headers = tables(folder)
        if op not in headers:
            raise BuildError(f"{TUNING_SWITCH}: {op!r} has no table, only {', '.join(headers)}")
        types = {name: kind for kind, name, _ in CONSTANT.findall(headers[op].read_text())}
        if name not in types:
            raise BuildError(f"{TUNING_SWITCH}: {op} has no {name!r}, only {', '.join(types)}")
        if re.fullmatch(VALUES[types[name]], value) is None:
            raise BuildError(
                f"{TUNING_SWITCH}: {op}.{name} is a constexpr {types[name]}, got {value!r}"
            )
        changes.setdefault(op, {})[name] = value
    return changes


def changed(header: str, values: Mapping[str, str]) -> str:
    """The text of a table with other values."""
    for name, value in values.items():
        header, count = re.subn(
            rf"^(constexpr \w+ {name} = )[^;]+;", rf"\g<1>{value};", header, flags=re.MULTILINE
        )
        assert count == 1, f"{name} stands {count} times in its table"
    return header


def read_by(source: Path) -> set[str]:
    """The ops whose tables a source includes, itself or through other headers of its folder."""
    seen: set[str] = set()
    waiting = [source.name]
    while waiting:
        name = waiting.pop()
        path = source.parent / name
        if name not in seen and path.exists():
            seen.add(name)
            waiting += re.findall(r'^#include ["<]([\w.]+)[">]', path.read_text(), re.MULTILINE)
    return {name.removesuffix("_tuning.cuh") for name in seen if name.endswith("_tuning.cuh")}


def digest(changes: Changes) -> str:
    """A name for values that are compiled together."""
    pairs = [f"{op}.{k}={v}" for op in sorted(changes) for k, v in sorted(changes[op].items())]
    return hashlib.sha256(" ".join(pairs).encode()).hexdigest()[:12]
