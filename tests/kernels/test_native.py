"""What every kernel's call goes through: fields by keyword, each with the dtype it must have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vimpac_kernels import bias_gelu
from vimpac_kernels.runtime import native

COMPILED = pytest.mark.impls("cpu", "cuda")


def arguments(device: str, **changed: Any) -> dict[str, Any]:
    """Those of bias_gelu_fwd."""
    x = torch.ones(3, 16, device=device)
    return {"x": x, "bias": torch.zeros(16, device=device), "y": torch.empty_like(x)} | changed


@COMPILED
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"bias": torch.zeros(16, dtype=torch.bfloat16)},
            "bias: the kernel does not take torch.bf",
        ),
        ({"bias": 3.0}, "bias must be a tensor, got 3.0"),
        ({"x": torch.ones(3, 16, dtype=torch.int64)}, "x: the kernel does not take torch.int64"),
        ({"weight": torch.zeros(16)}, "bias_gelu_fwd does not take all of .*'weight'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_argument_is_named(impl, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        native.launch(impl.name, "bias_gelu_fwd", **arguments(impl.device, **changed))


@COMPILED
@pytest.mark.parametrize("shape", [(16,), (2, 1, 1, 1, 1, 1, 1, 16)])
def test_any_number_of_dimensions(impl, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device=impl.device)
    expected = bias_gelu(x, x.flatten()[:16], impl="reference")
    actual = bias_gelu(x, x.flatten()[:16], impl=impl.name)
    assert actual.shape == shape
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.impls("cuda")
def test_inputs_are_copied_to_where_kernels_can_load_them(impl) -> None:
    """And results are not, whose copy nobody would read."""
    memory = torch.randn(4, 17, device=impl.device).flatten()
    x, y = memory[1:49].view(3, 16), torch.empty(49, device=impl.device)
    assert x.data_ptr() % 16 != 0
    call = arguments(impl.device, x=x)
    native.launch(impl.name, "bias_gelu_fwd", **call)
    expected = bias_gelu(x, call["bias"], impl="reference")
    torch.testing.assert_close(call["y"], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="y must start at a multiple of 16 bytes"):
        native.launch(impl.name, "bias_gelu_fwd", **call | {"y": y[1:].view(3, 16)})
