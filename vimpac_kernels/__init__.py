"""Fused kernels for VIMPAC: embedding, axial attention, dropout + LayerNorm, GELU, loss, masks."""

from vimpac_kernels.layers import AxialAttention, TiedLinearCrossEntropy
from vimpac_kernels.ops.axial_attention import axial_attention
from vimpac_kernels.ops.bias_gelu import bias_gelu
from vimpac_kernels.ops.dropout_add_layer_norm import dropout_add_layer_norm
from vimpac_kernels.ops.embed_tokens import embed_tokens
from vimpac_kernels.ops.linear_cross_entropy import linear_cross_entropy
from vimpac_kernels.ops.mask_tokens import mask_tokens
from vimpac_kernels.ops.tubelet_embed import tubelet_embed
from vimpac_kernels.ops.tubelet_mse import tubelet_mse
from vimpac_kernels.reference import LinearCrossEntropyOutput, MaskedTokens
from vimpac_kernels.runtime.registry import IMPLS, OPS, available_impls

__all__ = [
    "IMPLS",
    "OPS",
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
    "tubelet_embed",
    "tubelet_mse",
]
