"""The build on a miniature source tree with a stand-in for nvcc: what is built, kept and said."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
BUILD = ROOT / "build" / f"ninja-{SUFFIX.strip('.').removesuffix('.so')}"

MODULE = """
#include <Python.h>
static PyModuleDef definition = {{PyModuleDef_HEAD_INIT, "{name}", 0, -1, 0, 0, 0, 0, 0}};
PyMODINIT_FUNC PyInit_{name}() {{ return PyModule_Create(&definition); }}
"""
NVCC = """#!/bin/sh
case "$*" in
  *--dryrun*) echo '#$ TOP={root}' >&2 ;;
  *--list-gpu-arch*) echo compute_80; echo compute_90 ;;
  *) echo 'kernel.cu(1): error: no such intrinsic'; exit 1 ;;
esac
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="building needs Linux and g++"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The real build code over one empty kernel; bindings without pybind11 compile in no time."""
    tree = tmp_path / "source tree"  # a space, as in many home folders
    shutil.copytree(ROOT / "build_support", tree / "build_support")
    shutil.copy(ROOT / "setup.py", tree)
    (tree / "vimpac_kernels").mkdir()
    (tree / "csrc/op").mkdir(parents=True)
    (tree / "csrc/module_cpu.cpp").write_text(MODULE.format(name="_C_cpu"))
    (tree / "csrc/op/cpu.cpp").write_text("namespace VIMPAC_ISA { int answer() { return 42; } }")
    return tree


@pytest.fixture
def broken_toolkit(tree: Path, tmp_path: Path) -> Path:
    """A CUDA part in the tree, and a toolkit whose compiler finds an error in every kernel."""
    (tree / "csrc/module_cuda.cpp").write_text(MODULE.format(name="_C_cuda"))
    (tree / "csrc/op/cuda.cu").write_text("")
    toolkit = tmp_path / "toolkit"
    for name in ("include/cuda_runtime.h", "lib64/libcudart_static.a", "bin/nvcc"):
        (toolkit / name).parent.mkdir(parents=True, exist_ok=True)
        (toolkit / name).write_text("")
    (toolkit / "bin/nvcc").write_text(NVCC.format(root=toolkit))
    (toolkit / "bin/nvcc").chmod(0o755)
    return toolkit


def _build(tree: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "VIMPAC_KERNELS_"))
    }
    return subprocess.run(
        [sys.executable, "setup.py", *(command or ("build_ext", "--inplace"))],
        cwd=tree, env={**clean, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def _module(tree: Path, name: str) -> Path:
    return tree / "vimpac_kernels" / (name + SUFFIX)


def test_second_build_does_nothing(tree: Path) -> None:
    """Neither objects nor the module are touched when nothing changed."""
    first = _build(tree)
    assert first.returncode == 0, first.stdout
    before = _module(tree, "_C_cpu").stat()
    second = _build(tree)
    assert "no work to do" in second.stdout
    after = _module(tree, "_C_cpu").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_warnings_stop_a_build_only_where_asked(tree: Path) -> None:
    """A compiler that warns of more than ours must not keep a user from installing."""
    (tree / "csrc/op/cpu.cpp").write_text(
        "namespace VIMPAC_ISA { int answer() { int unused; return 42; } }"
    )
    built = _build(tree)
    assert built.returncode == 0 and "unused" in built.stdout
    (tree / "csrc/op/cpu.cpp").touch()
    assert _build(tree, VIMPAC_KERNELS_WERROR="1").returncode != 0


def test_failing_nvcc_leaves_the_cpu_module(tree: Path, broken_toolkit: Path) -> None:
    """The compiler's words are shown, and what was installed before still works."""
    assert _build(tree, VIMPAC_KERNELS_CPU_ONLY="1").returncode == 0
    before = _module(tree, "_C_cpu").read_bytes()
    (tree / "csrc/op/cpu.cpp").write_text("namespace VIMPAC_ISA { int answer() { return 1; } }")
    failed = _build(tree, CUDA_HOME=str(broken_toolkit))
    assert failed.returncode != 0
    assert "no such intrinsic" in failed.stdout and "Traceback" not in failed.stdout
    assert "VIMPAC_KERNELS_CPU_ONLY=1 leaves the CUDA kernels out" in failed.stdout
    assert _module(tree, "_C_cpu").read_bytes() == before
    assert not _module(tree, "_C_cuda").exists()


