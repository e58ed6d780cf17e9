"""The specification: every op in eager PyTorch, for any floating dtype, differentiable by autograd.

Each function takes what the public function of the same name takes, with every default resolved
(a seed, a scale, block bounds), and defines what all kernels must return. Matrix products run in
the input's dtype, softmax and statistics in fp32 (fp64 for fp64 inputs). Speed is no concern here.
"""

from vimpac_kernels.ops.axial_attention.lines import to_lines
from vimpac_kernels.ops.axial_attention.reference import axial_attention, axial_attention_weights
from vimpac_kernels.ops.bias_gelu.reference import bias_gelu
from vimpac_kernels.ops.dropout_add_layer_norm.reference import dropout_add_layer_norm
from vimpac_kernels.ops.embed_tokens.reference import embed_tokens
from vimpac_kernels.ops.linear_cross_entropy.reference import (
    LinearCrossEntropyOutput,
    linear_cross_entropy,
)
from vimpac_kernels.ops.mask_tokens.reference import MaskedTokens, mask_tokens
from vimpac_kernels.ops.tubelet_embed.reference import tubelet_embed
from vimpac_kernels.ops.tubelet_mse.reference import tubelet_mse, tubelet_targets
from vimpac_kernels.runtime.dtypes import accumulation_dtype

__all__ = [
    "LinearCrossEntropyOutput",
    "MaskedTokens",
    "accumulation_dtype",
    "axial_attention",
    "axial_attention_weights",
    "bias_gelu",
    "dropout_add_layer_norm",
    "embed_tokens",
    "linear_cross_entropy",
    "mask_tokens",
    "to_lines",
    "tubelet_embed",
    "tubelet_mse",
    "tubelet_targets",
]
