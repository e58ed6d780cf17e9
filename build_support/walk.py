"""How far it is from a public function to its kernel: `python build_support/walk.py`.

Calls every op of `vimpac_kernels.OPS` once and looks at the stack when its kernel starts: the
functions of this package that are on the way, and the files they are in. Counts the lines that do
nothing but carry arguments, too. Exits with 1 past a limit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vimpac_kernels"
MOST_CALLS, MOST_FILES = 6, 3  # from the public function to the kernel, both included
MOST_CARRYING = 84  # for each op
CARRYING = (  # files of which every line only carries arguments
    *("csrc/module_*.cpp", "csrc/ops.hpp", "csrc/bind*.hpp", "csrc/*/arguments.hpp"),
    "vimpac_kernels/runtime/native.py",
)


def carrying_lines() -> dict[Path, int]:
    """The lines of each file of `CARRYING`."""
    files = sorted({path for pattern in CARRYING for path in ROOT.glob(pattern)})
    return {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}


def walk(op: str) -> tuple[list[tuple[str, str]], int]:
    """The package's calls on the way from an op to its first kernel, and how many it made in all.

    A call is (file, function). Those that are over when the kernel starts, such as checks, are not
    on the way.
    """
    import vimpac_kernels
    from vimpac_kernels.runtime import registry

    call = vimpac_kernels.OPS[op].example("cpu")
    function, kernels = getattr(vimpac_kernels, op), registry.extension("cpu")
    found: list[list[tuple[str, str]]] = []
    calls = 0

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call" and Path(frame.f_code.co_filename).is_relative_to(PACKAGE)
        if event == "c_call" and getattr(argument, "__name__", "").startswith(op):
            found.append(list(_stack(frame)))

    with torch.no_grad():
        function(**call, impl="cpu")  # imports and caches are no part of the way
        sys.setprofile(watch)
        try:
            function(**call, impl="cpu")
        finally:
            sys.setprofile(None)
    if not found:
        sys.exit(f"error: no kernel of {kernels.__name__} was called for {op}")
    return found[0], calls


def _stack(frame: FrameType | None) -> Iterator[tuple[str, str]]:
    """The functions of the package that are being called, the outermost first."""
    if frame is None:
        return
    yield from _stack(frame.f_back)
    path = Path(frame.f_code.co_filename)
    if path.is_relative_to(PACKAGE):
        yield str(path.relative_to(ROOT)), frame.f_code.co_name


def problems() -> list[str]:
    """What is past a limit, one line each; prints the counts."""
    from vimpac_kernels import OPS

    most = MOST_CARRYING * len(OPS)
    found = []
    for op in OPS:
        way, calls = walk(op)
        files = dict.fromkeys(file for file, _ in way)
        print(f"{op}: {len(way)} calls through {len(files)} files, of {calls} calls in all")
        print("".join(f"    {file}: {function}\n" for file, function in way), end="")
        if len(way) > MOST_CALLS or len(files) > MOST_FILES:
            found.append(f"{op}: at most {MOST_CALLS} calls through {MOST_FILES} files")
    lines = carrying_lines()
    total = sum(lines.values())
    print(f"lines that only carry arguments: {total}")
    print("".join(f"    {count:4} {file}\n" for file, count in lines.items()), end="")
    if total > most:
        found.append(f"{total} lines carry arguments, at most {most}")
    return found


def main() -> int:
    """Prints every count, then every problem; 1 if there is one."""
    found = problems()
    for problem in found:
        print(f"error: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
