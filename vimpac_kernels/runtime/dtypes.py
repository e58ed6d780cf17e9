"""The dtypes in which the specification accumulates, and in which products are computed."""

from __future__ import annotations

import torch
from torch import Tensor

from vimpac_kernels.runtime import registry


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of softmax, statistics and losses: fp64 for fp64, fp32 otherwise."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product_dtype(operand: Tensor) -> torch.dtype:
    """That of a matrix product with `operand`: autocast's where it is enabled, but for fp64."""
    device = operand.device.type
    if operand.dtype != torch.float64 and device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
    return operand.dtype


def cpu_product_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32 unless the processor multiplies `dtype`; torch's other 16-bit products are slower."""
    multiplies_bf16 = registry.extension("cpu").cpu_capability() == "avx512bf16"
    return dtype if dtype == torch.bfloat16 and multiplies_bf16 else torch.float32
