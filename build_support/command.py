"""The build_ext command: all modules from one ninja run, then moved into place together."""

import filecmp
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools.command.build_ext import build_ext

from build_support import toolchain, tuning
from build_support.ninja_file import NinjaFile, cuda_sources, module_filename

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("_C_cpu", "_C_cuda")


class BuildKernels(build_ext):
    """Builds what the installed compilers allow; removes the other modules from the package.

    If a tool is missing, the kernels that need it are left out, with a one-line message; but
    `python setup.py build_ext`, which asks for kernels, fails if it cannot build any, as the ones
    in place would be those of another source. If a compiler fails, its output is shown as an error.
    A build that fails changes no module.
    """

    def run(self) -> None:
        """Build, and put the modules next to the package's Python files."""
        in_tree = self.inplace or getattr(self, "editable_mode", False)
        package = (ROOT if in_tree else Path(self.build_lib)) / "vimpac_kernels"
        folder = ROOT / "build" / f"ninja-{tag()}"
        asked_for = "build_ext" in self.distribution.commands  # by name, not as a part of install
        try:
            built = _build(folder, must=asked_for)
        except toolchain.BuildError as error:
            sys.exit(f"vimpac_kernels: {error}")
        package.mkdir(parents=True, exist_ok=True)
        for module in MODULES:
            name = module_filename(module)
            if name in built:
                _replace(folder / name, package / name)
            else:
                (package / name).unlink(missing_ok=True)
        self._built = [str(package / name) for name in built]

    def get_outputs(self) -> list[str]:
        """Only what was built: a module may be left out."""
        return list(getattr(self, "_built", []))

    def get_output_mapping(self) -> dict[str, str]:
        """Nothing to copy: an editable install has its modules in the tree already."""
        return {}


def _build(folder: Path, must: bool) -> list[str]:
    """Run ninja in `folder`; returns the names of the modules it made there.

    Args:
        folder: Of the objects and modules.
        must: Whether it is an error if no module can be built.
    """
    try:
        if sys.platform != "linux":
            raise toolchain.Missing("they need Linux; elsewhere the references are used")
        compiler = toolchain.find_compiler()
        ninja = toolchain.find_ninja()
        headers = copy_pybind11(toolchain.find_pybind11(), folder)
    except toolchain.Missing as missing:
        if must:
            raise toolchain.BuildError(f"no kernel was compiled: {missing}") from missing
        _say(f"compiled kernels are left out: {missing}")
        return []
    nvcc = _nvcc() if cuda_sources(ROOT) else None
    werror = os.environ.get(toolchain.WERROR_SWITCH) == "1"
    plan = NinjaFile(ROOT, compiler, headers, nvcc, werror)
    plan.add_cpu_module()
    if nvcc is not None:
        wanted = os.environ.get(tuning.TUNING_SWITCH, "")
        plan.add_cuda_module(nvcc, tuning.parse(wanted, ROOT / "csrc"))
    plan.write(folder)
    result = subprocess.run(
        [ninja, "-C", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(result.stdout, end="", flush=True)
    if result.returncode != 0:
        fix = f"; {toolchain.CPU_ONLY_SWITCH}=1 leaves the CUDA kernels out" if nvcc else ""
        raise toolchain.BuildError(f"the build failed; the compiler's output is above{fix}")
    return plan.modules


def _nvcc() -> toolchain.Nvcc | None:
    try:
        return toolchain.find_nvcc()
    except toolchain.Missing as missing:
        _say(f"CUDA kernels are left out: {missing}")
        return None


def copy_pybind11(source: Path, folder: Path) -> Path:
    """Copy the headers to a fixed path: isolated builds see them at a new path each time."""
    target = folder / "include"
    for header in (source / "pybind11").rglob("*.h"):
        copy = target / header.relative_to(source)
        if not copy.exists() or not filecmp.cmp(header, copy, shallow=False):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(header, copy)
    return target


def _replace(source: Path, target: Path) -> None:
    """Put a module in place in one step: a running process keeps the file it has mapped."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy2(source, fresh)
    os.replace(fresh, target)


def tag() -> str:
    """What tells builds for different Pythons apart: cpython-311-x86_64-linux-gnu."""
    return sysconfig.get_config_var("EXT_SUFFIX").strip(".").removesuffix(".so")


def _say(line: str) -> None:
    print(f"vimpac_kernels: {line}", file=sys.stderr, flush=True)
