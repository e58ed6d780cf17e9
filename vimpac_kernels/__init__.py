"""Fused kernels for VIMPAC: axial attention with [CLS], tied cross-entropy, block masks."""

from vimpac_kernels._library import available_impls
from vimpac_kernels.axial_attention import axial_attention
from vimpac_kernels.layer import AxialAttention
from vimpac_kernels.mask_tokens import mask_tokens
from vimpac_kernels.reference import LinearCrossEntropyOutput, MaskedTokens

__all__ = [
    "AxialAttention",
    "LinearCrossEntropyOutput",
    "MaskedTokens",
    "available_impls",
    "axial_attention",
    "mask_tokens",
]
