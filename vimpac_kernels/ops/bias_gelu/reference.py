"""bias_gelu in eager PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vimpac_kernels.runtime.dtypes import accumulation_dtype


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """`vimpac_kernels.bias_gelu`: y = GELU(x + bias), the exact one; y has the dtype of x."""
    high = accumulation_dtype(x.dtype)
    return F.gelu(x.to(high) + bias.to(high)).to(x.dtype)
