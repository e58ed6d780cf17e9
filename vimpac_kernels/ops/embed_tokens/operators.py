"""embed_tokens as operators: what is kept for the backward, and the gradients' layout.

The backward fills two buffers: the gradient of the embedding, and `dvectors`, (T + H + W + 3, D):
the rows of the gradients of time, height, width, cls, weight and bias, whether or not there are
such tensors, so that one launch can add up all of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vimpac_kernels.ops.embed_tokens.sorted_ids import sort_ids
from vimpac_kernels.runtime import autograd, library, native, philox

_NAME = "embed_tokens"

KERNELS = ("cuda", "triton", "cpu")  # best first
_TABLES = ("embedding", "time", "height", "width", "cls", "weight", "bias")


class EmbedTokens(torch.autograd.Function):
    """y with the gradients of the embedding, positions, cls, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,  # (B, T, H, W) int32 or int64
        embedding: Tensor,  # (V, D)
        time: Tensor | None,  # (T, D)
        height: Tensor | None,  # (H, D)
        width: Tensor,  # (W, D)
        cls: Tensor | None,  # (D,)
        weight: Tensor | None,  # (D,)
        bias: Tensor | None,  # (D,)
        seed: Tensor,  # 0-d int64
        dropout_p: float,
        eps: float,
        dtype: torch.dtype,
        impl: str,
    ) -> Tensor:  # (B, S, D)
        """Keeps the parameters themselves, the ids, and mean and rstd of each row."""
        tables = (embedding, time, height, width, cls, weight)
        y, mean, rstd = embed_tokens_fwd(
            tokens, *tables, bias, seed, dropout_p, eps, dtype, True, impl
        )
        ctx.save_for_backward(autograd.kept(tokens), *tables, seed, mean, rstd)
        ctx.dropout_p, ctx.impl = dropout_p, impl
        ctx.dtypes = [None if t is None else t.dtype for t in (*tables, bias)]
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Splits `dvectors` into the gradients that are wanted."""
        autograd.refuse_second_order(_NAME)
        tokens, *saved = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:8]
        options = (ctx.dropout_p, needs[0], any(needs[1:]), ctx.impl)
        dembedding, dvectors = embed_tokens_bwd(dy, tokens, *saved, *options)
        gradients: list[Tensor | None] = [dembedding, *(None,) * 6]
        if any(needs[1:]):
            parts = dvectors.split([*tokens.shape[1:], 1, 1, 1])
            gradients[1:] = [*parts[:3], *(part[0] for part in parts[3:])]
        kept = zip(gradients, needs, ctx.dtypes, strict=True)
        return (
            None,
            *(g.to(dtype) if g is not None and needed else None for g, needed, dtype in kept),
            *(None,) * 5,
        )


def _tables(dtype: torch.dtype, embedding: Tensor, *others: Tensor | None) -> dict[str, Any]:
    """As kernels take them: the embedding in fp32 or the output's dtype, the others in fp32."""
    if embedding.dtype != dtype:
        embedding = embedding.float()
    vectors = (None if t is None else t.float().contiguous() for t in others)
    return dict(zip(_TABLES, (embedding.contiguous(), *vectors), strict=False))


def _check_ids(invalid: int, tokens: Tensor, embedding: Tensor) -> None:
    if invalid >= 0:
        token = int(tokens.flatten()[invalid])
        raise IndexError(f"token {token} is outside [0, {len(embedding)})")


def _fake_fwd(
    tokens: Tensor,
    embedding: Tensor,
    time: Tensor | None,
    height: Tensor | None,
    width: Tensor,
    cls: Tensor | None,
    weight: Tensor | None,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    *_, dtype, save, _impl = others
    B, S = tokens.shape[0], math.prod(tokens.shape[1:]) + (cls is not None)
    rows = B * S if save and weight is not None else 0
    return (
        embedding.new_empty((B, S, embedding.shape[1]), dtype=dtype),
        embedding.new_empty(rows, dtype=torch.float32),
        embedding.new_empty(rows, dtype=torch.float32),
    )


@library.operator(_fake_fwd)
def embed_tokens_fwd(
    tokens: Tensor,
    embedding: Tensor,
    time: Tensor | None,
    height: Tensor | None,
    width: Tensor,
    cls: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor,
    dropout_p: float,
    eps: float,
    dtype: torch.dtype,
    save: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, S, D), and mean and rstd of each row, which are empty if not wanted."""
    vectors = (time, height, width, cls, weight, bias)
    outputs = _fake_fwd(tokens, embedding, *vectors, dtype, save, impl)
    y, mean, rstd = outputs
    if y.numel():
        invalid = native.launch(
            impl, "embed_tokens_fwd", tokens=tokens.contiguous(),
            **_tables(dtype, embedding, *vectors), seed=seed,
            threshold=philox.dropout_threshold(dropout_p), eps=eps, y=y, mean=mean, rstd=rstd,
        )  # fmt: skip
        _check_ids(invalid, tokens, embedding)
    return outputs


def _fake_bwd(dy: Tensor, tokens: Tensor, embedding: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, needs_embedding, needs_vectors, _impl = others
    (V, D), rows = embedding.shape, sum(tokens.shape[1:]) + 3
    return (
        dy.new_empty((V if needs_embedding else 0, D), dtype=torch.float32),
        dy.new_empty((rows if needs_vectors else 0, D), dtype=torch.float32),
    )


@library.operator(_fake_bwd)
def embed_tokens_bwd(
    dy: Tensor,
    tokens: Tensor,
    embedding: Tensor,
    time: Tensor | None,
    height: Tensor | None,
    width: Tensor,
    cls: Tensor | None,
    weight: Tensor | None,
    seed: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dropout_p: float,
    needs_embedding: bool,
    needs_vectors: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """dembedding (V, D) and dvectors (T + H + W + 3, D), which are empty if not wanted."""
    outputs = _fake_bwd(dy, tokens, embedding, needs_embedding, needs_vectors, impl)
    dembedding, dvectors = outputs
    if impl == "cpu" or not dy.numel():
        dembedding.zero_()
        dvectors.zero_()
    if not dy.numel():
        return outputs
    tokens, sorted_ids = tokens.contiguous(), {}
    if impl == "cuda" and needs_embedding:
        ids, order = sort_ids(tokens, len(embedding))
        sorted_ids = {"sorted_ids": ids, "order": order}
    tables = _tables(dy.dtype, embedding, time, height, width, cls, weight)
    invalid = native.launch(
        impl, "embed_tokens_bwd", dy=dy.contiguous(), tokens=tokens, **tables, mean=mean,
        rstd=rstd, seed=seed, threshold=philox.dropout_threshold(dropout_p),
        dembedding=dembedding, dvectors=dvectors, **sorted_ids,
    )  # fmt: skip
    _check_ids(invalid, tokens, embedding)
    return outputs
