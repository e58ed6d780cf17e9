"""One encoder for videos, texts and pairs: a ViT over [visible tubelets ; words]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vimpac.simvtp.config import NetworkConfig, TextConfig
from vimpac.simvtp.layer import Transformer
from vimpac.simvtp.positions import sine_table
from vimpac_kernels import embed_tokens, tubelet_embed

WORD_NORM_EPS = 1e-12  # BERT's


class TubeletEmbedding(nn.Module):
    """A 3-d convolution, whose stride is its kernel, over normalised pixels, plus positions."""

    table: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        t, P = config.tubelet, config.patch
        self.weight = nn.Parameter(torch.empty(config.width, 3, t, P, P))
        self.bias = nn.Parameter(torch.zeros(config.width))
        nn.init.xavier_uniform_(self.weight.data.view(config.width, -1))
        self.register_buffer("table", sine_table(config.tubelets, config.width), persistent=False)

    def forward(
        self,
        video: Tensor,  # (B, T, S, S, 3) uint8
        tubelets: Tensor,  # (B, V) int32
    ) -> Tensor:  # (B, V, D)
        return tubelet_embed(video, tubelets, self.weight, self.bias, self.table)


class _WithoutRowGradient(torch.autograd.Function):
    """A table that one operator reads, of which one row gets no gradient.

    The operator made the gradient for nobody else, so it is changed in place: a copy would be as
    large as the vocabulary.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, row: int) -> Tensor:
        ctx.row = row
        return table.view_as(table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad[ctx.row].zero_()
        return grad, None


class WordEmbedding(nn.Module):
    """BERT's: word + position + the row of the first text, LayerNorm, dropout.

    The row of padding gets no gradient, and those of a second text are never read.

    Raises:
        ValueError: The vocabulary has no word of the id of padding.
    """

    def __init__(self, config: NetworkConfig, text: TextConfig) -> None:
        super().__init__()
        if text.padding >= config.vocabulary:
            raise ValueError(
                f"padding={text.padding} must be less than vocabulary={config.vocabulary}"
            )
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.text_positions, config.width)
        self.texts = nn.Embedding(2, config.width)
        self.norm = nn.LayerNorm(config.width, eps=WORD_NORM_EPS)
        self.dropout, self.padding = text.dropout, text.padding
        for table in (self.words, self.positions, self.texts):
            nn.init.normal_(table.weight, std=0.02)
        with torch.no_grad():
            self.words.weight[text.padding].zero_()

    def forward(
        self,
        ids: Tensor,  # (B, L) integer
        seed: Tensor | None = None,  # 0-d int64, of the dropout
    ) -> Tensor:  # (B, L, D)
        words = _WithoutRowGradient.apply(self.words.weight, self.padding)
        places = self.positions.weight[: ids.shape[1]] + self.texts.weight[0]
        dropout_p = self.dropout if self.training else 0.0
        norm = self.norm
        return embed_tokens(
            ids,
            words,
            [places],
            norm.weight,
            norm.bias,
            dropout_p=dropout_p,
            eps=norm.eps,
            seed=seed,
        )


class Inputs(NamedTuple):
    """What a pass of the joint encoder reads: tubelets, words, or tubelets before words."""

    tubelets: Tensor | None  # (B, V, D) embedded
    words: Tensor | None  # (B, L, D) embedded
    attention: Tensor | None = None  # (B, L) bool: false is padding

    def sequence(self) -> tuple[Tensor, Tensor | None]:
        """The rows (B, V + L, D), and which keys are read, (B, 1, 1, V + L) bool or None."""
        keys = None
        if self.words is not None and self.attention is not None:
            keys = self.attention
            if self.tubelets is not None:
                seen = keys.new_ones(len(keys), self.tubelets.shape[1])
                keys = torch.cat((seen, keys), 1)
            keys = keys[:, None, None]
        parts = [part for part in (self.tubelets, self.words) if part is not None]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0], keys


class JointEncoder(nn.Module):
    """The layers that all passes share."""

    def __init__(self, config: NetworkConfig, text: TextConfig) -> None:
        super().__init__()
        self.tubelets = TubeletEmbedding(config)
        self.words = WordEmbedding(config, text)
        self.transformer = Transformer(config.layers, config.width, config.heads, config.mlp_width)

    def forward(
        self,
        tubelets: Tensor | None,
        words: Tensor | None,
        attention: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # (B, V + L, D) each: normalised, and the sum before
        """Encodes `Inputs`; padding is not read, but its own rows are computed."""
        return self.together([Inputs(tubelets, words, attention)])[0]

    def together(self, passes: Sequence[Inputs]) -> list[tuple[Tensor, Tensor]]:
        """Several passes in one, each as `forward` returns it."""
        streams, keys = zip(*[one.sequence() for one in passes], strict=True)
        return self.transformer(streams, keys)
