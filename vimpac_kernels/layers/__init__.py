"""The ops as layers: attention along the axes of a token grid, loss with a tied weight."""

from vimpac_kernels.layers.axial_attention import AxialAttention
from vimpac_kernels.layers.tied_linear_cross_entropy import TiedLinearCrossEntropy

__all__ = ["AxialAttention", "TiedLinearCrossEntropy"]
