"""A static report on every GPU kernel, without a GPU: `python benchmarks/kernel_report.py`.

Compiles csrc/*/cuda*.cu as the default build does and every Triton kernel exactly as a launch does,
for sm_80, sm_90a and sm_100, and reads the cubins: registers, spills, shared memory, occupancy and
counts of the instructions that matter. Exits with 1 on a spill beyond SPILLS, on more shared memory
than every GPU has, where a kernel lacks what EXPECTED asks, or has more narrow stores than
NARROW_STORES explains. The output of nvcc for unchanged sources is kept in build/kernel_report.

    Triton   `triton_calls()` of each op's benchmark yields (kernel, arguments, keyword arguments)
             of real calls with meta tensors, and `warmup` then specialises as a launch does.
    CUDA     a cubin knows launch bounds but no launch: LAUNCHES names the threads and the shared
             memory of a usual one, for the occupancy.

A spill shows as stack bytes and as STL and LDL. HMMA, HGMMA and UTCMMA are tensor-core products,
LDG.128 and STG.128 loads, also to shared memory, and stores of 16 bytes or more.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import importlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cubins
from cubins import Kernel
from offline_triton import offline_driver

from vimpac_kernels import OPS

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = {80: "sm_80", 90: "sm_90a", 100: "sm_100"}
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "kernel_report"
NVCC_FLAGS = ("-std=c++17", "-O3")
PARTS = 4  # of an architecture's Triton kernels, which take minutes
SMALLEST_SHARED = 99 << 10  # bytes of a block on sm_86, sm_89 and sm_120
# Spills that are no error: (pattern of "<kernel> <architecture>", bytes of stack per thread, why).
SPILLS: tuple[tuple[str, int, str], ...] = (
    ("axial_attention_bwd_kernel bf16 *BLOCK=64 *D=64 * sm_80", 8, "else narrow stores"),
    ("axial_attention_bwd_kernel bf16 *BLOCK=64 *D=128 * sm_80", 80, "else narrow stores"),
    ("axial_attention_bwd_kernel fp32 *BLOCK=64 * sm_80", 40, "a few words, on sm_90a none"),
    ("axial_attention_bwd_kernel bf16 *BLOCK=64 *D=16 * sm_100", 8, "a few words, on sm_90a none"),
    ("axial_attention_bwd_kernel fp32 *BLOCK=32 *D=128 * sm_100", 8, "a few words, on sm_90a none"),
)
COLUMNS = "kernel|arch|regs|spills|shared|warps|occupancy|MMA|LDG.128|LDG|STG.128|STG"

# (backend, pattern of names, what it must contain). Every pattern must match some kernel.
EXPECTED = (
    ("cuda", "axial_attention_?wd_kernel<*>", "MMA LDG.128 STG.128"),
    ("cuda", "axial_attention_?wd_fp32_kernel<*>", "LDG.128"),
    ("cuda", "bias_gelu_?wd_kernel<*>", "LDG.128 STG.128"),
    ("cuda", "dropout_add_layer_norm_?wd_kernel<*>", "LDG.128 STG.128"),
    ("cuda", "embed_tokens_fwd_kernel<*>", "LDG.128 STG.128"),
    ("cuda", "embed_tokens_places_kernel<*>", "LDG.128 STG.128"),
    ("cuda", "embed_tokens_ids_kernel<*>", "LDG.128 STG.128"),
    ("cuda", "embed_tokens_carry_kernel", "LDG.128"),
    ("cuda", "linear_cross_entropy_fwd_kernel<*>", "LDG.128 STG.128"),
    ("cuda", "mask_tokens_fwd_kernel<long>", "LDG.128 STG.128"),
    ("cuda", "tubelet_embed_fwd_kernel<*>", "LDG.128 STG.128"),
    ("cuda", "tubelet_mse_?wd_kernel<*, 8>", "LDG.128"),
    ("cuda", "tubelet_mse_bwd_kernel<*, 8>", "STG.128"),
    ("triton", "axial_attention_?wd_kernel bf16 *", "MMA LDG.128 STG.128"),
    ("triton", "axial_attention_?wd_kernel fp32 *", "LDG.128 STG.128"),
    ("triton", "dropout_add_layer_norm_?wd_kernel *", "LDG.128 STG.128"),
    ("triton", "embed_tokens_fwd_kernel *", "LDG.128 STG.128"),
    ("triton", "embed_tokens_places_kernel *", "LDG.128 STG.128"),
    ("triton", "embed_tokens_ids_kernel *", "LDG.128 STG.128"),
    ("triton", "bias_gelu_?wd_kernel *", "LDG.128 STG.128"),
    ("triton", "linear_cross_entropy_fwd_kernel *", "LDG.128 STG.128"),
    ("triton", "mask_tokens_fwd_kernel int64 *", "LDG.128 STG.128"),
    ("triton", "tubelet_embed_fwd_kernel *", "STG.128"),
    ("triton", "tubelet_mse_?wd_kernel *", "LDG.128"),
    ("triton", "tubelet_mse_bwd_kernel *", "STG.128"),
)
# (pattern of names, how many of its stores may be narrower than 16 bytes, which ones those are): of
# the first pattern that a kernel matches. A kernel that matches none stores 16 bytes each time;
# nvcc may silently split such a store into four.
NARROW_STORES = (
    ("axial_attention_?wd_fp32_kernel<*>", 32, "results, an element a lane, and partial sums"),
    ("axial_attention_sums_kernel<*>", 9, "[CLS] and the bias's gradient, an element a lane"),
    ("axial_attention_cls_kernel*", 6, "the mean of [CLS] over lines, an element a lane"),
    ("axial_attention_?wd_kernel*", 20, "partial sums for [CLS] and of the bias's gradient"),
    ("bias_gelu_bwd_kernel*", 1, "partial sums of the bias's gradient"),
    ("dropout_add_layer_norm_fwd_kernel*", 2, "mean and rstd of a row"),
    ("dropout_add_layer_norm_bwd_kernel*", 6, "partial sums of the parameters' gradients"),
    ("embed_tokens_fwd_kernel*", 2, "mean and rstd of a row"),
    ("embed_tokens_places_kernel*", 6, "partial sums of the parameters' gradients"),
    ("embed_tokens_*", 1, "a column of sums over partial sums"),
    ("linear_cross_entropy_fwd_kernel*", 2, "the loss of a row, and whether it is right"),
    ("mask_tokens_fwd_kernel int*", 2, "the mask, a byte a token, and a count"),
    ("mask_tokens_*", 20, "tokens of cut groups, bytes of the mask, positions wherever they go"),
    ("tubelet_embed_fwd_kernel<*, 1>", 6, "pixels and bytes of tubelets that are not in chunks"),
    ("tubelet_embed_fwd_kernel*", 3, "the bytes of the tubelets, eight a thread"),
    ("tubelet_mse_fwd_kernel*", 1, "a block's sum of squares"),
    (
        "tubelet_mse_bwd_kernel<*, 1>",
        12,
        "an element a lane where rows of tubelets are not aligned",
    ),
    ("tubelet_mse_sum_kernel", 1, "the loss"),
    ("dropout_add_layer_norm_sum_kernel *", 2, "a column of sums of one parameter or another"),
    ("*_sum_kernel *", 1, "a column of sums over partial sums"),
    ("*_dbias_kernel *", 1, "a column of sums over partial sums"),
    ("add_blocks_kernel<*>", 1, "a column of sums over partial sums"),
)
# CUDA kernel -> threads and bytes of dynamic shared memory of a usual launch.
LAUNCHES = {
    "add_blocks_kernel<*>": (512, 2048),
    "axial_attention_sums_kernel<*>": (256, 1024),
    "axial_attention_fwd_kernel<*, 3, 2>": (128, 512),  # lines up to 23, head dim 64
    "axial_attention_bwd_kernel<*, 3, 2>": (128, 17408),
    "axial_attention_fwd_kernel<*, 5, 2>": (128, 768),  # lines up to 39
    "axial_attention_bwd_kernel<*, 5, 2>": (96, 90240),
    "axial_attention_bwd_kernel<*, 9, 4>": (160, 99968),  # up to 71, head dim 128
    "bias_gelu_fwd_kernel<*>": (256, 0),
    "bias_gelu_bwd_kernel<*>": (256, 8192),
    "dropout_add_layer_norm_fwd_kernel<*>": (128, 16416),  # D = 512 and 1024
    "dropout_add_layer_norm_fwd_kernel<*, float, *>": (128, 24608),
    "dropout_add_layer_norm_fwd_kernel<float, *>": (128, 32800),
    "dropout_add_layer_norm_bwd_kernel<*>": (128, 26816),  # D = 512, y with two gradients
    "dropout_add_layer_norm_bwd_kernel<*, float, *>": (128, 35008),
    "dropout_add_layer_norm_bwd_kernel<float, *>": (128, 51392),
    "embed_tokens_fwd_kernel<*>": (128, 16),  # D = 512, as all of these
    "embed_tokens_places_kernel<*, 2>": (128, 16416),
    "embed_tokens_ids_kernel<*, 2>": (128, 32),
    "embed_tokens_axes_kernel": (512, 2048),
    "embed_tokens_carry_kernel": (512, 32768),
    "linear_cross_entropy_fwd_kernel<*, false>": (352, 70416),  # 8,197 columns
    "linear_cross_entropy_fwd_kernel<*, true>": (480, 94992),  # 30,522 columns
    "mask_tokens_fwd_kernel<*>": (256, 560),  # (5, 16, 16) tokens, 5 blocks
    "tubelet_embed_fwd_kernel<*>": (192, 0),
    "tubelet_mse_fwd_kernel<*>": (256, 64),
    "tubelet_mse_bwd_kernel<*>": (256, 0),
    "tubelet_mse_sum_kernel": (32, 0),
}


def cuda_kernels(architectures: list[int]) -> Iterator[Kernel]:
    """The CUDA kernels of every op for every architecture."""
    sources = sorted(CSRC.glob("*/cuda*.cu"))
    CACHE.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for compiled in pool.map(lambda source: _compile(source, architectures), sources):
            for cubin, architecture in compiled:
                for kernel in cubins.read(cubin, architecture):
                    for pattern, (threads, shared) in LAUNCHES.items():
                        if fnmatch.fnmatchcase(kernel.name, pattern):
                            kernel.warps, kernel.dynamic_shared = threads // 32, shared
                    yield kernel


def _compile(source: Path, architectures: list[int]) -> list[tuple[Path, int]]:
    """One PTX for all architectures and a cubin for each, unless they are there already."""
    folders = (source.parent, CSRC / "common", CSRC / "cuda")
    headers = sorted(path for folder in folders for path in folder.glob("*.*h*"))
    content = b"".join(path.read_bytes() for path in (source, *headers))
    version = subprocess.run(["nvcc", "--version"], check=True, capture_output=True).stdout
    key = hashlib.sha256(content + version + " ".join(NVCC_FLAGS).encode()).hexdigest()[:16]
    name = f"{source.parent.name}-{source.stem}"
    for old in set(CACHE.glob(f"{name}-*")) - set(CACHE.glob(f"{name}-{key}*")):
        old.unlink()

    def make(target: Path, start: Path, *flags: str) -> Path:
        if not target.exists():
            partial = target.with_suffix(f".part{target.suffix}")
            command = ["nvcc", *NVCC_FLAGS, f"-I{CSRC}", *flags, str(start), "-o", str(partial)]
            subprocess.run(command, check=True)
            partial.replace(target)
        return target

    ptx = make(CACHE / f"{name}-{key}.ptx", source, "-ptx", "-arch=compute_80")
    return [
        (make(ptx.with_suffix(f".{a}.cubin"), ptx, "-cubin", f"-arch={ARCHITECTURES[a]}"), a)
        for a in architectures
    ]


def _label(name: str, arguments: tuple[Any, ...], constants: dict[str, Any]) -> str:
    """`<kernel> <dtype of the first tensor> <its constants>`."""
    dtype = next((str(a.dtype) for a in arguments if hasattr(a, "dtype")), "")
    short = dtype.removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")
    chosen = [f"{k}={v}" for k, v in constants.items() if k.isupper() and not isinstance(v, bool)]
    return " ".join([name, short, *chosen])


def triton_kernels(architectures: list[int]) -> Iterator[Kernel]:
    """The Triton kernels of every op; every `PARTS`th of them is a part, for all cores alike."""
    wanted = [(a, part) for a in architectures for part in range(PARTS)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        compiled = [*pool.map(_triton_kernels, *zip(*wanted, strict=True))]
    for start in range(0, len(compiled), PARTS):  # of an architecture
        for kernels in itertools.zip_longest(*compiled[start : start + PARTS], fillvalue=()):
            yield from itertools.chain(*kernels)


def _triton_kernels(architecture: int, part: int) -> list[list[Kernel]]:
    """Those of each call of a part; a call may compile several."""
    driver = offline_driver()
    driver.architecture = architecture
    found: list[list[Kernel]] = []
    number = itertools.count()
    for op in OPS:
        calls = list(importlib.import_module(f"bench_{op}").triton_calls())
        sources = (p.read_text() for p in ROOT.glob(f"vimpac_kernels/ops/{op}/triton*.py"))
        named = set(re.findall(r"^def (\w+_kernel)\(", "\n".join(sources), re.MULTILINE))
        if missing := named - {kernel.__name__ for kernel, *_ in calls}:
            sys.exit(f"error: bench_{op}.triton_calls() lacks {', '.join(missing)}")
        for kernel, arguments, options in calls:
            if next(number) % PARTS != part:
                continue
            compiled = kernel.warmup(*arguments, grid=(1,), **options)
            name = _label(kernel.__name__, arguments, options)
            several = compiled if isinstance(compiled, list) else [compiled]
            found.append([_read_triton(one, name, architecture) for one in several])
    return found


def _read_triton(compiled: Any, name: str, architecture: int) -> Kernel:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        (kernel,) = cubins.read(Path(file.name), architecture)
    kernel.name, kernel.warps = name, compiled.metadata.num_warps
    kernel.static_shared, kernel.dynamic_shared = 0, compiled.metadata.shared
    return kernel


def _cells(kernel: Kernel) -> list[str]:
    counts = kernel.counts
    spills = f"{counts['STL']}/{counts['LDL']}" if kernel.spills else "none"
    return [
        kernel.name,
        ARCHITECTURES[kernel.architecture],
        str(kernel.registers),
        spills,
        str(kernel.shared),
        str(kernel.warps),
        f"{kernel.occupancy():.0%}",
        str(kernel.matrix_products),
        *(str(counts[name]) for name in ("LDG.128", "LDG", "STG.128", "STG")),
    ]


def _count(kernel: Kernel, wanted: str) -> int:
    """How often a kernel has what EXPECTED asks."""
    if wanted == "MMA":
        return kernel.matrix_products
    copies = kernel.counts["LDGSTS.128"] if wanted == "LDG.128" else 0  # loads to shared memory
    return kernel.counts[wanted] + copies


def allowed_spill(kernel: Kernel) -> int:
    """Bytes of stack per thread that SPILLS has a reason for."""
    name = f"{kernel.name} {ARCHITECTURES[kernel.architecture]}"
    return next((most for pattern, most, _ in SPILLS if fnmatch.fnmatchcase(name, pattern)), 0)


def problems(backend: str, kernels: list[Kernel]) -> list[str]:
    """What is wrong with the kernels of a backend, one line each."""
    found = [
        f"{k.name} spills on {ARCHITECTURES[k.architecture]}: {k.stack} bytes of stack, "
        f"{k.counts['STL']} STL, {k.counts['LDL']} LDL"
        for k in kernels
        if k.spills and not 0 < k.stack <= allowed_spill(k)
    ]
    found += [
        f"{k.name} takes {k.shared} bytes of shared memory on {ARCHITECTURES[k.architecture]}, "
        f"a block of the smallest GPU has {SMALLEST_SHARED}"
        for k in kernels
        if k.shared > SMALLEST_SHARED
    ]
    for _, pattern, wanted in (row for row in EXPECTED if row[0] == backend):
        matching = [k for k in kernels if fnmatch.fnmatchcase(k.name, pattern)]
        if not matching:
            found.append(f"no kernel is named {pattern}: fix EXPECTED")
        found += [
            f"{k.name} has no {one} on {ARCHITECTURES[k.architecture]}"
            for k in matching
            for one in wanted.split()
            if _count(k, one) == 0
        ]
    for k in kernels:
        rows = (row for row in NARROW_STORES if fnmatch.fnmatchcase(k.name, row[0]))
        _, most, which = next(rows, ("", 0, "none"))
        if k.narrow_stores > most:
            found.append(
                f"{k.name} has {k.narrow_stores} stores of less than 16 bytes on "
                f"{ARCHITECTURES[k.architecture]}, {most} expected: {which}"
            )
    return found


def main() -> int:
    """Prints one table per backend, then every problem; 1 if there is one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("backend", nargs="*", default=["cuda", "triton"])
    parser.add_argument("--arch", type=int, choices=ARCHITECTURES, help="this one alone")
    arguments = parser.parse_args()
    architectures = [arguments.arch] if arguments.arch else list(ARCHITECTURES)
    found = []
    for backend in arguments.backend:
        if backend == "cuda" and shutil.which("nvcc") is None:
            print("cuda: no nvcc here, its kernels are not reported")
            continue
        kernels = list((cuda_kernels if backend == "cuda" else triton_kernels)(architectures))
        lines = [COLUMNS.split("|"), *(_cells(kernel) for kernel in kernels)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        print(f"--- {backend}")
        for line in lines:
            print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
        found += problems(backend, kernels)
    for problem in found:
        print(f"error: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
