"""What runs on this machine: versions, compilers, implementations of the ops, decoders, devices.

Nothing in here fails: what is missing is reported with its reason.
"""

from __future__ import annotations

import importlib
import io
import platform
import shutil
import subprocess
import textwrap
from typing import Any

import torch

import vimpac_kernels

PACKAGES = ("torch", "triton", "numpy", "av", "safetensors", "yaml", "rich", "lmdb", "matplotlib")
CODECS = ("mpeg4", "libx264", "libvpx-vp9", "libaom-av1")
NOT_NEEDED = "not installed"


def report() -> dict[str, Any]:
    """Examines the machine.

    Returns:
        Plain values, ready for JSON: "versions", "compilers", "extensions", "ops", "decoders",
        "devices".
    """
    return {
        "versions": _versions(),
        "compilers": {name: _compiler(name) for name in ("g++", "nvcc")},
        "extensions": {name: _extension(name) for name in ("_C_cpu", "_C_cuda")},
        "ops": {op: _op(op) for op in vimpac_kernels.OPS},
        "decoders": {codec: _decodes(codec) for codec in CODECS},
        "devices": _devices(),
    }


def to_text(report: dict[str, Any]) -> str:
    """The report for a reader.

    Args:
        report: From `report()`.

    Returns:
        Lines.
    """
    lines = ["Versions", *_table(report["versions"])]
    lines += ["", "Compilers", *_table(report["compilers"])]
    lines += ["", "Compiled kernels", *_table(report["extensions"])]
    lines += ["", "Implementations of the ops (`impl=` takes any that is ready)"]
    said = dict[str, str]()  # a reason: the first op of which it is said
    for op, devices in report["ops"].items():
        for device, found in devices.items():
            lines.append(f"  {op} on {device}: {found['chosen']}")
            for impl, reason in found["impls"].items():
                first = said.setdefault(reason, op) if reason else op
                short = f"as {first}" if first != op else reason or "ready"
                lines.append(f"    {impl:<10} {short}")
    lines += ["", "Video: a tiny clip encoded and decoded", *_table(report["decoders"])]
    lines += ["", "Devices", *(f"  {device}" for device in report["devices"])]
    return "\n".join(lines)


def _table(rows: dict[str, str]) -> list[str]:
    return [f"  {name:<12} {value}" for name, value in rows.items()]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            module = importlib.import_module(name)
            versions[name] = getattr(module, "__version__", "installed")
        except Exception as error:  # a broken package may raise anything at import
            missing = isinstance(error, ModuleNotFoundError) and error.name == name
            versions[name] = NOT_NEEDED if missing else f"broken: {_line(error)}"
    return versions


def _compiler(name: str) -> str:
    """Where a compiler is and which one, or that there is none."""
    path = shutil.which(name)
    if path is None:
        return "not on the PATH"
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} does not run: {_line(error)}"
    lines = answer.stdout.strip().splitlines() or ["no version"]
    release = next((line for line in lines if "release" in line), lines[0])
    return f"{path}: {release.strip()}"


def _extension(name: str) -> str:
    try:
        importlib.import_module(f"vimpac_kernels.{name}")
    except ImportError as error:
        return f"not built ({_line(error)})"
    return "built"


def _op(op: str) -> dict[str, Any]:
    """For each device type: which implementation a tiny call takes, and why not the others."""
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    call, result = getattr(vimpac_kernels, op), {}
    for kind in kinds:
        problems: dict[str, str | None] = {}
        for impl in vimpac_kernels.IMPLS:
            try:
                call(**vimpac_kernels.OPS[op].example(kind), impl=impl)
                if kind == "cuda":
                    torch.cuda.synchronize()  # a kernel's error comes late
                problems[impl] = None
            except ValueError:  # the op has no such implementation
                continue
            except Exception as error:  # a broken backend may raise anything
                problems[impl] = _line(str(error).partition("this call: ")[2] or error)
        ready = [impl for impl in vimpac_kernels.available_impls(op) if problems[impl] is None]
        result[kind] = {"chosen": ready[0], "impls": problems}
    return result


def _decodes(codec: str) -> str:
    """Encodes eight frames of a ramp and decodes them again."""
    try:
        import av
        import numpy as np

        buffer = io.BytesIO()
        with av.open(buffer, "w", format="matroska") as container:
            stream: Any = container.add_stream(codec, rate=8)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for level in range(0, 256, 32):
                image = np.full((64, 64, 3), level, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        buffer.seek(0)
        with av.open(buffer, "r") as source:
            levels = [f.to_ndarray(format="rgb24").mean() for f in source.decode(video=0)]
    except Exception as error:  # the codec libraries raise their own kinds
        return f"no ({_line(error)})"
    right = len(levels) == 8 and all(abs(level - 32 * i) < 16 for i, level in enumerate(levels))
    return "decodes" if right else f"decodes wrongly ({len(levels)} of 8 frames)"


def _devices() -> list[str]:
    devices = [f"cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    if not torch.cuda.is_available():
        built = torch.version.cuda or "none"
        return [*devices, f"cuda: no device (PyTorch was built for CUDA {built})"]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        devices.append(
            f"cuda:{index}: {found.name}, sm_{found.major}{found.minor}, "
            f"{found.total_memory / 2**30:.0f} GiB"
        )
    return devices


def _line(error: BaseException | str) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__
