"""How kernels are launched: whose error is whose, and what is asked of the driver only once."""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.emulator import build

pytestmark = pytest.mark.skipif(
    build.unavailable() is not None, reason=str(build.unavailable() or "")
)

ILLEGAL_ADDRESS, INVALID_CONFIGURATION = 700, 9  # of cudaError_t
KIB = 1024


@pytest.fixture
def library(monkeypatch) -> ctypes.CDLL:
    """The emulated kernels on a device of which nothing is known yet."""
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    return ctypes.CDLL(str(build.load().__file__))


def _launch(library: ctypes.CDLL, shared_bytes: int = 0) -> str:
    """Launches a kernel, which runs unless the message that is returned says why not."""
    error, out = ctypes.create_string_buffer(500), ctypes.c_int(0)
    size = ctypes.c_size_t
    library.emulator_launch(size(shared_bytes), ctypes.byref(out), error, size(len(error)))
    assert out.value == (not error.value)
    return error.value.decode()


def test_error_that_was_there_before_is_not_the_kernels(library):
    library.emulator_leave_error(ILLEGAL_ADDRESS)
    message = "an earlier CUDA error was pending before emulated_kernel: an illegal memory access"
    assert _launch(library).startswith(message)
    assert _launch(library) == ""


def test_launch_that_reports_a_failed_kernel_does_not_blame_its_own(library, monkeypatch):
    """The launch is the first call to hear of it, so nothing was pending."""
    message = "an earlier CUDA error was pending before emulated_kernel: an illegal memory access"
    for blocking in ("0", ""):
        monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", blocking)
        library.emulator_fail_launch(ILLEGAL_ADDRESS)
        assert _launch(library).startswith(message)
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    library.emulator_fail_launch(ILLEGAL_ADDRESS)
    assert _launch(library) == "emulated_kernel: an illegal memory access was encountered"
    assert _launch(library) == ""


def test_launch_that_fails_has_its_kernels_name(library):
    library.emulator_fail_launch(INVALID_CONFIGURATION)
    assert _launch(library) == "emulated_kernel: invalid configuration argument"
    assert _launch(library) == ""


def test_large_shared_memory_is_allowed_once_for_a_kernel_and_device(library):
    def calls(*sizes: int) -> int:
        before = library.emulator_attribute_calls()
        with ThreadPoolExecutor(4) as pool:
            assert not any(pool.map(lambda size: _launch(library, size * KIB), sizes))
        return library.emulator_attribute_calls() - before

    library.emulator_set_device(1)
    assert calls(0, 48) == 0
    assert calls(*[60] * 8) == 1
    assert calls(50, 60) == 0
    assert calls(200) == 1
    assert calls(200, 60) == 0
    library.emulator_set_device(2)
    assert calls(*[60] * 8) == 1
    library.emulator_set_device(0)


def test_kernels_are_counted_once(library):
    _launch(library)
    before = library.emulator_kernels()
    _launch(library)
    assert library.emulator_kernels() == before
