"""Imports go one way: vimpac, benchmarks, tests -> vimpac_kernels -> an op -> runtime.

`vimpac` keeps to the public names. Ops do not import each other, and nothing that `import
vimpac_kernels` runs imports Triton or a compiled module.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vimpac_kernels.runtime import registry

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = {"vimpac_kernels", "vimpac_kernels.reference", "vimpac_kernels.layers"}
# What the second system, vimpac.simvtp, does not use; it shares the rest of vimpac.
VIMPAC_S_OWN = (
    "vimpac.config",
    "vimpac.checkpoints.description",
    "vimpac.checkpoints.model_dir",
    "vimpac.checkpoints.released",
    "vimpac.checkpoints.version_01",
    "vimpac.demo",
    "vimpac.eval",
    "vimpac.model",
    "vimpac.pictures",
    "vimpac.tokenizers",
    "vimpac.tokens",
    "vimpac.train.batches",
    "vimpac.train.cutmix",
    "vimpac.train.dropout_seeds",
    "vimpac.train.finetune",
    "vimpac.train.linear_probe",
    "vimpac.train.neighbour_test",
    "vimpac.train.pretrain",
)
PACKAGES = ("vimpac_kernels", "vimpac", "benchmarks", "build_support", "tests")


def _layer(module: str) -> int:
    """Imports go from a layer to those below it, or stay within it."""
    if module.startswith("vimpac_kernels.runtime"):
        return 0
    if module.startswith("vimpac_kernels.ops"):
        return 1
    return {"vimpac_kernels": 2, "vimpac": 3}.get(module.partition(".")[0], 4)


def _op(module: str) -> str | None:
    """The op whose folder a module is in."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["vimpac_kernels", "ops"] and len(parts) > 2 else None


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _name(path: Path) -> str:
    """The module of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(tree: ast.AST) -> Iterator[str]:
    """Every module of this repository that is imported, with `from a import b` as a or a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            yield f"{module}.{name}" if name and _exists(f"{module}.{name}") else module


def _exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [p for package in PACKAGES for p in _files(package)], ids=_name)
def test_imports_never_go_upwards(path: Path) -> None:
    ours = [m for m in _imported(_tree(path)) if m.partition(".")[0] in PACKAGES]
    assert not [module for module in ours if _layer(module) > _layer(_name(path))]


@pytest.mark.parametrize("path", _files("vimpac"), ids=_name)
def test_vimpac_uses_only_public_names(path: Path) -> None:
    ours = {m for m in _imported(_tree(path)) if m.partition(".")[0] == "vimpac_kernels"}
    assert ours <= PUBLIC


@pytest.mark.parametrize("path", _files("vimpac/simvtp"), ids=_name)
def test_simvtp_imports_nothing_that_is_vimpac_s_own(path: Path) -> None:
    imported = [*_imported(_tree(path))]
    assert not [module for module in imported if module.startswith(VIMPAC_S_OWN)]


def test_only_commands_import_simvtp() -> None:
    for path in _files("vimpac"):
        if not _name(path).startswith(("vimpac.simvtp", "vimpac.commands")):
            theirs = [m for m in _imported(_tree(path)) if m.startswith("vimpac.simvtp")]
            assert not theirs, f"{path.relative_to(ROOT)} imports {theirs}"


@pytest.mark.parametrize("op", registry.OPS)
def test_ops_do_not_import_each_other(op: str) -> None:
    for path in _files(f"vimpac_kernels/ops/{op}"):
        others = {_op(module) for module in _imported(_tree(path))} - {None, op}
        assert not others, f"{path.relative_to(ROOT)} imports {others}"


def test_no_test_module_imports_another() -> None:
    """What several of them share is in `tests/cases` or a module beside them."""
    for path in _files("tests"):
        others = [m for m in _imported(_tree(path)) if ".test_" in m]
        assert not others, f"{path.relative_to(ROOT)} imports {others}"


def test_every_op_has_a_folder_of_the_same_anatomy() -> None:
    folders = {p.parent.name for p in (ROOT / "vimpac_kernels/ops").glob("*/__init__.py")}
    assert folders == set(registry.OPS)
    for op in folders:
        python = {p.name for p in (ROOT / "vimpac_kernels/ops" / op).glob("*.py")}
        assert {"__init__.py", "reference.py", "operators.py", "triton.py"} <= python, op
        native = {p.name for p in (ROOT / "csrc" / op).iterdir()}
        assert {"arguments.hpp", "cpu.cpp", "cuda.cu"} <= native, op


def test_only_files_named_after_triton_import_it() -> None:
    for path in _files("vimpac_kernels"):
        if not path.stem.startswith("triton"):
            top = ast.Module([n for n in _tree(path).body if not isinstance(n, ast.If)], [])
            late = [m for m in _imported(top) if "triton" in m.rpartition(".")[2]]
            assert not late, f"{path.relative_to(ROOT)} imports {late}"


def _printed(program: str) -> str:
    """What a Python process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_kernel_package_imports_without_triton_or_extension() -> None:
    program = (
        "import sys, vimpac_kernels\n"
        "ours = [m for m in sys.modules if m.startswith('vimpac_kernels.')]\n"  # torch has its own
        "print([m for m in ours if '._C_' in m or 'triton' in m])"
    )
    assert _printed(program) == "[]"


def test_kernel_package_imports_without_the_compiler() -> None:
    """Which takes a second to import, and which eager calls never need."""
    program = (
        "import sys, vimpac_kernels\n"
        "print({'torch._dynamo', 'torch.distributed.tensor'} & set(sys.modules))"
    )
    assert _printed(program) == "set()"
