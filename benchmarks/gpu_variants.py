"""Builds the CUDA kernels with other tuning constants, side by side, without a GPU.

    python benchmarks/gpu_variants.py [FOLDER] [--first MODULE]

FOLDER, by default build/gpu, gets what a visit to a GPU takes along: the package's own modules in
base/, and in 1/, 2/, ... modules of which each holds one variant of every op, so that there are no
more of them than one op has variants. Only sources that a change concerns are compiled again.
`--first` adds a module of an earlier build, which is then timed as the variant `first` of each op.

It builds for the Python that runs it, which needs setuptools, ninja and pybind11, but no torch:
take the one of the machine with the GPU. TORCH_CUDA_ARCH_LIST is 9.0a unless it is set.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from build_support import command, ninja_file, toolchain, tuning  # noqa: E402 (needs that path)

MOST_MIB = 40  # of what travels with the working tree to a machine of a few minutes

# op -> name of a variant -> changes of its table, below the question that they answer.
CUDA: dict[str, dict[str, str]] = {
    "axial_attention": {
        # Do fewer, larger blocks with as many warps hide more, or more, smaller ones?
        "warps8": "kAxialWarps=8 kAxialForwardBlocksFew=1 kAxialForwardBlocks=1"
        " kAxialBackwardBlocks=1",
        "warps2": "kAxialWarps=2 kAxialForwardBlocksFew=6 kAxialForwardBlocks=4"
        " kAxialBackwardBlocks=4",
        # Does the next kernel find results in L2, and are inputs there for whom they make room?
        "write_back": "kAxialStore=0",
        "evict_first": "kAxialStore=2",
        # Is another block on each multiprocessor worth the spills that it costs?
        "more_blocks": "kAxialForwardBlocksFew=4 kAxialForwardBlocks=3 kAxialBackwardBlocks=3",
        # What does shared memory bring where registers are short, and what do registers?
        "unstaged": "kAxialStage=0",
        "held": "kAxialHoldQueries=10",
        "held_keys": "kAxialHoldKeys=10 kAxialAhead=9",
        # Do more blocks that end at other times fill the last wave better than one writes sums?
        "tiles2": "kAxialMostTiles=2",
    },
    "bias_gelu": {
        # More blocks with fewer registers, or fewer with more?
        "blocks6": "kGeluForward=6 kGeluBackward=6",
        "blocks3": "kGeluForward=3 kGeluBackward=3",
        # More loads in flight for each thread, or fewer?
        "loads4": "kGeluForwardLoads=4 kGeluBackwardLoads=2",
        "loads1": "kGeluForwardLoads=1",
    },
    "dropout_add_layer_norm": {
        # Is a row of 1,024 better in one warp?
        "chunks4": "kNormChunks=4 kNormForward=2 kNormBackward=1",
        # How many rows on their way are enough?
        "stages1": "kNormStages=1",
        "stages3": "kNormStages=3",
        # Fewer blocks with more registers, or more with spills?
        "blocks3": "kNormForward=3 kNormBackward=3",
        "blocks5": "kNormForward=5 kNormBackward=5",
        "warps8": "kNormWarps=8 kNormForward=2 kNormBackward=2",
    },
    "embed_tokens": {
        # Read what all rows share again, for more blocks?
        "unheld": "kEmbedHold=false kEmbedForwardResident=6 kEmbedPlacesResident=4",
        # Longer walks save sums and parameters, shorter ones fill the GPU.
        "short": "kEmbedForwardClips=4 kEmbedPlacesClips=8",
        "long": "kEmbedForwardClips=16 kEmbedPlacesClips=32",
        "runs4096": "kEmbedRuns=4096",
    },
    "linear_cross_entropy": {
        # Two blocks hide each other's barriers: does one with more registers, or do three, better?
        "blocks1": "kLossBlocks=1",
        "blocks3": "kLossBlocks=3",
        # Fewer columns to a thread, in more threads?
        "chunks2": "kLossChunks=2 kLossThreads=576",
        # How often do labels have to be read?
        "batch32": "kLossBatch=32",
    },
    "mask_tokens": {
        # A clip of the small model is 320 groups of four tokens: are fewer threads, of which none
        # waits for a second round, sooner done?
        "threads128": "kMaskThreads=128 kMaskResident=8",
        "threads512": "kMaskThreads=512 kMaskResident=2",
        # Does looking back often take memory traffic from the clips that are looked at?
        "wait100": "kMaskNanoseconds=100",
    },
    "tubelet_embed": {
        # More tubelets at a time on a multiprocessor, each of whose threads loads twice?
        "threads96": "kTubeletThreads=96",
    },
    "tubelet_mse": {
        # More warps that wait for their pixels, with fewer registers, or fewer?
        "blocks6": "kMseForward=6 kMseBackward=6",
        "blocks3": "kMseForward=3 kMseBackward=3",
        # Is reading half of the pixels again, from L1, worth the registers that it saves?
        "held3": "kMseHeld=3",
    },
}
# The same for Triton, whose values are read at each launch.
TRITON: dict[str, dict[str, dict[str, int]]] = {
    "axial_attention": {
        # Fewer registers for each warp, or fewer barriers, where a spill may cost less than both?
        "more_warps": {"BWD_WARPS_16x2": 4, "BWD_WARPS_32x2": 8},
        "fewer_warps": {"BWD_WARPS_16x2": 1, "BWD_WARPS_32x2": 2},
        # Tiles of q loaded once, for more registers?
        "held": {"BWD_HELD_BYTES": 4096},
        "columns32": {"BWD_COLUMNS_16x2": 32, "BWD_COLUMNS_32x2": 32},
    },
    "bias_gelu": {
        "elements4096": {"FWD_ELEMENTS": 4096, "BWD_ELEMENTS": 4096},
        "warps8": {"THREAD_ELEMENTS": 8},
        "programs4": {"PROGRAMS": 4},
    },
    "dropout_add_layer_norm": {
        "elements4096": {"FWD_ELEMENTS": 4096, "BWD_ELEMENTS": 4096},
        "warps8": {"THREAD_ELEMENTS": 8},
        "programs8": {"PROGRAMS": 8},
    },
    "embed_tokens": {
        "short": {"FORWARD_CLIPS": 4, "PLACES_CLIPS": 8},
        "tile4096": {"TILE": 4096},
    },
    "mask_tokens": {
        "cells256": {"CELLS": 256},
        "warps8": {"WARPS": 8},
    },
    "tubelet_embed": {
        "elements1024": {"ELEMENTS": 1024},
    },
    "tubelet_mse": {
        "warps8": {"THREAD_ELEMENTS": 8},
        "programs16": {"PROGRAMS": 16},
    },
}


def changes_of(op: str, text: str) -> dict[str, dict[str, str]]:
    """The changes of a variant, checked against the table."""
    return tuning.parse(" ".join(f"{op}.{c}" for c in text.split()), ROOT / "csrc")


def packs() -> list[dict[str, str]]:
    """One variant of each op to a module: op -> name."""
    names = ([(op, name) for name in variants] for op, variants in CUDA.items())
    return [dict(pair for pair in row if pair is not None) for row in itertools.zip_longest(*names)]


def build(folder: Path, first: Path | None = None) -> None:
    """Compiles and links everything into `folder`, with a manifest of the modules."""
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "9.0a")
    work = ROOT / "build" / f"gpu-{command.tag()}"
    nvcc = toolchain.find_nvcc()
    headers = command.copy_pybind11(toolchain.find_pybind11(), work)
    plan = ninja_file.NinjaFile(ROOT, toolchain.find_compiler(), headers, nvcc)
    plan.add_cpu_module()
    plan.add_cuda_module(nvcc)
    for number, pack in enumerate(packs(), 1):
        changes: dict[str, dict[str, str]] = {}
        for op, name in pack.items():
            changes |= changes_of(op, CUDA[op][name])
        plan.add_cuda_module(nvcc, changes, str(number))
    plan.write(work)
    subprocess.run([toolchain.find_ninja(), "-C", str(work)], check=True)
    shutil.rmtree(folder, ignore_errors=True)
    for module in plan.modules:
        target = folder / module if "/" in module else folder / "base" / module
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["strip", "--strip-unneeded", str(work / module), "-o", str(target)], check=True
        )
    manifest = {
        "commit": _commit(),
        "modules": {str(number): pack for number, pack in enumerate(packs(), 1)},
    }
    if first is not None:
        (folder / "first").mkdir()
        shutil.copy(first, folder / "first" / ninja_file.module_filename("_C_cuda"))
        manifest["modules"]["first"] = dict.fromkeys(CUDA, "first")
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*.so")) / 2**20
    print(f"{folder}: {len(plan.modules)} modules, {size:.1f} MiB")
    if size > MOST_MIB:
        sys.exit(f"error: that is more than the {MOST_MIB} MiB that can travel: drop variants")


def _commit() -> str:
    """The commit, `-dirty` if a tracked file differs from it."""

    def git(*arguments: str) -> str:
        said = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return said.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("diff", "HEAD") else "")


def load(folder: Path, op: str) -> dict[str, ModuleType]:
    """The built variants of an op, by name; {} if nothing was built."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return {}
    modules = json.loads(manifest.read_text())["modules"]
    return {pack[op]: _load(folder, number) for number, pack in modules.items() if op in pack}


def _load(folder: Path, number: str) -> ModuleType:
    # A name of its own: pybind11 hands out the first module of a name again.
    name = f"variant_{number}._C_cuda"
    if name in sys.modules:
        return sys.modules[name]
    path = folder / number / ninja_file.module_filename("_C_cuda")
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[name] = module
    return module


def main() -> None:
    """Builds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--first", type=Path, help="a _C_cuda of an earlier build")
    arguments = parser.parse_args()
    print(f"for {sysconfig.get_config_var('EXT_SUFFIX')}")
    build(arguments.folder.resolve(), arguments.first)


if __name__ == "__main__":
    main()
