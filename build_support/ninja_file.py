"""The text of build.ninja: which source becomes which object with which flags.

Sources are found by name, so a new op is a new file:
  csrc/<op>/cpu*.cpp    one object per instruction set, in a namespace of its own
  csrc/module_cpu.cpp   _C_cpu
  csrc/<op>/cuda*.cu    one object with code for every architecture, and for each set of tuning
  csrc/module_cuda.cpp  _C_cuda
"""

import platform
import shlex
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from build_support import tuning
from build_support.toolchain import Nvcc

# Multiplications and additions are fused where a kernel says fmadd and nowhere else, so that
# results do not depend on which products and sums a compiler contracts.
COMMON = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -fopenmp -Wall -Wextra"

# Exceptions would leave weak symbols in the objects, which the linker merges across the sets.
KERNEL = "-fno-exceptions -fno-rtti"

# GCC 12 warns of the deliberately undefined operands in its own AVX-512 headers
# (gcc.gnu.org/PR105593); the first two sets still check the same sources for them.
AVX512 = (
    "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c"
    " -Wno-uninitialized -Wno-maybe-uninitialized"
)
ISA_FLAGS = {
    "portable": "-Wno-psabi",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": AVX512,
    "avx512bf16": f"{AVX512} -mavx512bf16",
}

RULES = """\
rule cxx
  command = $cxx -MMD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = c++ $out
rule nvcc
  command = $nvcc -MMD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = nvcc $out
rule link
  command = $cxx -shared $in $flags -o $out
  description = link $out
"""


@dataclass
class NinjaFile:
    """Collects build statements; `text()` is the file.

    Args:
        root: the source tree.
        cxx: the C++ compiler's command.
        pybind11: folder of pybind11's headers.
        nvcc: the CUDA compiler, or None.
        werror: whether a warning is an error.
    """

    root: Path
    cxx: str
    pybind11: Path
    nvcc: Nvcc | None
    werror: bool = False
    lines: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)  # to be written, by path in the build
    _objects: set[str] = field(default_factory=set)

    def add_cpu_module(self) -> None:
        """_C_cpu: every kernel for every instruction set, and the module itself."""
        objects = [self._module_object("cpu", "")]
        for source in cpu_sources(self.root):
            for isa in instruction_sets():
                flags = f"{self._common()} {KERNEL} -DVIMPAC_ISA={isa} {ISA_FLAGS[isa]}"
                objects.append(self._object("cxx", source, f"{_name(source)}.{isa}.o", flags))
        self._module("_C_cpu", objects, "-fopenmp")

    def add_cuda_module(
        self, nvcc: Nvcc, changes: tuning.Changes | None = None, folder: str = ""
    ) -> None:
        """_C_cuda: every kernel for every architecture, and the module; static CUDA run time.

        Args:
            nvcc: the CUDA compiler.
            changes: values of tuning constants.
            folder: where in the build the module goes; one file can have several of them.
        """
        objects = [self._module_object("cuda", f"-isystem {_quote(nvcc.include)}")]
        for source in cuda_sources(self.root):
            objects.append(self._kernels(nvcc, source, changes or {}))
        libraries = f"-L{_quote(nvcc.library)} -lcudart_static -lpthread -ldl -lrt"
        self._module("_C_cuda", objects, libraries, folder)

    def _kernels(self, nvcc: Nvcc, source: Path, changes: tuning.Changes) -> str:
        """The object of one CUDA source, under a name of its own where a change concerns it."""
        csrc = self.root / "csrc"
        own = {op: changes[op] for op in sorted(tuning.read_by(source, csrc) & set(changes))}
        mark = f"-{tuning.digest(own)}" if own else ""
        for op, values in own.items():
            header = f"{op}/{tuning.TABLE}"
            changed = tuning.changed((csrc / header).read_text(), values)
            self.headers[f"tuned{mark}/{header}"] = changed
        flags = (
            f"-std=c++17 -O3{f' -Ituned{mark}' if own else ''} -I{_quote(csrc)} -ccbin {self.cxx}"
            f" -Xcompiler=-fPIC,-Wall,-Wextra,-fvisibility=hidden"
            f"{' -Werror=all-warnings' if self.werror else ''}"
            f" -Xfatbin=-compress-all --threads=0 {' '.join(nvcc.gencode)}"
        )
        return self._object("nvcc", source, f"{_name(source)}{mark}.o", flags)

    def text(self) -> str:
        """The whole build.ninja."""
        head = [
            f"cxx = {self.cxx}",
            f"nvcc = {_quote(self.nvcc.command) if self.nvcc else ''}",
            RULES,
        ]
        return "\n".join([*head, *self.lines, ""])

    def write(self, folder: Path) -> None:
        """Puts build.ninja and the changed headers into the folder of the build."""
        for name, content in {"build.ninja": self.text(), **self.headers}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text() != content:  # kept, its users are not rebuilt
                path.write_text(content)

    def _common(self) -> str:
        return f"{COMMON}{' -Werror' if self.werror else ''} -I{_quote(self.root / 'csrc')}"

    def _module_object(self, device: str, flags: str) -> str:
        python = sysconfig.get_path("include")
        headers = f"-isystem {_quote(self.pybind11)} -isystem {_quote(python)}"
        source = self.root / "csrc" / f"module_{device}.cpp"
        flags = f"{self._common()} {headers} {flags}"
        return self._object("cxx", source, f"{source.stem}.o", flags)

    def _object(self, rule: str, source: Path, target: str, flags: str) -> str:
        if target not in self._objects:
            self._objects.add(target)
            self.lines += [f"build {target}: {rule} {_escape(source)}", f"  flags = {flags}"]
        return target

    def _module(self, name: str, objects: list[str], flags: str, folder: str = "") -> None:
        target = str(Path(folder, module_filename(name)))
        self.lines += [f"build {target}: link {' '.join(objects)}", f"  flags = {flags}"]
        self.modules.append(target)


def cpu_sources(root: Path) -> list[Path]:
    """The CPU's kernels of every op."""
    return sorted(root.glob("csrc/*/cpu*.cpp"))


def cuda_sources(root: Path) -> list[Path]:
    """The CUDA kernels of every op."""
    return sorted(root.glob("csrc/*/cuda*.cu"))


def _name(source: Path) -> str:
    """csrc/bias_gelu/cpu.cpp -> bias_gelu/cpu."""
    return f"{source.parent.name}/{source.stem}"


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this machine's compiler is asked for."""
    return tuple(ISA_FLAGS) if platform.machine() in ("x86_64", "AMD64") else ("portable",)


def module_filename(name: str) -> str:
    """_C_cpu -> _C_cpu.cpython-311-x86_64-linux-gnu.so."""
    return name + sysconfig.get_config_var("EXT_SUFFIX")


def _escape(path: Path) -> str:
    """A path in a build line; ninja itself quotes $in and $out for the shell."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _quote(argument: object) -> str:
    """One shell word in the value of a variable."""
    return shlex.quote(str(argument)).replace("$", "$$")
