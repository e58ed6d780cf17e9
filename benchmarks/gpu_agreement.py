"""Every op and backend of ours against the formula in fp64, outputs poisoned before each call.

    python benchmarks/gpu_agreement.py [--scale small] [--impl cuda] [--emulate]

Several processes share the cases, since Triton compiles on one core; they also call Triton's
kernels once at the published shapes, so that what is timed later is compiled by then. `--scale
small` stays in one process: for compute-sanitizer, and, with `--emulate`, for a rehearsal without
a GPU. `--scale load` only loads the compiled modules and calls one kernel. Exits with 1 if anything
is wrong or cannot run.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import common
import gpu_cases
import gpu_clock
import torch
from gpu_cases import Case
from torch import Tensor

import vimpac_kernels
from vimpac_kernels.runtime import registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.checks import assert_close

Job = tuple[str, int, str]  # scale, number of the case, implementation


@contextmanager
def emulated() -> Iterator[None]:
    """CUDA kernels on the emulator, for CPU tensors."""
    from tests.emulator import build

    with registry.override_extension("cuda", build.load("plain")):
        yield


def impls(op: str, device: str) -> list[str]:
    """The GPU implementations of an op that can run here."""
    names = common.KERNELS["cuda"]
    return [name for name in names if registry.backend_problem(name, op, device) is None]


def gradients(case: Case, tensors: list[Tensor], impl: str) -> list[Tensor]:
    """The outputs of a case and its gradients, for a drawn gradient of each output that has one."""
    outputs = case.call(tensors, impl)
    live, inputs = [out for out in outputs if out.requires_grad], case.inputs(tensors)
    if not live:
        return list(outputs)
    generator = torch.Generator(live[0].device).manual_seed(1)
    upstream = [  # in bf16, which fp32 and fp64 hold
        torch.randn(out.shape, generator=generator, device=out.device).bfloat16().to(out.dtype)
        for out in live
    ]
    return [*outputs, *torch.autograd.grad(live, inputs, upstream)]


class Truth:
    """The results of a case in fp64, and in its own dtype by the formula.

    Args:
        case: The case; its tensors are `tensors`.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.tensors = case, case.make()
        wide = [
            t.detach().double().requires_grad_() if t.is_floating_point() else t
            for t in self.tensors
        ]
        self.wide = gradients(case, wide, "reference")
        self.same = gradients(case, self.tensors, "reference")

    def check(self, impl: str) -> None:
        """Raises AssertionError unless an implementation is within the error bound of the truth."""
        with gpu_clock.poisoned():
            actual = gradients(self.case, self.tensors, impl)
        for i, (a, t, s) in enumerate(zip(actual, self.wide, self.same, strict=True)):
            if a.is_floating_point():
                assert_close(a, t, s)
            elif not torch.equal(a, s):
                raise AssertionError(f"output {i} differs in {int((a != s).sum())} places")


@functools.cache
def _cases(scale: str, device: str) -> list[Case]:
    return list(gpu_cases.cases(scale, device))


_lost: list[str] = []  # after a fault in a kernel a process can do nothing more on the device


def work(job: Job, device: str = "cuda") -> str | None:
    """Runs one job; returns what is wrong, or None."""
    scale, number, impl = job
    case = _cases(scale, device)[number]
    if _lost:
        return f"not run, as {_lost[0]} left the device unusable"
    try:
        if scale == "published":
            gradients(case, case.make(), impl)
        else:
            Truth(case).check(impl)
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        try:
            if device == "cuda":
                torch.cuda.synchronize()
        except RuntimeError:
            _lost.append(f"{case.label} {impl}")
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def jobs(scale: str, device: str, only: str | None) -> list[Job]:
    """All jobs, those that take long to compile first."""
    found = [
        (one, i, impl)
        for one in (scale, *(["published"] if scale == "check" else []))
        for i, case in enumerate(_cases(one, device))
        for impl in impls(case.op, device)
        if only in (None, impl) and (one != "published" or impl == "triton")
    ]
    return sorted(found, key=lambda job: job[2] != "triton")


def run(scale: str, device: str, only: str | None = None) -> gpu_clock.Log:
    """Runs all jobs; the log counts failures, and jobs that were not run when time ran out."""
    log = gpu_clock.Log()
    todo = jobs(scale, device, only)
    if not todo:
        log.fail("check", "no implementation of any op can run here")
    counts: dict[tuple[str, str], int] = {}

    def note(job: Job, problem: str | None) -> None:
        case = _cases(job[0], device)[job[1]]
        if problem is not None:
            log.fail(f"{case.op} {job[2]} {case.label}", problem)
        counts[case.op, job[2]] = counts.get((case.op, job[2]), 0) + (problem is None)

    if scale == "small":
        for job in todo:
            note(job, work(job, device))
    else:
        _share(todo, note)
    for (op, impl), count in sorted(counts.items()):
        log.say(f"{op} {impl}: {count} cases agree with fp64")
    return log


def _share(todo: list[Job], note: Callable[[Job, str | None], None]) -> None:
    """Divides jobs among processes; a stopped stage reports the jobs that it has not run."""
    processes = min(8, os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = {pool.submit(work, job): job for job in todo}
        try:
            for future in as_completed(futures):
                crash = future.exception()  # of the process, such as a signal
                problem = future.result() if crash is None else f"{type(crash).__name__}: {crash}"
                note(futures[future], problem)
        except KeyboardInterrupt:
            for future, job in futures.items():
                if future.running():
                    note(job, "out of time while it ran or was to run next")
            waiting = sum(not future.done() for future in futures)
            print(f"FAIL {waiting} of {len(todo)} cases were not done in time", flush=True)
            os._exit(1)  # without waiting for a process that may hang on the device


def loads() -> int:
    """Whether both compiled modules load, and the CUDA one has code for this GPU."""
    registry.extension("cpu")
    x = torch.ones(8, 8, device="cuda")
    print(float(vimpac_kernels.bias_gelu(x, x[0], impl="cuda").sum()), "is 64 times GELU(2)")
    return 0


def main() -> int:
    """Checks; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", default="check", choices=["check", "small", "load"])
    parser.add_argument("--impl", choices=common.KERNELS["cuda"])
    parser.add_argument("--emulate", action="store_true")
    arguments = parser.parse_args()
    if arguments.scale == "load":
        return loads()
    if arguments.emulate:
        with emulated():
            return int(run("small", "cpu", arguments.impl).failures > 0)
    return int(run(arguments.scale, "cuda", arguments.impl).failures > 0)


if __name__ == "__main__":
    sys.exit(main())
