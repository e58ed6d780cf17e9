"""Fused kernels for VIMPAC: embedding, axial attention, dropout + LayerNorm, GELU, loss, masks."""

from vimpac_kernels._library import available_impls
from vimpac_kernels.axial_attention import axial_attention
from vimpac_kernels.bias_gelu import bias_gelu
from vimpac_kernels.dropout_add_layer_norm import dropout_add_layer_norm
from vimpac_kernels.embed_tokens import embed_tokens
from vimpac_kernels.layer import AxialAttention
from vimpac_kernels.linear_cross_entropy import TiedLinearCrossEntropy, linear_cross_entropy
from vimpac_kernels.mask_tokens import mask_tokens
from vimpac_kernels.reference import LinearCrossEntropyOutput, MaskedTokens

__all__ = [
    "AxialAttention",
    "LinearCrossEntropyOutput",
    "MaskedTokens",
    "TiedLinearCrossEntropy",
    "available_impls",
    "axial_attention",
    "bias_gelu",
    "dropout_add_layer_norm",
    "embed_tokens",
    "linear_cross_entropy",
    "mask_tokens",
]
