"""The emulator's own test: it notices every broken kernel of emulator/broken.cu, and only those."""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest

from tests.emulator import build

pytestmark = pytest.mark.skipif(
    build.unavailable() is not None, reason=str(build.unavailable() or "")
)

# Case -> {mode: what it says}. A mode that is not named may notice the bug or not. Plain looks for
# the words under all schedules, since one schedule may hide what another shows.
WRONG, RACE = r"wrong: out\[\d+\]", "ThreadSanitizer: data race"
HERE = r" at \S*broken\.cu:\d+, thread \d+, block \(\d+, 0, 0\)"
BROKEN = {
    "arena_too_big": {"plain": "16384 bytes of dynamic shared memory taken, launched with 4096"},
    "async_misaligned": {"plain": "not aligned to 16 bytes: cp_async" + HERE},
    "async_pipeline_short_wait": {"plain": WRONG},
    "async_to_global": {"plain": "destination is not in shared memory: cp_async" + HERE},
    "async_uncommitted": {"plain": WRONG},
    "async_without_barrier": {"plain": WRONG, "tsan": RACE},
    "async_without_wait": {"plain": WRONG},
    "block_count_race": {"tsan": RACE},
    "chained_blocks_by_index": {"plain": "no progress: __nanosleep" + HERE},
    "divergent_shuffle": {"plain": "deadlock: __s"},
    "exited_lane": {"plain": "mask names lanes that have exited: __shfl_sync" + HERE},
    "foreign_mask": {"plain": "a lane that is not in its own mask: __shfl_sync" + HERE},
    "global_overrun": {"asan": "heap-buffer-overflow"},
    "global_store_to_shared": {"plain": "address is in shared memory: __stcg" + HERE},
    "grid_sum_race": {"tsan": RACE},
    "half_a_barrier": {"plain": "mask names lanes that have exited: __syncwarp" + HERE},
    "integer_overflow": {"asan": "signed integer overflow"},
    "launch_too_many_threads": {"plain": "1056 threads in a block"},
    "launch_too_much_shared": {"plain": "307200 bytes of shared memory, at most 232448"},
    "ldmatrix_from_global": {"plain": "row is not in shared memory: ldmatrix" + HERE},
    "ldmatrix_misaligned": {"plain": "row is not aligned to 16 bytes: ldmatrix" + HERE},
    "misaligned_vector": {"asan": "misaligned address"},
    "read_after_write": {"plain": WRONG, "tsan": RACE},
    "register_array_overrun": {"asan": "out of bounds|stack-buffer-overflow"},
    "reused_scratch": {"plain": WRONG, "tsan": RACE},
    "shared_overrun": {"asan": "use-after-poison"},
    "shared_underrun": {"asan": "use-after-poison"},
    "shift_overflow": {"asan": "shift exponent"},
    "source_outside_mask": {"plain": "the source lane is outside the mask: __shfl_sync" + HERE},
    "two_barrier_sites": {"plain": "divergent __syncthreads" + HERE + " and: __syncthreads" + HERE},
    "two_masks": {"plain": "divergent|deadlock"},
    "uninitialized_shared": {"plain": WRONG},
    "warp_exchange": {"plain": WRONG, "tsan": RACE},
    "write_after_read": {"plain": WRONG, "tsan": RACE},
}

# Device code that the emulator cannot run, or would run as something else.
FORBIDDEN = r"\basm\b|<<<|\b__shared__\b|\bcooperative_groups\b|\b__CUDA_ARCH__\b|\b__activemask\b"


@cache
def outputs(mode: str) -> dict[str, list[tuple[int, str]]]:
    """Exit status and output of the cases judged under `mode`, one pair for each schedule."""
    program = build.build("broken", [build.EMULATOR / "broken.cu"], mode)
    environment = {**build.sanitizer_environment(mode), "LD_PRELOAD": ""}
    seeds = build.SCHEDULES if mode == "plain" else build.SCHEDULES[-1:]

    def run(case: str) -> list[tuple[int, str]]:
        done = [
            subprocess.run(
                [program, case, str(seed)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
            )
            for seed in seeds
        ]
        return [(d.returncode, d.stdout + d.stderr) for d in done]

    cases = subprocess.run([program], env=environment, capture_output=True, text=True, check=True)
    names = [n for n in cases.stdout.split() if n.endswith("_ok") or mode in BROKEN[n]]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(run, names), strict=True))


@pytest.mark.parametrize("mode", build.FLAGS)
def test_notices_broken_kernels(mode):
    missed = [
        f"{case}: expected {expected[mode]!r}, got {outputs(mode)[case]}"
        for case, expected in BROKEN.items()
        if mode in expected
        and not any(
            status != 0 and re.search(expected[mode], text) for status, text in outputs(mode)[case]
        )
    ]
    assert not missed, "\n".join(missed)


@pytest.mark.parametrize("mode", build.FLAGS)
def test_accepts_correct_kernels(mode):
    correct = {name: runs for name, runs in outputs(mode).items() if name.endswith("_ok")}
    alarms = {n: runs for n, runs in correct.items() if any(status != 0 for status, _ in runs)}
    assert len(correct) >= 10 and not alarms


def test_kernel_sources_keep_to_the_contract():
    outside = [
        path
        for path in (*build.CSRC.glob("*/*.cu"), *build.CSRC.glob("*/*.cuh"))
        if path.name not in ("platform.cuh", "mma.cuh")
    ]
    found = [
        f"{path.relative_to(build.CSRC)}:{number}: {line.strip()}"
        for path in outside
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(FORBIDDEN, line)
    ]
    assert outside and not found, "\n".join(found)


def test_processes_build_one_after_another(monkeypatch, tmp_path):
    """pytest-xdist's workers ask for the same objects at the same moment."""
    ninja = tmp_path / "ninja"
    ninja.write_text(f"#!/bin/sh\nmkdir {tmp_path}/busy && sleep 0.1 && rmdir {tmp_path}/busy\n")
    ninja.chmod(0o755)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "find_tool", lambda _: str(ninja))
    with ThreadPoolExecutor() as pool:  # a lock on a file keeps threads apart, too
        list(pool.map(lambda _: build.build("wrappers.so", []), range(4)))
