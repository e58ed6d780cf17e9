"""The static report of GPU kernels says what is wrong with one."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import kernel_report
from cubins import INSTRUCTIONS, Kernel


def _problems(name: str, **counts: int) -> list[str]:
    wide = {"HMMA": 8, "LDG": 8, "LDG.128": 8, "STG": 8, "STG.128": 8}
    kernel = Kernel(
        name, 90, 64, 0, 0, 4, counts={**dict.fromkeys(INSTRUCTIONS, 0), **wide, **counts}
    )
    found = kernel_report.problems("cuda", [kernel])
    return [problem for problem in found if "fix EXPECTED" not in problem]


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("axial_attention_fwd_kernel<__half, 3, 2>", 20),
        ("dropout_add_layer_norm_fwd_kernel<float, float, 2>", 2),
        ("bias_gelu_fwd_kernel<__half>", 0),
        ("kernel_of_a_new_op<float>", 0),
    ],
)
def test_wide_stores_that_were_taken_apart_are_an_error(name, most):
    assert _problems(name, STG=8 + most) == []
    (problem,) = _problems(name, STG=8 + most + 1)
    assert problem.startswith(f"{name} has {most + 1} stores of less than 16 bytes on sm_90a")


def test_kernel_without_what_its_op_needs_is_an_error():
    name = "linear_cross_entropy_fwd_kernel<float>"
    assert _problems(name, **{"STG.128": 0, "STG": 2}) == [f"{name} has no STG.128 on sm_90a"]
    assert _problems(name, **{"LDG.128": 0}) == [f"{name} has no LDG.128 on sm_90a"]
    assert _problems(name, **{"LDG.128": 0, "LDGSTS.128": 4}) == []  # by way of shared memory
    assert _problems(name, STL=1) == [f"{name} spills on sm_90a: 0 bytes of stack, 1 STL, 0 LDL"]
