"""The video encoder: tokens (B, T, H, W) -> hidden states (B, 1 + T*H*W, D), [CLS] in row 0.

One buffer holds [CLS] and all tokens from the embedding to the heads, so that every Linear and
every LayerNorm is one launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vimpac.checks import check_flag, check_integers, check_kind, check_seed, may_look
from vimpac.model.config import ModelConfig
from vimpac.model.drop_path import draw_scales, drop_rates
from vimpac.model.initial import init_bert
from vimpac.model.layer import LAYER_NORM_EPS, MLP, Attention, Layer
from vimpac.model.masked_rows import cls_rows
from vimpac.model.positions import Positions
from vimpac.tokens import EMBEDDING_ROWS, PAD_TOKEN
from vimpac_kernels import embed_tokens


class VideoTokenEncoder(nn.Module):
    """The backbone of VIMPAC.

    Args:
        config: Sizes, layout and options.

    Attributes:
        config: As it was made; `grid` may be another one since.
        activation_checkpointing: Keep only what enters a layer, and run the layer again in
            backward, with the same dropout; gradients are the same bits.
        drop_path: Share of clips that go past a branch of the last layer in training, in [0, 1);
            see `vimpac.model.drop_path`.
    """

    activation_checkpointing = False
    drop_path = 0.0

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check_kind("config", config, ModelConfig)
        self.config = config
        self.width, self.prenorm, self.dropout = config.width, config.prenorm, config.dropout
        self.token_embedding = nn.Embedding(EMBEDDING_ROWS, config.width)
        self.cls_token = nn.Parameter(torch.empty(config.width))
        self.positions = Positions(config.grid, config.width)
        if not self.prenorm:  # as released: pre-LN normalises in the first branch
            self.embedding_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        if self.prenorm:
            self.final_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws Linear and Embedding weights from N(0, 0.02), biases 0, as BERT.

        Pre-LN scales the output projections by 1 / sqrt(number of residual branches).
        """
        self.apply(init_bert)
        nn.init.normal_(self.cls_token, std=0.02)
        self.positions.reset_parameters()
        if self.prenorm:
            branches = self._branches()
            for branch in branches:
                nn.init.normal_(branch.out.weight, std=0.02 * len(branches) ** -0.5)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T, H, W) of the input."""
        return self.positions.grid

    def forward(
        self,
        tokens: Tensor,  # (B, T, H, W) integer
        *,
        has_padding: bool = True,
        rows: Tensor | None = None,  # (R,) int32 or int64
        seed: Tensor | None = None,  # 0-d int64
    ) -> Tensor:
        """Encodes clips.

        Args:
            tokens: (B, T, H, W) ids in [0, 8197), of any integer dtype.
            has_padding: False promises that no clip holds PAD, which saves the padding mask.
            rows: (R,) rows of the flattened (B * (1 + T*H*W), D) states, all that the last layer
                then computes after its attention. Their dropout goes by their place in `rows`.
            seed: Of dropout (joint axes': PyTorch's generator) and of `drop_path`, int in
                [-2^63, 2^63) or 0-d int64; None draws one, as without.

        Returns:
            (B, 1 + T*H*W, D): [CLS], then the tokens in (t, h, w) order; (R, D) for `rows`. Under
            autocast its dtype is that of autocast.

        Raises:
            IndexError: On the CPU, if an id or a row is out of range.
            TypeError: If an argument has a wrong type, naming it.
            ValueError: If the shape or dtype of a tensor does not fit.
        """
        self._check(tokens)
        check_flag("has_padding", has_padding)
        check_seed(seed)
        if rows is not None:
            _check_rows(rows, len(tokens) * (1 + tokens.shape[1:].numel()))
        if tokens.dtype not in (torch.int32, torch.int64):
            tokens = tokens.long()
        padding = tokens == PAD_TOKEN if has_padding else None
        layers = [cast(Layer, layer) for layer in self.layers]
        norms = [branch.norm for branch in self._branches()]
        per_layer = len(norms) // len(layers)
        embedding_seed, seeds, scales = self._draw(seed, len(layers), per_layer, tokens)
        x = stream = self._embed(tokens, embedding_seed)  # pre-LN: x is what a branch reads
        if self.prenorm:
            x, norms = norms[0](stream), [*norms[1:], self.final_norm]
        for i, layer in enumerate(layers):
            own = norms[i * per_layer : (i + 1) * per_layer]
            needed = rows if layer is layers[-1] else None
            own_seeds, recompute = seeds and seeds[i], self.activation_checkpointing
            inputs = x, stream, own, self.grid, padding, own_seeds, needed, recompute
            x, stream = layer(*inputs, scales and scales[i])
        return x

    def cls(
        self,
        tokens: Tensor,  # (B, T, H, W) integer
        *,
        has_padding: bool = True,
        seed: Tensor | None = None,  # 0-d int64
    ) -> Tensor:  # (B, D)
        """[CLS] of clips: `forward` without the rows that a classifier does not read."""
        self._check(tokens)
        return self(tokens, has_padding=has_padding, rows=cls_rows(tokens), seed=seed)

    def _draw(
        self,
        seed: Tensor | None,
        layers: int,
        branches: int,
        tokens: Tensor,  # (B, T, H, W)
    ) -> tuple[Tensor | None, Sequence[Tensor] | None, Sequence[Tensor | None] | None]:
        """What is random: seeds, which the ops read on the device, and stochastic depth.

        Returns:
            `seed`, 0-d int64, and the numbers after it, (branches, 2) per layer, or no dropout;
            then what branches are multiplied by, (branches, B) per layer, or none are.
        """
        device, embedding_seed, seeds, scales = tokens.device, None, None, None
        if not self.training or (self.dropout == 0 and self.drop_path == 0):
            return None, None, None
        if seed is None:
            seed = torch.randint(-(1 << 63), (1 << 63) - 1, (), dtype=torch.int64, device=device)
        of_dropout = 1 + layers * branches * 2
        if self.dropout:
            numbers = seed + torch.arange(of_dropout, device=device)
            embedding_seed = numbers[0]
            seeds = numbers[1:].view(layers, branches, 2).unbind()
        if self.drop_path:
            numbers = seed + torch.arange(of_dropout, of_dropout + layers, device=device)
            scales = draw_scales(numbers, drop_rates(self.drop_path, layers), branches, len(tokens))
        return embedding_seed, seeds, scales

    def _branches(self) -> list[Attention | MLP]:
        return [branch for layer in self.layers for branch in cast(Layer, layer).branches()]

    def _embed(
        self,
        tokens: Tensor,  # (B, T, H, W)
        seed: Tensor | None = None,  # 0-d int64
    ) -> Tensor:  # (B, 1 + T*H*W, D): embedding + position [, LayerNorm], dropout
        place, norm, dtype = self.positions, None if self.prenorm else self.embedding_norm, None
        device = self.cls_token.device.type
        if norm is not None and device != "meta" and torch.is_autocast_enabled(device):
            # Post-LN rounds its stream at every LayerNorm anyway; pre-LN sums in fp32 to the end.
            dtype = torch.get_autocast_dtype(device)
        return embed_tokens(
            tokens,
            self.token_embedding.weight,
            (place.time, place.height, place.width),
            *(() if norm is None else (norm.weight, norm.bias)),
            cls=self.cls_token + place.cls[0],
            dropout_p=self.dropout if self.training else 0.0,
            eps=LAYER_NORM_EPS,
            dtype=dtype,
            seed=seed,
        )

    def _check(self, tokens: Tensor) -> None:
        check_integers("tokens", tokens)
        if tokens.dim() != 4 or tuple(tokens.shape[1:]) != self.grid:
            raise ValueError(
                f"tokens must be (B, T, H, W) with (T, H, W) = {self.grid}, got "
                f"{tuple(tokens.shape)}; resize_grid changes the model's input shape"
            )


def _check_rows(rows: Tensor, most: int) -> None:
    check_integers("rows", rows)
    if rows.dim() != 1 or rows.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"rows must be (R,) int32 or int64, got {rows.dtype} {tuple(rows.shape)}")
    if may_look(rows) and rows.numel():
        low, high = (int(end) for end in rows.aminmax())
        if low < 0 or high >= most:
            raise IndexError(f"rows: {low if low < 0 else high} is outside [0, {most})")
