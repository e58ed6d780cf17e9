"""Other values for the tuning constants of the CUDA kernels, at build time.

`csrc/<op>/cuda_tuning.cuh` holds constants that are chosen by measurement, one per line:

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
TABLE = "cuda_tuning.cuh"
CONSTANT = re.compile(r"^constexpr (int|bool) (k\w+) = ([^;]+);", re.MULTILINE)
VALUES = {"int": "-?(0|[1-9][0-9]{0,8})", "bool": "true|false"}

Changes = Mapping[str, Mapping[str, str]]  # op -> constant -> value


def tables(csrc: Path) -> dict[str, Path]:
    """The header of each op that has one."""
    return {header.parent.name: header for header in sorted(csrc.glob(f"*/{TABLE}"))}


def parse(text: str, csrc: Path) -> dict[str, dict[str, str]]:
    """Reads "op.constant=value ...".

    Args:
        text: The changes, separated by spaces; "" is none.
        csrc: The folder of the ops, whose tables say what is legal.

    Raises:
        BuildError: If an op, a constant or a value is not legal, with what is.
    """
    changes: dict[str, dict[str, str]] = {}
    for change in text.split():
        match = re.fullmatch(r"(\w+)\.(\w+)=(\S+)", change)
        if match is None:
            raise BuildError(f"{TUNING_SWITCH}: {change!r} is not like op.kConstant=1")
        op, name, value = match.groups()
        headers = tables(csrc)
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


def read_by(source: Path, csrc: Path) -> set[str]:
    """The ops whose tables a source includes, itself or through other headers of csrc."""
    seen: set[Path] = set()
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path not in seen and path.exists():
            seen.add(path)
            names = re.findall(r'^#include ["<]([\w./]+)[">]', path.read_text(), re.MULTILINE)
            waiting += [csrc / name for name in names]
    return {path.parent.name for path in seen if path.name == TABLE}


def digest(changes: Changes) -> str:
    """A name for values that are compiled together."""
    pairs = [f"{op}.{k}={v}" for op in sorted(changes) for k, v in sorted(changes[op].items())]
    return hashlib.sha256(" ".join(pairs).encode()).hexdigest()[:12]
