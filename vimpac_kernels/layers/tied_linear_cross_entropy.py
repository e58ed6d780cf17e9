"""The loss of a classifier whose weight is that of an embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vimpac_kernels.ops.linear_cross_entropy import check_options, linear_cross_entropy
from vimpac_kernels.ops.linear_cross_entropy.reference import LinearCrossEntropyOutput
from vimpac_kernels.runtime import registry
from vimpac_kernels.runtime.checks import check_flag


class TiedLinearCrossEntropy(nn.Module):
    """Predicts tokens with the weight of their embedding and a bias of its own.

    Args:
        weight: The nn.Embedding, which another module owns, or its parameter (V, D). The weight of
            an embedding is read in every forward and is neither a parameter of this layer nor in
            its state dict, so the tie outlives `fully_shard`, `load_state_dict(assign=True)` and
            a new `embedding.weight`. A parameter becomes one of this layer, too.
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
        weight: nn.Parameter | nn.Embedding,
        *,
        bias: bool = True,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        table = weight.weight if isinstance(weight, nn.Embedding) else weight
        if not isinstance(table, Tensor):
            raise TypeError(f"weight must be a tensor or an nn.Embedding, got {weight!r}")
        if not table.is_floating_point():
            raise TypeError(f"weight must be floating, got {table.dtype}")
        if table.dim() != 2:
            raise ValueError(f"weight must be (V, D), got {tuple(table.shape)}")
        check_flag("bias", bias)
        check_options(label_smoothing, z_loss)
        registry.check_impl("linear_cross_entropy", impl)
        # In a tuple the embedding is no submodule.
        self._embedding = (weight,) if isinstance(weight, nn.Embedding) else ()
        if not self._embedding:
            self.weight = table
        bias_like = torch.zeros(table.shape[0], dtype=table.dtype, device=table.device)
        self.bias = nn.Parameter(bias_like) if bias else None
        self.label_smoothing, self.z_loss, self.impl = label_smoothing, z_loss, impl

    @property
    def linear_weight(self) -> Tensor:
        """The weight (V, D) as it is now."""
        return self._embedding[0].weight if self._embedding else self.weight

    def forward(
        self,
        input: Tensor,  # (..., D)
        target: Tensor,  # (...)
        positions: Tensor | None = None,  # (capacity,) int32
        count: Tensor | None = None,  # 0-d int32
        *,
        ignore_index: int = -100,
    ) -> LinearCrossEntropyOutput:
        """Returns the mean loss, the accuracy and the number of targets of the chosen rows.

        Args:
            input: (..., D).
            target: (...), int32 or int64 in [0, V), or `ignore_index`.
            positions: As in `linear_cross_entropy`.
            count: As in `linear_cross_entropy`.
            ignore_index: As in `linear_cross_entropy`.
        """
        output = linear_cross_entropy(
            input,
            self.linear_weight,
            target,
            linear_bias=self.bias,
            positions=positions,
            count=count,
            ignore_index=ignore_index,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            return_stats=True,
            impl=self.impl,
        )
        assert isinstance(output, LinearCrossEntropyOutput)
        return output

    def extra_repr(self) -> str:
        """The sizes, for print(module)."""
        V, D = self.linear_weight.shape
        return f"{D}, {V}, bias={self.bias is not None}"
