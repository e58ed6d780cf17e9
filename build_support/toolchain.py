"""Finding what a build needs: C++ compiler, ninja, pybind11, nvcc and its architectures.

A missing tool is `Missing` with one line that names the fix; the caller decides what goes without.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CPU_ONLY_SWITCH = "VIMPAC_KERNELS_CPU_ONLY"
WERROR_SWITCH = "VIMPAC_KERNELS_WERROR"  # off by default: a newer compiler may warn of more
# Without TORCH_CUDA_ARCH_LIST: one GPU of each generation, as code for sm_80 also runs on sm_86 and
# sm_89, for sm_100 on sm_103, for sm_120 on sm_121. The kernels use nothing that sm_80 lacks, so
# one virtual architecture serves all (its PTX takes half of nvcc's time) and later GPUs too.
DEFAULT_GPUS = ("sm_80", "sm_90", "sm_100", "sm_120")
DEFAULT_PTX = "compute_80"
DEFAULT_TOOLKIT = "/usr/local/cuda"  # where NVIDIA's installers put it, and PATH often lacks it


class Missing(Exception):
    """A tool is missing; the message is one line and names the fix."""


class BuildError(Exception):
    """The build was asked for something it cannot do."""


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler: the command, the toolkit's folders, and the -gencode flags to pass."""

    command: str
    include: Path
    library: Path
    gencode: tuple[str, ...]


def find_compiler() -> str:
    """The C++ compiler: $CXX, else g++, else c++."""
    for name in (os.environ.get("CXX"), "g++", "c++"):
        if name and shutil.which(name.split()[0]):
            return name
    raise Missing(
        "no C++ compiler found: install g++ (Debian/Ubuntu: apt install g++) and try again"
    )


def find_ninja() -> str:
    """Pip's ninja before the one on PATH, which may be older."""
    spec = importlib.util.find_spec("ninja")
    if spec is not None:
        import ninja

        command = shutil.which("ninja", path=ninja.BIN_DIR)
        if command:
            return command
    command = shutil.which("ninja")
    if command is None:
        raise Missing("ninja not found: `pip install ninja` and try again")
    return command


def find_pybind11() -> Path:
    """The folder that holds the header folder `pybind11`."""
    if importlib.util.find_spec("pybind11") is None:
        raise Missing("pybind11 not found: `pip install pybind11` and try again")
    import pybind11

    return Path(pybind11.get_include())


def find_nvcc() -> Nvcc:
    """The CUDA compiler of CUDA_HOME, CUDA_PATH, PATH or the usual folder, and its targets."""
    if os.environ.get(CPU_ONLY_SWITCH) == "1":
        raise Missing(f"{CPU_ONLY_SWITCH}=1")
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    paths = [str(Path(folder, "bin")) for folder in folders if folder]
    paths += [os.environ.get("PATH", os.defpath), f"{DEFAULT_TOOLKIT}/bin"]
    command = shutil.which("nvcc", path=os.pathsep.join(paths))
    if command is None:
        raise Missing("nvcc not found: install the CUDA toolkit (12.8 or newer) or set CUDA_HOME")
    root = toolkit_root(command)
    include = _first_with("cuda_runtime.h", root, ("include", "targets/*/include"))
    library = _first_with("libcudart_static.a", root, ("lib64", "lib", "targets/*/lib"))
    known = _ask(command, "--list-gpu-arch").split()
    return Nvcc(
        command, include, library, gencode_flags(os.environ.get("TORCH_CUDA_ARCH_LIST"), known)
    )


def toolkit_root(command: str) -> Path:
    """The toolkit's folder in nvcc's own words: `command` may be a wrapper script elsewhere."""
    listing = _ask(command, "--dryrun", "-E", "-x", "cu", os.devnull)
    match = re.search(r"^#\$ TOP=(.+)$", listing, re.MULTILINE)
    if match is None:
        raise BuildError(f"{command} --dryrun does not name its toolkit (no TOP= line):\n{listing}")
    return Path(match.group(1).strip()).resolve()


def gencode_flags(arch_list: str | None, known: list[str]) -> tuple[str, ...]:
    """-gencode flags for a list such as "8.0;9.0a;12.0+PTX", written as torch writes it.

    Args:
        arch_list: TORCH_CUDA_ARCH_LIST; None or "" means the default, less what nvcc lacks.
        known: the output of `nvcc --list-gpu-arch`: compute_80, ...
    """
    if not arch_list:
        if DEFAULT_PTX not in known:
            raise Missing(f"nvcc does not know {DEFAULT_PTX}: install CUDA 12.8 or newer")
        gpus = [gpu for gpu in DEFAULT_GPUS if gpu.replace("sm", "compute") in known]
        return tuple(f"-gencode=arch={DEFAULT_PTX},code={code}" for code in (*gpus, DEFAULT_PTX))
    flags = []
    for name in re.split(r"[;, ]+", arch_list.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if match is None:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST: {name!r} is not like 8.0, 9.0a or 12.0+PTX")
        major, minor, suffix, ptx = match.groups()
        if f"compute_{major}{minor}" not in known:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: nvcc does not know {name}, only {' '.join(known)}"
            )
        arch = f"{major}{minor}{suffix}"
        flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if ptx:
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    return tuple(flags)


def _ask(*command: str) -> str:
    """Both output streams of a command that must succeed."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise BuildError(f"`{' '.join(command)}` failed:\n{result.stdout}")
    return result.stdout


def _first_with(name: str, root: Path, patterns: tuple[str, ...]) -> Path:
    for pattern in patterns:
        for folder in sorted(root.glob(pattern)):
            if (folder / name).exists():
                return folder
    raise Missing(f"{name} is not in the CUDA toolkit {root}: install the whole toolkit")
