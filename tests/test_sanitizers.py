"""The emulated CUDA kernels under AddressSanitizer, UBSan and ThreadSanitizer.

A child process runs every test that is marked `sanitize`, with the sanitizer's runtime loaded.
g++ needs minutes for the axial kernels in these modes, so it takes `pytest --sanitizers`.
"""

import re

import pytest
from emulator import build

pytestmark = pytest.mark.skipif(
    build.unavailable() is not None, reason=str(build.unavailable() or "")
)


@pytest.mark.parametrize("mode", ["asan", "tsan"])
def test_emulated_kernels_are_clean(mode, request):
    if not request.config.getoption("--sanitizers"):
        pytest.skip("compiling the kernels under a sanitizer takes minutes: pytest --sanitizers")
    selection = [
        "-m",
        "sanitize and not gpu",
        "-k",
        f"cuda-emulated-{build.SCHEDULES[-1]}",
        f"--emulator-mode={mode}",
    ]
    done = build.run_under(mode, ["-m", "pytest", "-q", "-p", "no:cacheprovider", *selection])
    said = done.stdout[-6000:] + done.stderr[-6000:]
    assert done.returncode == 0, said
    assert re.search(r"\b[1-9]\d* passed", done.stdout), said
