"""The emulated CUDA kernels under AddressSanitizer, UBSan and ThreadSanitizer.

A child process runs the tests that are marked `sanitize`, with the sanitizer's runtime loaded.
ThreadSanitizer, for which a fiber costs a millisecond, leaves out what only repeats: neither the
element type nor fewer axes of a grid make a race. g++ takes minutes for AddressSanitizer, so that
needs `--sanitizers`.
"""

import re

import pytest

from tests.emulator import build

pytestmark = pytest.mark.skipif(
    build.unavailable() is not None, reason=str(build.unavailable() or "")
)
EMULATED = f"cuda-emulated-{build.SCHEDULES[-1]}"
REPEATS = "fp16 or bf16 or wide or aligned-fp32 or counted or images or text"
CHOSEN = {"asan": EMULATED, "tsan": f"{EMULATED} and not ({REPEATS})"}


@pytest.mark.parametrize("mode", CHOSEN)
def test_emulated_kernels_are_clean(mode, request):
    if mode == "asan" and not request.config.getoption("--sanitizers"):
        pytest.skip("compiling for AddressSanitizer takes minutes: pytest --sanitizers")
    selection = ["-m", "sanitize", "-k", CHOSEN[mode], f"--emulator-mode={mode}"]
    done = build.run_under(mode, ["-m", "pytest", "-q", "-p", "no:cacheprovider", *selection])
    said = done.stdout[-6000:] + done.stderr[-6000:]
    assert done.returncode == 0, said
    assert re.search(r"\b[1-9]\d* passed", done.stdout), said
