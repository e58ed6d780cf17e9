"""Attention along the axes of a token grid, with its projections."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_kernels.ops.axial_attention import JOINT_AXES, axial_attention, check_axes
from vimpac_kernels.ops.axial_attention.reference import axial_attention_weights
from vimpac_kernels.runtime import registry
from vimpac_kernels.runtime.checks import as_int, as_sizes, check_dropout, check_flag, check_tensor


class AxialAttention(nn.Module):
    """Projects to q, k, v, attends along `axes` with one [CLS], and projects back.

    Parameters are named and shaped as in `nn.MultiheadAttention`, which axes="THW" equals.

    Args:
        embed_dim: Width D of the input and output.
        num_heads: Heads N, divisible by the number of axes in `axes`.
        axes: As in `axial_attention`: "T", "H|W", "THW", ...
        head_dim: Width Dh of a head; default embed_dim // num_heads.
        dropout: Probability of dropping a softmax weight while training.
        bias: Whether both projections have a bias.
        impl: As in `axial_attention`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        TypeError: If an argument has a wrong type, naming it.
        ValueError: If `axes` or `impl` is not legal, or a size is not positive or does not divide.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        axes: str = "H|W",
        *,
        head_dim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        embed_dim, num_heads = as_int("embed_dim", embed_dim), as_int("num_heads", num_heads)
        head_dim = None if head_dim is None else as_int("head_dim", head_dim)
        if min(embed_dim, num_heads, 1 if head_dim is None else head_dim) < 1:
            raise ValueError(
                f"embed_dim, num_heads and head_dim must be positive, got {embed_dim}, "
                f"{num_heads} and {head_dim}"
            )
        check_axes(axes, num_heads)
        if head_dim is None:
            if embed_dim % num_heads:
                raise ValueError(f"embed_dim {embed_dim} is not a multiple of {num_heads} heads")
            head_dim = embed_dim // num_heads
        check_dropout(dropout, "dropout")
        check_flag("bias", bias)
        registry.check_impl("axial_attention", impl)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype must be a floating dtype, got {dtype!r}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.axes, self.dropout, self.impl = axes, dropout, impl
        inner = num_heads * head_dim
        weight = torch.empty((3 * inner, embed_dim), device=device, dtype=dtype)
        self.in_proj_weight = nn.Parameter(weight)
        if bias:
            empty = torch.empty(3 * inner, device=device, dtype=dtype)
            self.in_proj_bias: nn.Parameter | None = nn.Parameter(empty)
        else:
            self.register_parameter("in_proj_bias", None)
        self.out_proj = nn.Linear(inner, embed_dim, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises as `nn.MultiheadAttention` does: Xavier-uniform q, k, v, zero biases."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj.reset_parameters()
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    @classmethod
    def from_multihead_attention(
        cls, mha: nn.MultiheadAttention, axes: str = "H|W", *, impl: str = "auto"
    ) -> AxialAttention:
        """A layer with a copy of the weights of `mha`, on its device and in its dtype.

        Each copy has the `requires_grad` of its original.

        Args:
            mha: Self-attention with one width for q, k and v. The layer takes (B, S, D) whatever
                its `batch_first`.
            axes: As in `axial_attention`.
            impl: As in `axial_attention`.

        Raises:
            TypeError: If `mha` is not an nn.MultiheadAttention.
            ValueError: If `mha` has kdim or vdim of its own, add_bias_kv or add_zero_attn.
        """
        if not isinstance(mha, nn.MultiheadAttention):
            raise TypeError(f"mha must be an nn.MultiheadAttention, got {type(mha).__name__}")
        if mha.in_proj_weight is None or mha.bias_k is not None or mha.add_zero_attn:
            raise ValueError(
                "mha must be self-attention without kdim, vdim, add_bias_kv and add_zero_attn"
            )
        weight = mha.in_proj_weight
        layer = cls(
            mha.embed_dim,
            mha.num_heads,
            axes,
            dropout=mha.dropout,
            bias=mha.in_proj_bias is not None,
            impl=impl,
            device=weight.device,
            dtype=weight.dtype,
        )
        layer.load_state_dict(mha.state_dict())
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(mha.get_parameter(name).requires_grad)
        return layer.train(mha.training)

    def forward(
        self,
        x: Tensor,
        grid: tuple[int, int, int] | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        need_weights: bool = False,
        seed: int | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """Attends: `out_proj(attend(...).flatten(2))` in the shape of x.

        Args:
            x: (B, 1 + T*H*W, D) with [CLS] as row 0, (B, T*H*W, D), or (B, T, H, W, D).
            grid: (T, H, W); needed with the first two, taken from the shape of the third.
            key_padding_mask: (B, T, H, W) bool, True = never a key.
            need_weights: Also return the probabilities, for plots: eager PyTorch computes them
                again, which needs memory for all of them.
            seed: As in `attend`.

        Returns:
            The shape of x; with `need_weights` (that, weights). The weights are a tuple of one
            tensor (B, n, lines, K, K) for each axis in `axes`, fp32 (fp64 for fp64), not averaged
            over the n = N / groups heads of the axis and before dropout: rows are queries, columns
            keys, both the L tokens of a line, then [CLS] if x has it (K = L + 1). The line of token
            (t, h, w) is h*W + w for "T", t*W + w for "H", t*H + h for "W", t for "HW", 0 for
            "THW"; its place in it t, h, w, h*W + w, (t*H + h)*W + w. Padding has 0 as a key; the
            others' sum to 1, or are 0 in a line of padding only. The output of [CLS] is the mean
            over the lines.

        Raises:
            TypeError: If an argument has a wrong type, naming it.
            ValueError: If the shape of x does not fit `grid` or the layer.
        """
        check_flag("need_weights", need_weights)
        attended = self.attend(x, grid, key_padding_mask, seed=seed)
        out = self.out_proj(attended.flatten(2)).view(x.shape)
        if not need_weights:
            return out
        rows, sizes = self._rows(x, grid)
        qkv = F.linear(rows, self.in_proj_weight, self.in_proj_bias).unflatten(-1, self._shape)
        return out, axial_attention_weights(
            qkv, sizes, self.axes, key_padding_mask=key_padding_mask
        )

    def attend(
        self,
        x: Tensor,
        grid: tuple[int, int, int] | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        seed: int | Tensor | None = None,
    ) -> Tensor:
        """Everything before the output projection, which a model may fuse with its next op.

        For example `dropout_add_layer_norm(F.linear(rows, out_proj.weight), ..., linear_bias=
        out_proj.bias)` for some rows of the result. Forward hooks do not run here: a layer that is
        itself a unit of `fully_shard` needs `register_fsdp_forward_method(layer, "attend")`.

        Args:
            x: As in `forward`.
            grid: As in `forward`.
            key_padding_mask: As in `forward`.
            seed: Of the dropout: int in [-2^63, 2^63), or 0-d int64 tensor on the device of x. None
                draws one from PyTorch's generator. Where `follows_seed` is False, dropout draws
                from that generator whatever the seed.

        Returns:
            (B, S, N, Dh): S rows of x, for (B, T, H, W, D) its T*H*W tokens.

        Raises:
            TypeError: If an argument has a wrong type, naming it.
            ValueError: If the shape of x does not fit `grid` or the layer.
        """
        x, grid = self._rows(x, grid)
        bias: Tensor | None = self.in_proj_bias
        has_kernel = self.follows_seed(x.device)
        options: dict[str, Any] = {"seed": seed} if has_kernel else {}
        if bias is not None and has_kernel:  # which sums its gradient
            options |= {"bias": bias.view(self._shape), "bias_in_qkv": not x.is_cpu}
            bias = None if x.is_cpu else bias.detach()  # on a CPU the kernel adds it, too
        qkv = F.linear(x, self.in_proj_weight, bias)
        return axial_attention(
            qkv.unflatten(-1, self._shape),
            grid,
            self.axes,
            key_padding_mask=key_padding_mask,
            dropout_p=self.dropout if self.training else 0.0,
            impl=self.impl,
            **options,
        )

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Of a row of the projection: q, k, v of all heads."""
        return 3, self.num_heads, self.head_dim

    def _rows(
        self, x: Tensor, grid: tuple[int, int, int] | None
    ) -> tuple[Tensor, tuple[int, int, int]]:
        """x as (B, S, D) and its grid, checked."""
        check_tensor("x", x)
        if grid is not None:
            grid = as_sizes("grid", grid, "three sizes (T, H, W) >= 1")
        if x.dim() == 5:
            _, T, H, W, _ = x.shape
            if grid is not None and grid != (T, H, W):
                raise ValueError(f"grid {grid} does not fit x {tuple(x.shape)}")
            x, grid = x.flatten(1, 3), (T, H, W)
        if x.dim() != 3 or grid is None:
            raise ValueError(
                f"x must be (B, T, H, W, D), or (B, [1 +] T*H*W, D) with grid=(T, H, W), "
                f"got {tuple(x.shape)} and grid={grid}"
            )
        if x.shape[-1] != self.embed_dim:
            raise ValueError(f"x must be {self.embed_dim} wide, got {tuple(x.shape)}")
        return x, grid

    def follows_seed(self, device: torch.device) -> bool:
        """Whether dropout on a device follows `seed`; joint axes on a GPU go through SDPA."""
        return device.type == "cpu" or self.axes not in JOINT_AXES

    def extra_repr(self) -> str:
        """Sizes for `repr`."""
        return (
            f"{self.embed_dim}, {self.num_heads}, axes={self.axes!r}, head_dim={self.head_dim}, "
            f"dropout={self.dropout}"
        )