def test_cpu_only_removes_the_cuda_module(tree: Path, broken_toolkit: Path) -> None:
    """The switch leaves nvcc alone, and no stale CUDA module behind."""
    _module(tree, "_C_cuda").write_text("stale")
    result = _build(tree, CUDA_HOME=str(broken_toolkit), VIMPAC_KERNELS_CPU_ONLY="1")
    assert result.returncode == 0, result.stdout
    assert "CUDA kernels are left out: VIMPAC_KERNELS_CPU_ONLY=1" in result.stdout
    assert _module(tree, "_C_cpu").exists() and not _module(tree, "_C_cuda").exists()


def test_incomplete_toolkit_leaves_cuda_out(tree: Path, broken_toolkit: Path) -> None:
    """As pip's nvcc without the headers of the runtime: the rest is built."""
    (broken_toolkit / "include/cuda_runtime.h").unlink()
    result = _build(tree, CUDA_HOME=str(broken_toolkit))
    assert result.returncode == 0, result.stdout
    assert "CUDA kernels are left out: cuda_runtime.h is not in" in result.stdout
    assert _module(tree, "_C_cpu").exists() and not _module(tree, "_C_cuda").exists()


def _missing_tools(tree: Path, tmp_path: Path) -> dict[str, dict[str, str]]:
    """Environments that lack a tool, by what the error has to name; Python finds its modules."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    finder = "import importlib.util as u; find = u.find_spec\nu.find_spec = "
    hide = "lambda name, *rest: None if name == 'pybind11' else find(name, *rest)\n"
    (hidden / "sitecustomize.py").write_text(finder + hide)
    return {
        "install g++": {"PATH": str(tmp_path), "CXX": ""},
        "pip install pybind11": {"PYTHONPATH": str(hidden)},
    }


@pytest.mark.parametrize("tool", ["install g++", "pip install pybind11"])
def test_install_goes_on_without_a_tool(tree: Path, tmp_path: Path, tool: str) -> None:
    """One line names the fix; the build, as a part of an install, succeeds without kernels."""
    result = _build(tree, "build", **_missing_tools(tree, tmp_path)[tool])
    assert result.returncode == 0, result.stdout
    lines = [line for line in result.stdout.splitlines() if line.startswith("vimpac_kernels:")]
    assert len(lines) == 1 and "left out" in lines[0] and tool in lines[0]
    assert not list(tree.rglob("*.so"))


@pytest.mark.parametrize("tool", ["install g++", "pip install pybind11"])
def test_build_that_is_asked_for_fails_without_a_tool(
    tree: Path, tmp_path: Path, tool: str
) -> None:
    """An edited kernel would have no effect. The modules of the last build stay."""
    assert _build(tree).returncode == 0
    before = _module(tree, "_C_cpu").stat().st_mtime_ns
    (tree / "csrc/op/cpu.cpp").write_text("namespace VIMPAC_ISA { int answer() { return 43; } }")
    result = _build(tree, **_missing_tools(tree, tmp_path)[tool])
    assert result.returncode != 0, result.stdout
    lines = [line for line in result.stdout.splitlines() if line.startswith("vimpac_kernels:")]
    assert len(lines) == 1 and "no kernel was compiled" in lines[0] and tool in lines[0]
    assert _module(tree, "_C_cpu").stat().st_mtime_ns == before


@pytest.fixture
def toolchain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """build_support.toolchain of this checkout."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("build_support.toolchain")


