"""Builds the CUDA kernels with g++ against the emulator, as a Python module or an executable.

`load()` returns the CUDA kernels of csrc as a module with the functions of
`vimpac_kernels._C_cuda`, taking CPU pointers and ignoring the stream. One object per source,
compiled by ninja in parallel under build/emulator-<mode>/; unchanged sources cost nothing. Modes:
    plain  what the tests load
    asan   AddressSanitizer and UBSan: bounds of shared and global memory, alignment, overflow
    tsan   ThreadSanitizer: races between the threads of a block and between blocks
A sanitized module needs its runtime in the process from the start: `run_under` gives it one.
"""

import ctypes
import fcntl
import functools
import importlib.machinery
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
EMULATOR = ROOT / "tests" / "emulator"
FLAGS = {
    "plain": "-O1 -g1",  # -O2 would take 20 s more to compile, and save the tests 2 s
    "asan": "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined"
    " -fno-sanitize-recover=undefined",
    "tsan": "-O1 -g1 -fsanitize=thread",
}
RUNTIMES = {"plain": (), "asan": ("asan", "ubsan"), "tsan": ("tsan",)}
WARNINGS = "-Wall -Wextra -Wno-unknown-pragmas -Wno-tsan -Wno-psabi"
SCHEDULES = (0, 1, 7)  # ascending, descending, shuffled: each shows what another may hide


@functools.cache
def unavailable() -> str | None:
    """Says why the emulator cannot run here, or None where it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the emulator's fibers need x86-64 Linux"
    missing = [tool for tool in ("g++", "ninja") if find_tool(tool) is None]
    if missing:
        return f"the emulator needs {' and '.join(missing)}"
    if _cuda_headers() is None:
        return "the emulator needs CUDA's headers: install triton or the CUDA toolkit"
    return None


def find_tool(name: str) -> str | None:
    """The path of a tool, pip's before PATH's."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


def _cuda_headers() -> Path | None:
    """CUDA's header folder: Triton's wheel brings one, else the toolkit that nvcc belongs to."""
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "backends" / "nvidia" / "include"
        if (bundled / "cuda_bf16.h").exists():
            return bundled
    if shutil.which("nvcc") is None:
        return None
    command = ["nvcc", "--dryrun", "-E", "-x", "cu", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    top = next((line[7:].strip() for line in said.splitlines() if line.startswith("#$ TOP=")), None)
    return Path(top) / "include" if top else None


def _ninja_file(mode: str, target: str, sources: Iterable[Path], shared: bool) -> str:
    import pybind11

    includes = " ".join(f"-I{path}" for path in (EMULATOR, CSRC))
    system = (_cuda_headers(), pybind11.get_include(), sysconfig.get_path("include"))
    includes += "".join(f" -isystem {path}" for path in system)
    flags = "-std=c++20 -fPIC -fvisibility=hidden -fno-strict-aliasing -pthread"
    werror = "-Werror" if os.environ.get("VIMPAC_KERNELS_WERROR") == "1" else ""  # as in setup.py
    lines = [
        f"flags = {flags} {WARNINGS} {werror} {includes}",
        f"mode = {FLAGS[mode]}",
        "rule compile",
        "  command = g++ -x c++ $mode $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = g++ {FLAGS[mode]} {'-shared' if shared else ''} -pthread $in -o $out",
    ]
    objects = []
    for source in sources:
        objects.append(f"{source.parent.name}-{source.name}.o")
        lines.append(f"build {objects[-1]}: compile {source}")
        if source.name == "module_cuda.cpp":  # passes numbers on, and is the slowest to instrument
            lines.append("  mode = -O0")
    return "\n".join([*lines, f"build {target}: link {' '.join(objects)}", ""])


def build(target: str, sources: Iterable[Path], mode: str = "plain") -> Path:
    """Compiles and links `sources`; a name ending in .so makes a shared library.

    Args:
        target: file name of the result in build/emulator-<mode>/.
        sources: CUDA C++ or C++ files.
        mode: "plain", "asan" or "tsan".

    Returns:
        The path of the result.

    Raises:
        RuntimeError: with the compiler's words.
    """
    folder = ROOT / "build" / f"emulator-{mode}"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / f"{target}.ninja"
    text = _ninja_file(mode, target, sources, target.endswith(".so"))
    command = [find_tool("ninja") or "ninja", "-C", str(folder), "-f", recipe.name, target]
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # not for compilers
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests in several processes build once
        if not recipe.exists() or recipe.read_text() != text:
            recipe.write_text(text)
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"the emulated kernels do not compile:\n{done.stdout}{done.stderr}")
    return folder / target


@functools.cache
def load(mode: str = "plain") -> ModuleType:
    """Builds the CUDA kernels of all ops: the functions of `_C_cuda` on CPU pointers."""
    sources = [*sorted(CSRC.glob("*/cuda*.cu")), CSRC / "module_cuda.cpp", EMULATOR / "control.cpp"]
    path = build(f"_C_cuda-{mode}.so", sources, mode)
    loader = importlib.machinery.ExtensionFileLoader("_C_cuda", str(path))
    spec = importlib.util.spec_from_loader("_C_cuda", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def set_schedule(module: ModuleType, seed: int, workers: int = 1) -> None:
    """Chooses the schedule of the launches that follow.

    Args:
        module: what `load` returned.
        seed: 0 runs threads and blocks in ascending order, 1 in descending order, n shuffled.
        workers: blocks in flight at a time.
    """
    ctypes.CDLL(str(module.__file__)).emulator_set_schedule(seed, workers)


def sanitizer_environment(mode: str) -> dict[str, str]:
    """The environment in which a process can load what was built under `mode`."""
    if mode == "plain":
        return dict(os.environ)
    where = [
        subprocess.run(
            ["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in RUNTIMES[mode]
    ]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(where),
        "OMP_NUM_THREADS": "1",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # Python, torch and their threads are not instrumented. A fiber costs a millisecond, most of
        # it for memory of its history.
        "TSAN_OPTIONS": "exitcode=66:ignore_noninstrumented_modules=1:history_size=0",
    }


def run_under(mode: str, arguments: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """Runs `python <arguments>` from the repository's root with the sanitizer's runtime loaded.

    Args:
        mode: "plain", "asan" or "tsan".
        arguments: for example ["-m", "pytest", "tests/kernels/test_x.py", "--emulator-mode=asan"].
    """
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=sanitizer_environment(mode),
        capture_output=True,
        text=True,
    )
