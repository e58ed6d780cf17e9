"""Imports go one way: vimpac -> vimpac_kernels -> an op -> its reference and kernels."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPS = (
    *("axial_attention", "linear_cross_entropy", "mask_tokens"),
    *("dropout_add_layer_norm", "bias_gelu", "embed_tokens"),
)
PUBLIC = {"vimpac_kernels", "vimpac_kernels.reference"}


def _imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, with `from a import b` as a and as a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _modules(imported: Iterator[str]) -> set[str]:
    """Those of the names that are modules of this repository."""

    def exists(name: str) -> bool:
        path = ROOT.joinpath(*name.split("."))
        return path.with_suffix(".py").exists() or (path / "__init__.py").exists()

    return {name for name in imported if exists(name)}


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", _files("vimpac"), ids=lambda p: str(p.relative_to(ROOT)))
def test_vimpac_uses_only_public_names(path: Path) -> None:
    kernels = {m for m in _modules(_imported(path)) if m.partition(".")[0] == "vimpac_kernels"}
    assert kernels <= PUBLIC | {f"vimpac_kernels.{op}" for op in OPS}  # a name may equal a module's


@pytest.mark.parametrize("path", _files("vimpac_kernels"), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_never_import_upwards(path: Path) -> None:
    assert not [m for m in _modules(_imported(path)) if m.partition(".")[0] != "vimpac_kernels"]


@pytest.mark.parametrize("op", OPS)
def test_ops_do_not_import_each_other(op: str) -> None:
    files = [p for p in _files("vimpac_kernels") if p.stem.lstrip("_") == op]
    assert files, f"{op} has no module"
    for path in files:
        for module in _modules(_imported(path)):
            others = [o for o in OPS if o != op and module.rpartition(".")[2].lstrip("_") == o]
            assert not others, f"{path.relative_to(ROOT)} imports {module}"


def test_kernel_package_imports_without_triton_or_extension() -> None:
    """Nothing outside _triton imports Triton at module level."""
    for path in _files("vimpac_kernels"):
        if path.parent.name != "_triton":
            top = ast.parse(path.read_text(encoding="utf-8")).body
            names = {n for node in top for n in _top_level_imports(node)}
            late = ("triton", "vimpac_kernels._triton")
            assert not [n for n in names if n.startswith(late)], path


def _top_level_imports(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return []
