"""The ops and their implementations, and which of them can run a call.

An op has the implementations of `IMPLS`. `reference` is eager PyTorch and runs everywhere; `cpu`
and `cuda` are C++ behind the compiled modules `_C_cpu` and `_C_cuda`; `triton` compiles itself.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from vimpac_kernels.runtime.compiling import constant_in_graphs

IMPLS = ("cuda", "triton", "cpu", "sdpa", "reference")  # in the order of preference
OLDEST_GPU = (8, 0)  # compute capability for which kernels are built, by Triton too


@dataclass(frozen=True)
class Op:
    """A public function of `vimpac_kernels`.

    Args:
        replaces: What a user would write in PyTorch instead.
        takes: The dtypes and sizes for which it has kernels; the reference takes more.
        example: Makes the arguments of a tiny call on a device.
    """

    replaces: str
    takes: str
    example: Callable[[torch.device | str], dict[str, Any]]


# Every op by name. Its folders are vimpac_kernels/ops/<name> and csrc/<name>.
OPS: dict[str, Op] = {
    "axial_attention": Op(
        "permute + attention along one axis; without projections",
        "fp32, bf16, fp16; heads of 32, 64 or 128 (Triton also 16, CPU up to 256); "
        "lines of up to 64 tokens, on a CPU of any length",
        lambda device: {"qkv": torch.zeros(1, 9, 3, 1, 32, device=device), "grid": (2, 2, 2)},
    ),
    "linear_cross_entropy": Op(
        "`F.linear` + `F.cross_entropy`",
        "fp32, bf16, fp16; D a multiple of 8; for CUDA C++ V up to 32,768",
        lambda device: {
            "input": torch.zeros(4, 32, device=device),
            "linear_weight": torch.zeros(64, 32, device=device),
            "target": torch.zeros(4, dtype=torch.int64, device=device),
        },
    ),
    "dropout_add_layer_norm": Op(
        "bias, dropout, residual sum, LayerNorm",
        "fp32, bf16, fp16; D a multiple of 8, up to 8,192",
        lambda device: {
            **dict.fromkeys(("x", "residual"), torch.zeros(4, 32, device=device)),
            **dict.fromkeys(("weight", "bias"), torch.ones(32, device=device)),
        },
    ),
    "bias_gelu": Op(
        "bias, GELU; with or without the Linear before them",
        "fp32, bf16, fp16; D a multiple of 8",
        lambda device: {
            "x": torch.zeros(4, 32, device=device),
            "bias": torch.zeros(32, device=device),
        },
    ),
    "embed_tokens": Op(
        "lookup, sum of positions, LayerNorm, dropout, cast",
        "fp32, bf16, fp16; D a multiple of 8, up to 8,192",
        lambda device: {
            "tokens": torch.zeros(1, 4, dtype=torch.int32, device=device),
            "embedding": torch.zeros(8, 32, device=device),
            "positions": [torch.zeros(4, 32, device=device)],
        },
    ),
    "mask_tokens": Op(
        "Python loop over clips and boxes, or torch / NumPy",
        "int16, uint16, int32, int64; fewer than 2^31 tokens",
        lambda device: {
            "tokens": torch.zeros(1, 2, 2, 2, dtype=torch.int32, device=device),
            "mask_token": 1,
            "seed": 0,
        },
    ),
    "tubelet_embed": Op(
        "normalise, `nn.Conv3d` of every tubelet, positions, gather",
        "fp32, bf16, fp16; D a multiple of 8",
        lambda device: {
            "video": torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8, device=device),
            "tubelets": torch.zeros(1, 2, dtype=torch.int32, device=device),
            "weight": torch.zeros(16, 3, 2, 4, 4, device=device),
            "bias": torch.zeros(16, device=device),
            "positions": torch.zeros(4, 16, device=device),
        },
    ),
    "tubelet_mse": Op(
        "normalised pixels of all tubelets, gather, `F.mse_loss`",
        "fp32, bf16, fp16; tubelets of up to 4,096 pixels",
        lambda device: {
            "pred": torch.zeros(1, 1, 24, device=device),
            "video": torch.zeros(1, 2, 4, 2, 3, dtype=torch.uint8, device=device),
            "tubelets": torch.ones(1, 1, dtype=torch.int32, device=device),
            "tubelet": (2, 2),
        },
    ),
}

_extensions: dict[str, ModuleType | str] = {}
_overridden: dict[str, str] = {}  # module -> device type whose tensors it takes


def _load(name: str) -> ModuleType | str:
    if name not in _extensions:
        try:
            _extensions[name] = importlib.import_module(f"vimpac_kernels._C_{name}")
        except ImportError as error:
            _extensions[name] = (
                f"vimpac_kernels._C_{name} is not built ({error}): reinstall where "
                + (
                    "a C++ compiler can be found"
                    if name == "cpu"
                    else "nvcc can be found and VIMPAC_KERNELS_CPU_ONLY is not set"
                )
            )
    return _extensions[name]


def extension(name: str) -> ModuleType:
    """The compiled module `_C_cpu` or `_C_cuda`.

    Args:
        name: "cpu" or "cuda".

    Raises:
        RuntimeError: If it is not built, with the reason and the fix.
    """
    module = _load(name)
    if isinstance(module, str):
        raise RuntimeError(module)
    return module


@contextlib.contextmanager
def override_extension(name: str, module: ModuleType, device: str = "cpu") -> Iterator[None]:
    """Puts `module` in the place of a compiled one.

    Args:
        name: "cpu" or "cuda".
        module: Has the same functions: emulated kernels, or others that are built from them.
        device: The device type whose tensors it takes.
    """
    before, known = _load(name), _overridden.get(name)
    _extensions[name], _overridden[name] = module, device
    try:
        yield
    finally:
        _extensions[name] = before
        if known is None:
            del _overridden[name]
        else:
            _overridden[name] = known


def kernel_device(impl: str) -> str:
    """The device type whose tensors `impl` takes."""
    if impl == "cpu" or (impl == "triton" and triton_interpreted()):
        return "cpu"
    return _overridden.get(impl, "cuda")


@functools.lru_cache
def _importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@functools.lru_cache
def triton_interpreted() -> bool:
    """Whether Triton kernels run in its interpreter (TRITON_INTERPRET=1), on CPU tensors."""
    if not _importable("triton"):
        return False
    knobs = importlib.import_module("triton").knobs
    return bool(knobs.runtime.interpret)


@functools.lru_cache
def _gpu_problem() -> str | None:
    if not torch.cuda.is_available():  # fake tensors need no device
        return None
    found = torch.cuda.get_device_capability()
    needs, has = (".".join(map(str, version)) for version in (OLDEST_GPU, found))
    return (
        f"it needs compute capability {needs}, this GPU has {has}" if found < OLDEST_GPU else None
    )


@functools.lru_cache
def _launch_problem() -> str | None:
    if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        return None
    return "Triton compiles its launchers with a C compiler: install gcc"


@constant_in_graphs
def backend_problem(impl: str, op: str, device_type: str) -> str | None:
    """Why `impl` cannot run `op` on tensors of a device type on this machine; None if it can."""
    if impl == "reference":
        return None
    if impl == "sdpa":
        return None if op == "axial_attention" else "only axial_attention has it"
    if impl == "triton":
        if not _importable("triton"):
            return "triton is not installed: pip install triton"
        if not _importable(f"vimpac_kernels.ops.{op}.triton"):
            return f"{op} has no Triton kernel"
    else:
        module = _load(impl)
        if isinstance(module, str):
            return module
        if not hasattr(module, f"{op}_fwd"):
            return f"_C_{impl} was built without {op}: reinstall"
    needed = kernel_device(impl)
    if device_type != needed:
        return f"it runs on {needed} tensors, these are on {device_type}"
    if needed == "cuda":
        return _gpu_problem() or (_launch_problem() if impl == "triton" else None)
    return None


def select(op: str, impl: str, candidates: Sequence[tuple[str, Callable[[], str | None]]]) -> str:
    """Picks the implementation of one call.

    Args:
        op: Name of the op, for messages.
        impl: "auto", or the name of the one to use.
        candidates: (name, why it cannot run this call or None), best first.

    Returns:
        The name of the first candidate that can run, or `impl` if it can.

    Raises:
        ValueError: If `impl` is unknown.
        RuntimeError: If `impl` cannot run this call, with the reason.
    """
    if impl == "auto":
        for name, problem in candidates:
            if problem() is None:
                return name
    for name, problem in candidates:
        if name == impl:
            reason = problem()
            if reason is None:
                return name
            raise RuntimeError(f"{op}: impl={impl!r} cannot run this call: {reason}")
    check_impl(op, impl)
    raise AssertionError(f"{op} has no candidate {impl!r}")


def check_impl(op: str, impl: object) -> None:
    """Raises ValueError unless `impl` is "auto" or names an implementation that `op` may have.

    Whether it can run on this machine is checked in a call, because it depends on the tensors.
    """
    known = [name for name in IMPLS if name != "sdpa" or op == "axial_attention"]
    if not isinstance(impl, str) or impl not in ("auto", *known):
        names = ", ".join(map(repr, known))
        raise ValueError(f"{op}: impl must be 'auto' or one of {names}, got {impl!r}")


def available_impls(op: str) -> list[str]:
    """The implementations of `op` that can run on this machine, best first.

    Args:
        op: A name in `OPS`.

    Returns:
        Names to pass as `impl=`; "reference" is always among them.

    Raises:
        ValueError: If there is no such op.
    """
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [i for i in IMPLS if any(backend_problem(i, op, d) is None for d in devices)]
