"""The fixture that runs one test body for every backend, and the settings that all tests share.

A test that takes `impl` runs once for each backend: `reference` and `cpu` natively, `triton` under
the interpreter in a process of its own, `cuda` on the emulator of tests/emulator, and, marked
`gpu`, `triton` and `cuda` on a device. `@pytest.mark.impls("cpu", "cuda")` names the backends of a
test or module. `@pytest.mark.sanitize` marks tests of small shapes: they also run under the
sanitizers, and on the emulator under three schedules instead of one.
"""

from __future__ import annotations

import os

# Before torch is imported, which reads it. By default a thread of OpenMP that has nothing to do
# goes on running for milliseconds. Tests share their cores with other processes, which wait for it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from tests import triton_process
from tests.emulator import build

pytest.register_assert_rewrite("tests.cases")  # so that its asserts say what they compared
torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN


@dataclass(frozen=True)
class Impl:
    """A backend under test: pass `impl=impl.name`, put tensors on `impl.device`."""

    name: str
    device: str = "cpu"
    schedule: int | None = None  # of the emulator; None: one that follows from the test's name

    @property
    def emulated(self) -> bool:
        """Whether CUDA kernels run on the emulator."""
        return self.name == "cuda" and self.device == "cpu"

    @property
    def label(self) -> str:
        """The backend and where it ran, for tables and messages."""
        if self.emulated:
            return "cuda (emulated)"
        if self.name == "triton" and self.device == "cpu":
            return "triton (interpreted)"
        return f"{self.name} ({self.device})"


def _params(names: tuple[str, ...], every_schedule: bool) -> list[object]:
    params: list[object] = []
    for name in names:
        if name == "triton":
            params.append(pytest.param(Impl(name), id=triton_process.FIXTURE_ID))
        elif name == "cuda" and every_schedule:
            for seed in build.SCHEDULES:
                params.append(pytest.param(Impl(name, schedule=seed), id=f"cuda-emulated-{seed}"))
        elif name == "cuda":
            params.append(pytest.param(Impl(name), id="cuda-emulated"))
        else:
            params.append(pytest.param(Impl(name), id=name))
        if name in ("triton", "cuda"):
            mark = pytest.mark.gpu
            params.append(pytest.param(Impl(name, "cuda"), id=f"{name}-gpu", marks=mark))
    return params


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Expands `impl` into the backends that the test or its module names."""
    if "impl" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("impls")
        names = marker.args if marker else ("reference", "cpu", "triton", "cuda")
        sanitize = metafunc.definition.get_closest_marker("sanitize") is not None
        metafunc.parametrize("impl", _params(names, sanitize), indirect=True)


@pytest.fixture
def impl(request: pytest.FixtureRequest) -> Iterator[Impl]:
    """The backend under test; CUDA kernels are emulated in place of the compiled extension."""
    chosen: Impl = request.param
    if chosen.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if not chosen.emulated:
        yield chosen
        return
    reason = build.unavailable()
    if reason is not None:
        pytest.skip(reason)
    from vimpac_kernels.runtime import registry

    module = build.load(request.config.getoption("--emulator-mode"))
    seed = chosen.schedule
    if seed is None:
        seed = build.SCHEDULES[zlib.crc32(request.node.name.encode()) % len(build.SCHEDULES)]
    build.set_schedule(module, seed)
    with registry.override_extension("cuda", module):
        yield chosen


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tiny tensors, where a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["portable", "avx2", "avx512", "avx512bf16"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set that the C++ kernels use; that and the threads are put back."""
    from vimpac_kernels.runtime import registry

    module = registry.extension("cpu")
    best, threads = module.cpu_capability(), torch.get_num_threads()
    try:
        module.set_cpu_capability(request.param)
    except ValueError as error:
        pytest.skip(str(error))  # this processor lacks it
    yield request.param
    module.set_cpu_capability(best)
    torch.set_num_threads(threads)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options that the tests' own child processes are given."""
    parser.addoption("--emulator-mode", default="plain", choices=list(build.FLAGS))
    parser.addoption(
        "--sanitizers", action="store_true", help="also run emulated kernels under AddressSanitizer"
    )
    parser.addoption(
        triton_process.OPTION, metavar="FILE", help="run interpreted Triton tests here"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the two ends of the process in which Triton kernels are interpreted."""
    report = config.getoption(triton_process.OPTION)
    plugin = triton_process.Child(report) if report else triton_process.Parent()
    config.pluginmanager.register(plugin, "triton_process")
