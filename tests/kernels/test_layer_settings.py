"""The layers check their settings when they are made, and weights keep what they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vimpac_kernels import AxialAttention, TiedLinearCrossEntropy
from vimpac_kernels.runtime import registry


def _attention(impl: str) -> AxialAttention:
    return AxialAttention(64, 4, impl=impl)


def _classifier(impl: str) -> TiedLinearCrossEntropy:
    return TiedLinearCrossEntropy(nn.Parameter(torch.ones(5, 8)), impl=impl)


@pytest.mark.parametrize("make", [_attention, _classifier])
def test_an_unknown_impl_is_refused_when_the_layer_is_made(make) -> None:
    with pytest.raises(ValueError, match="impl must be 'auto' or one of 'cuda', .* got 'tritn'"):
        make("tritn")


@pytest.mark.parametrize("name", registry.IMPLS)
def test_a_known_impl_is_refused_in_the_call_that_it_cannot_run(name: str) -> None:
    """The layer may be made on one machine, or one device, for another."""
    layer, x = _attention(name), torch.ones(1, 24, 64)
    reason = registry.backend_problem(name, "axial_attention", "cpu")
    if reason is None:
        assert layer(x, (2, 3, 4)).shape == x.shape
    else:
        with pytest.raises(RuntimeError, match=f"impl='{name}' cannot run this call: "):
            layer(x, (2, 3, 4))


@pytest.mark.parametrize("wrong", [nn.Linear(8, 8), None, AxialAttention(8, 2)], ids=type)
def test_weights_come_from_a_multihead_attention_only(wrong) -> None:
    with pytest.raises(TypeError, match=f"mha must be .* got {type(wrong).__name__}"):
        AxialAttention.from_multihead_attention(wrong)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_frozen_weights_stay_frozen(bias: bool) -> None:
    mha = nn.MultiheadAttention(8, 2, bias=bias)
    for frozen, parameter in mha.named_parameters():
        parameter.requires_grad_(False)
        layer = AxialAttention.from_multihead_attention(mha)
        assert [n for n, p in layer.named_parameters() if not p.requires_grad] == [frozen]
        parameter.requires_grad_(True)


def test_sdpa_is_an_impl_of_attention_only() -> None:
    with pytest.raises(ValueError, match="impl must be"):
        _classifier("sdpa")
