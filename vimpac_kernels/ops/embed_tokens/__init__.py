"""y = dropout(LayerNorm(embedding[tokens] + positions)), rounded to the compute dtype, in one pass.

Eager PyTorch does it in fp32: lookup, sum, concatenation of [CLS], LayerNorm, dropout and cast are
20 reads and writes of (B, S, D) in fp32 with the backward. Here the forward writes y and the
backward reads dy twice, once in the order of the positions, for the sums over clips, and once in
that of the ids, for the gradient of the embedding; rows are computed again from the tables, which
caches hold. Every sum has a fixed order. Serves CPU (C++), CUDA and Triton; bound by bandwidth.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from vimpac_kernels.ops.embed_tokens import operators, reference
from vimpac_kernels.runtime import autograd, philox, registry, sharded, transforms
from vimpac_kernels.runtime.checks import check_dropout, check_eps, check_tensor

_NAME = "embed_tokens"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64)


def embed_tokens(
    tokens: Tensor,
    embedding: Tensor,
    positions: Sequence[Tensor],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    cls: Tensor | None = None,
    dropout_p: float = 0.0,
    eps: float = 1e-12,
    dtype: torch.dtype | None = None,
    seed: int | Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """`F.dropout(F.layer_norm(x, (D,), weight, bias, eps), p).to(dtype)`, x being the embeddings.

    x[:, 1:] is `F.embedding(tokens, embedding) + time[:, None, None] + height[:, None] + width`,
    flattened over the grid, for clips with positions (time, height, width); x[:, 0] is cls.

    Args:
        tokens: (B, T, H, W) clips, (B, H, W) images or (B, L) text, of any integer dtype.
        embedding: (V, D): fp32, bf16, fp16; fp64 through the reference.
        positions: (n, D) tables, any floating dtype, one for each axis of the grid, whose sum is
            the position of a token.
        weight: (D,) of the LayerNorm, any floating dtype; None, as `bias`: no LayerNorm.
        bias: (D,) of the LayerNorm.
        cls: (D,), [CLS] with its position, which goes before the tokens; None: no such row.
        dropout_p: In [0, 1), quantised to 1/65536; 0 outside training.
        eps: Added to the variance, >= 0.
        dtype: Of the output: fp32, bf16, fp16, fp64 for the reference; None: of `embedding`.
        seed: int in [-2^63, 2^63), or 0-d int64 tensor on the device of `tokens`; None draws one
            from PyTorch's generator if there is dropout.
        impl: "auto", "cuda", "triton", "cpu" or "reference".

    Returns:
        (B, S, D) of `dtype`: [cls,] then the tokens, the last axis of the grid running fastest.

    Raises:
        IndexError: On the CPU, if an id is outside [0, V); on a GPU, where looking would cost a
            synchronisation, its row is NaN.
        TypeError: If a dtype is not among those above.
        ValueError: If a shape or an option is not as above.
        RuntimeError: If `impl` cannot run this call, with the reason.

    Sums and statistics are fp32, the result is rounded once; deterministic, and the same elements
    are dropped on every backend. Kept for the backward: mean and rstd of each row, and the
    ids, on a CPU a copy, as their memory may be filled anew; autograd refuses others that changed.
    """
    if sharded.has_dtensors(tokens, embedding, weight, bias, cls):
        shared: dict[str, Tensor | None]
        shared = {f"positions[{i}]": table for i, table in enumerate(positions)}
        shared |= {"embedding": embedding, "weight": weight, "bias": bias, "cls": cls}
        batch = sharded.split(_NAME, {"tokens": tokens}, shared, dropout_p=dropout_p, seed=seed)
        own = [batch.tensors.pop(f"positions[{i}]") for i in range(len(positions))]
        result = embed_tokens(
            **batch.tensors, positions=own, dropout_p=dropout_p, eps=eps, dtype=dtype,
            seed=sharded.local("seed", seed), impl=impl,
        )  # fmt: skip
        return batch.join(result)
    for name, tensor in (("tokens", tokens), ("embedding", embedding)):
        check_tensor(name, tensor)
    dtype = embedding.dtype if dtype is None else dtype
    _check(tokens, embedding, positions, weight, bias, cls, dropout_p, eps, dtype)
    chosen = _select(impl, embedding, dtype)
    if seed is None:
        device = tokens.device
        key = philox.fresh_seed(device) if dropout_p > 0 else philox.as_seed(0, device)
    else:
        key = philox.as_seed(seed, tokens.device)
    if chosen == "reference":
        _check_ids(tokens, len(embedding))
        return reference.embed_tokens(
            tokens, embedding, positions, weight, bias, cls=cls, dropout_p=dropout_p, eps=eps,
            dtype=dtype, seed=key,
        )  # fmt: skip
    absent = 3 - len(positions)  # axes in front, of one place each
    grid = (*(1,) * absent, *tokens.shape[1:])
    if tokens.dtype not in (torch.int32, torch.int64):
        tokens = tokens.to(torch.int32)
    tables = (*(None,) * absent, *positions)
    tensors = (tokens.reshape(-1, *grid), embedding, *tables, cls, weight, bias, key)
    if autograd.needs_autograd(_NAME, *tensors):
        return operators.EmbedTokens.apply(*tensors, dropout_p, eps, dtype, chosen)
    return operators.embed_tokens_fwd(*tensors, dropout_p, eps, dtype, False, chosen)[0]


def _check(
    tokens: Tensor,
    embedding: Tensor,
    positions: Sequence[Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    cls: Tensor | None,
    dropout_p: float,
    eps: float,
    dtype: torch.dtype,
) -> None:
    if tokens.dtype not in _INTEGERS:
        raise TypeError(f"tokens must be integers, got {tokens.dtype}")
    if not 2 <= tokens.dim() <= 4 or 0 in tokens.shape[1:]:
        raise ValueError(f"tokens must be (B, *grid), 1 to 3 axes, got {tuple(tokens.shape)}")
    if embedding.dim() != 2 or 0 in embedding.shape:
        raise ValueError(f"embedding must be (V, D), got {tuple(embedding.shape)}")
    grid, D = tokens.shape[1:], embedding.shape[1]
    if not isinstance(positions, Sequence | Tensor) or isinstance(positions, str):
        raise TypeError(f"positions must be a sequence of tensors, got {positions!r}")
    for i, table in enumerate(positions):
        check_tensor(f"positions[{i}]", table)
    if tuple(t.shape for t in positions) != tuple((n, D) for n in grid):
        raise ValueError(
            f"positions must be {[(n, D) for n in grid]} for tokens {tuple(tokens.shape)}, got "
            f"{[tuple(t.shape) for t in positions]}"
        )
    if (weight is None) != (bias is None):
        raise ValueError("weight and bias of the LayerNorm come together")
    for name, vector in (("weight", weight), ("bias", bias), ("cls", cls)):
        if vector is not None:
            check_tensor(name, vector)
        if vector is not None and vector.shape != (D,):
            raise ValueError(f"{name} must be ({D},), got {tuple(vector.shape)}")
    others = {"embedding": embedding, "weight": weight, "bias": bias, "cls": cls}
    for name, tensor in (others | {f"positions[{i}]": t for i, t in enumerate(positions)}).items():
        if tensor is not None and not tensor.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating, got {tensor.dtype}")
        if tensor is not None and tensor.device != tokens.device:
            raise ValueError(f"{name} is on {tensor.device}, tokens on {tokens.device}")
    for name, found in (("embedding", embedding.dtype), ("dtype", dtype)):
        if found not in (*_DTYPES, torch.float64):
            raise TypeError(f"{name} must be fp32, bf16, fp16 or fp64, got {found}")
    check_dropout(dropout_p)
    check_eps(eps)


def _check_ids(tokens: Tensor, V: int) -> None:
    if tokens.is_cpu and tokens.numel() and not transforms.hides_values():
        low, high = (int(end) for end in torch.aminmax(tokens.long()))
        if low < 0 or high >= V:
            raise IndexError(f"token {low if low < 0 else high} is outside [0, {V})")


def _select(impl: str, embedding: Tensor, dtype: torch.dtype) -> str:
    def problem(backend: str) -> str | None:
        reason = registry.backend_problem(backend, _NAME, embedding.device.type)
        if reason is None and torch.float64 in (embedding.dtype, dtype):
            reason = f"it takes fp32, bf16 and fp16, not {embedding.dtype} to {dtype}"
        if reason is None and (embedding.shape[1] % 8 or embedding.shape[1] > 8192):
            reason = f"D must be a multiple of 8 up to 8192, got {embedding.shape[1]}"
        return reason

    kernels = [(name, functools.partial(problem, name)) for name in operators.KERNELS]
    return registry.select(_NAME, impl, [*kernels, ("reference", lambda: None)])