def test_missing_python_tools_are_named(
    toolchain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No ninja, no pybind11: the pip command to run."""
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(toolchain.Missing, match="pip install pybind11"):
        toolchain.find_pybind11()
    with pytest.raises(toolchain.Missing, match="pip install ninja"):
        toolchain.find_ninja()


def test_usual_folder_is_searched_where_nothing_names_a_toolkit(
    toolchain: ModuleType, monkeypatch: pytest.MonkeyPatch, broken_toolkit: Path, tmp_path: Path
) -> None:
    """PATH often lacks the toolkit."""
    for name in ("CUDA_HOME", "CUDA_PATH", toolchain.CPU_ONLY_SWITCH, "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolchain, "DEFAULT_TOOLKIT", str(broken_toolkit))
    assert toolchain.find_nvcc().command == str(broken_toolkit / "bin/nvcc")


def test_architectures_follow_the_list(toolchain: ModuleType) -> None:
    """Torch's notation; the default drops what nvcc does not know, a list may not."""
    flags = toolchain.gencode_flags
    known = ["compute_80", "compute_90", "compute_120"]
    assert flags("9.0a 12.0+PTX", known) == (
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    )
    assert flags(None, known) == tuple(
        f"-gencode=arch=compute_80,code={code}"
        for code in ("sm_80", "sm_90", "sm_120", "compute_80")
    )
    with pytest.raises(toolchain.Missing, match="install CUDA 12.8"):
        flags(None, ["compute_70"])
    with pytest.raises(toolchain.BuildError, match="does not know 10.0"):
        flags("8.0;10.0", known)
    with pytest.raises(toolchain.BuildError, match="'Hopper' is not like"):
        flags("Hopper", known)


TABLE = """
constexpr int kWarps = 4; // of a block
constexpr bool kHeld = true; // operands in registers
"""


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    """Two CUDA sources of which one reads the tuning table of `op`, through another header."""
    csrc = tmp_path / "csrc"
    for op in ("op", "other"):
        (csrc / op).mkdir(parents=True)
    (csrc / "op/cuda_tuning.cuh").write_text(TABLE)
    (csrc / "op/launch.cuh").write_text("#include <op/cuda_tuning.cuh>\n")
    (csrc / "op/cuda.cu").write_text('#include "op/launch.cuh"\n')
    (csrc / "other/cuda.cu").write_text("#include <cstdint>\n")
    return csrc


def test_tuned_build_compiles_a_changed_copy_for_those_who_read_it(
    toolchain: ModuleType, kernels: Path, tmp_path: Path
) -> None:
    """Builds that differ in one op share the objects of the others, in one build.ninja."""
    tuning = importlib.import_module("build_support.tuning")
    ninja_file = importlib.import_module("build_support.ninja_file")
    nvcc = toolchain.Nvcc("nvcc", tmp_path, tmp_path, ())
    plan = ninja_file.NinjaFile(tmp_path, "g++", tmp_path, nvcc)
    plan.add_cuda_module(nvcc)
    plan.add_cuda_module(nvcc, tuning.parse("op.kWarps=8 op.kHeld=false", kernels), "second")
    build = tmp_path / "build"
    plan.write(build)
    (copy,) = build.glob("tuned*/*/*")
    assert copy.parent.name == "op" and copy.name == "cuda_tuning.cuh"
    assert copy.read_text() == TABLE.replace("kWarps = 4", "kWarps = 8").replace("true", "false")
    rules = (build / "build.ninja").read_text().splitlines()
    made = [line.split()[1].rstrip(":") for line in rules if line.startswith("build o")]
    mark = copy.parents[1].name.removeprefix("tuned")
    assert sorted(made) == sorted(["op/cuda.o", "other/cuda.o", f"op/cuda{mark}.o"])
    (flags,) = (line for line in rules if f"-Ituned{mark}" in line)
    assert flags.index(f"-Ituned{mark}") < flags.index(str(kernels))
    links = [line.split() for line in rules if ": link " in line]
    assert [line[-2:] for line in links] == [
        ["op/cuda.o", "other/cuda.o"],
        [f"op/cuda{mark}.o", "other/cuda.o"],
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("op.kWarps", "is not like op.kConstant=1"),
        ("sum.kWarps=8", "'sum' has no table, only op"),
        ("op.kTiles=8", "op has no 'kTiles', only kWarps, kHeld"),
        ("op.kWarps=many", "op.kWarps is a constexpr int, got 'many'"),
        ("op.kWarps=08", "op.kWarps is a constexpr int, got '08'"),
        ("op.kHeld=1", "op.kHeld is a constexpr bool, got '1'"),
    ],
)
def test_change_that_is_not_legal_names_what_is(
    toolchain: ModuleType, kernels: Path, change: str, said: str
) -> None:
    tuning = importlib.import_module("build_support.tuning")
    with pytest.raises(toolchain.BuildError, match=re.escape(said)):
        tuning.parse(change, kernels)


def test_every_tuning_constant_can_be_changed_and_has_its_reason(toolchain: ModuleType) -> None:
    """A line of another form would be compiled, and a change of it refused."""
    tuning = importlib.import_module("build_support.tuning")
    for header in tuning.tables(ROOT / "csrc").values():
        lines = [ln for ln in header.read_text().splitlines() if "constexpr" in ln]
        for line in lines:
            assert re.match(tuning.CONSTANT.pattern + r" +// \S", line), line
        names = [re.search(r"k\w+", line)[0] for line in lines]
        assert names and len(set(names)) == len(names)


def test_kernels_leave_no_weak_symbols() -> None:
    """The linker merges weak symbols: one in an AVX-512 object could replace the portable one."""
    objects = list(BUILD.glob("*/cpu*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip(f"needs nm and the objects of an in-tree build in {BUILD}")
    listing = subprocess.run(["nm", *map(str, objects)], stdout=subprocess.PIPE, text=True).stdout
    weak = [line for line in listing.splitlines() if line[16:19] in (" W ", " V ", " u ")]
    assert not weak
