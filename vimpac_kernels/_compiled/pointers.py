"""How tensors reach the C++ kernels."""

from __future__ import annotations

from torch import Tensor


def aligned(tensor: Tensor | None) -> Tensor | None:
    """`tensor`, copied if it does not start at the 16 bytes of a CUDA kernel's loads."""
    return tensor if tensor is None or tensor.data_ptr() % 16 == 0 else tensor.clone()


def pointer(tensor: Tensor | None) -> int:
    """Its address; 0 for one that is not there or empty."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()
