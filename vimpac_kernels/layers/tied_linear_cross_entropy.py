"""The loss of a classifier whose weight is that of an embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vimpac_kernels.ops.linear_cross_entropy import check_options, linear_cross_entropy
from vimpac_kernels.ops.linear_cross_entropy.reference import LinearCrossEntropyOutput
from vimpac_kernels.runtime import registry
from vimpac_kernels.runtime.checks import check_flag, check_tensor


class TiedLinearCrossEntropy(nn.Module):
    """Predicts tokens with the weight of their embedding and a bias of its own.

    Args:
        weight: (V, D), the embedding's parameter, shared.
        bias: Whether to add a learned bias, zero at first.
        label_smoothing: As in `linear_cross_entropy`.
        z_loss: As in `linear_cross_entropy`.
        impl: As in `linear_cross_entropy`.

    Raises:
        TypeError: If an argument has a wrong type, naming it.
        ValueError: If a shape or an option is not as above.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        *,
        bias: bool = True,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_tensor("weight", weight)
        if weight.dim() != 2:
            raise ValueError(f"weight must be (V, D), got {tuple(weight.shape)}")
        check_flag("bias", bias)
        check_options(label_smoothing, z_loss)
        registry.check_impl("linear_cross_entropy", impl)
        self.weight = weight
        bias_like = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
        self.bias = nn.Parameter(bias_like) if bias else None
        self.label_smoothing, self.z_loss, self.impl = label_smoothing, z_loss, impl

    def forward(
        self,
        input: Tensor,  # (..., D)
        target: Tensor,  # (...)
        positions: Tensor | None = None,  # (capacity,) int32
        count: Tensor | None = None,  # 0-d int32
    ) -> LinearCrossEntropyOutput:
        """Returns the mean loss, the accuracy and the number of targets of the chosen rows."""
        output = linear_cross_entropy(
            input,
            self.weight,
            target,
            linear_bias=self.bias,
            positions=positions,
            count=count,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            return_stats=True,
            impl=self.impl,
        )
        assert isinstance(output, LinearCrossEntropyOutput)
        return output

    def extra_repr(self) -> str:
        """The sizes, for print(module)."""
        V, D = self.weight.shape
        return f"{D}, {V}, bias={self.bias is not None}"
