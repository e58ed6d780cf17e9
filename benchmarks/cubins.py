"""Reads cubins with the tools of Triton's wheel: resources, instruction counts, occupancy."""

from __future__ import annotations

import collections
import math
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

# Instructions that are counted: tensor-core products, loads and stores and the wide ones among
# them, loads by copy engines, spills.
INSTRUCTIONS = {
    "HMMA": r"HMMA",
    "HGMMA": r"HGMMA",
    "UTCMMA": r"UTC\w*MMA",
    "LDG.128": r"LDG\.[\w.]*(128|256)",
    "LDG": r"LDG\.",
    "STG.128": r"STG\.[\w.]*(128|256)",
    "STG": r"STG\.",
    "LDGSTS": r"LDGSTS",
    "LDGSTS.128": r"LDGSTS\.[\w.]*128",
    "LDSM": r"LDSM",
    "STL": r"STL",
    "LDL": r"LDL",
}
SHARED_RESERVED = 1024  # bytes that each block of sm_80 and later loses to the system


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor can hold."""

    warps: int
    blocks: int
    registers: int
    shared: int  # bytes


MULTIPROCESSORS = {
    80: Multiprocessor(64, 32, 65536, 164 << 10),
    90: Multiprocessor(64, 32, 65536, 228 << 10),
    100: Multiprocessor(64, 32, 65536, 228 << 10),
}


@dataclass
class Kernel:
    """One compiled kernel; `counts` by the names of INSTRUCTIONS."""

    name: str
    architecture: int
    registers: int
    stack: int
    static_shared: int
    warps: int
    dynamic_shared: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def shared(self) -> int:
        """Bytes of shared memory of one block."""
        return self.static_shared + self.dynamic_shared

    @property
    def spills(self) -> bool:
        """Whether it keeps anything in local memory."""
        return self.stack > 0 or self.counts["STL"] > 0 or self.counts["LDL"] > 0

    @property
    def matrix_products(self) -> int:
        """Tensor-core instructions of any generation."""
        return self.counts["HMMA"] + self.counts["HGMMA"] + self.counts["UTCMMA"]

    @property
    def narrow_stores(self) -> int:
        """Stores to global memory of less than 16 bytes."""
        return self.counts["STG"] - self.counts["STG.128"]

    def occupancy(self) -> float:
        """Resident warps over what a multiprocessor holds."""
        sm = MULTIPROCESSORS[self.architecture]
        registers = max(1, math.ceil(self.registers * 32 / 256)) * 256  # of a warp
        shared = math.ceil((self.shared + SHARED_RESERVED) / 128) * 128
        blocks = min(
            sm.warps // self.warps,
            sm.blocks,
            sm.registers // 4 // registers * 4 // self.warps,  # in each of four partitions
            sm.shared // shared,
        )
        return blocks * self.warps / sm.warps


def tool(name: str) -> str:
    """The path of cuobjdump, nvdisasm or ptxas: Triton's wheel brings them."""
    from triton import knobs

    return str(getattr(knobs.nvidia, name).path)


def _run(*command: object) -> str:
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def demangle(names: list[str]) -> dict[str, str]:
    """Mangled name -> template name without namespaces and parameters."""
    if shutil.which("c++filt") is None or not names:
        return {name: name for name in names}
    readable = _run("c++filt", *names).splitlines()
    short = (re.sub(r"\(anonymous namespace\)::|\bvimpac::|^void ", "", text) for text in readable)
    return {name: text.split("(")[0] for name, text in zip(names, short, strict=True)}


def _opcodes(cubin: Path) -> dict[str, collections.Counter[str]]:
    """Mangled name -> how often each SASS opcode occurs."""
    found: dict[str, collections.Counter[str]] = {}
    counter: collections.Counter[str] = collections.Counter()
    for line in _run(tool("nvdisasm"), "-c", cubin).splitlines():
        if section := re.match(r"\.text\.(\S+):", line):
            counter = found[section[1]] = collections.Counter()
        elif code := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            counter[code[1]] += 1
    return found


def _threads(cubin: Path) -> dict[str, int]:
    """Mangled name -> threads of its launch bounds."""
    text = _run(tool("cuobjdump"), "-elf", cubin)
    bounds = {}
    for section in re.split(r"\n(?=\.nv\.info\.)", text):
        name = re.match(r"\.nv\.info\.(\S+)", section)
        values = re.search(
            r"EIATTR_(?:MAX_THREADS|REQNTID)\s+Format:\s*\S+\s+Value:\s*(.*)", section
        )
        if name and values:
            bounds[name[1]] = math.prod(int(v, 16) for v in values[1].split())
    return bounds


def read(cubin: Path, architecture: int) -> list[Kernel]:
    """The kernels of a cubin.

    Args:
        cubin: path of the file.
        architecture: 80, 90 or 100.
    """
    usage = re.findall(
        r"Function (\S+?):?\s*\n\s*(REG:.*)", _run(tool("cuobjdump"), "-res-usage", cubin)
    )
    opcodes, threads = _opcodes(cubin), _threads(cubin)
    names = demangle([name for name, _ in usage])
    kernels = []
    for mangled, line in usage:
        numbers = {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED):(\d+)", line)}
        counts = {
            kind: sum(n for code, n in opcodes[mangled].items() if re.match(pattern, code))
            for kind, pattern in INSTRUCTIONS.items()
        }
        reserved = SHARED_RESERVED if architecture >= 90 else 0  # counted as the kernel's own
        kernels.append(
            Kernel(
                names[mangled],
                architecture,
                numbers["REG"],
                numbers["STACK"],
                max(0, numbers["SHARED"] - reserved),
                math.ceil(threads.get(mangled, 1024) / 32),
                counts=counts,
            )
        )
    return kernels
