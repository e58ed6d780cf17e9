"""The training step people run without this library: the released model's, in plain PyTorch.

Written from the description of its behaviour, as a baseline to be measured against. It computes
what `vimpac.Vimpac` computes, and spends more on it:
  * every axis has its own q, k and v Linear, and [CLS] is concatenated to every line before them;
  * attention materialises its probabilities, and lines are made contiguous by permute + reshape;
  * all positions go through the token head, and unmasked ones are ignored by the loss;
  * masks are drawn per clip and per box in Python.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from bench_mask_tokens import python_loop
from torch import Tensor, nn

from vimpac import Vimpac
from vimpac.model.config import ModelConfig
from vimpac.tokens import EMBEDDING_ROWS

EPS = 1e-12
# Axes of (B, T, H, W, D) with those of a line last, and how many those are.
LINES = {
    "T": ((0, 2, 3, 1, 4), 1),
    "H": ((0, 1, 3, 2, 4), 1),
    "W": ((0, 1, 2, 3, 4), 1),
    "HW": ((0, 1, 2, 3, 4), 2),
    "THW": ((0, 1, 2, 3, 4), 3),
}


class LineAttention(nn.Module):
    """Attention within the lines of one axis, [CLS] prepended to each."""

    def __init__(self, config: ModelConfig, axis: str, heads: int) -> None:
        super().__init__()
        self.axis, self.heads, self.dropout = axis, heads, config.dropout
        inner = heads * config.head_dim
        self.query, self.key, self.value = (nn.Linear(config.width, inner) for _ in range(3))

    def forward(self, cls: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D), (B, T, H, W, D) -> the same with the attention's width."""
        order, joint = LINES[self.axis]
        permuted = x.permute(order)
        sizes = permuted.shape[:4]
        length = math.prod(sizes[4 - joint :])
        lines = permuted.reshape(len(x), -1, length, x.shape[-1])
        first = cls[:, None, None].expand(-1, lines.shape[1], 1, -1)
        lines = torch.cat((first, lines), dim=2)  # (B, lines, 1 + L, D)
        q, k, v = (f.transpose(2, 3) for f in self.project(lines))  # (B, lines, heads, 1 + L, Dh)
        p = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        y = F.dropout(p, self.dropout, self.training) @ v
        y = y.transpose(2, 3).flatten(3)
        tokens = y[:, :, 1:].reshape(*sizes, -1)
        return y[:, :, 0].mean(1), tokens.permute([order.index(i) for i in range(5)])

    def project(self, lines: Tensor) -> list[Tensor]:
        """(B, lines, 1 + L, D) -> q, k, v, (B, lines, 1 + L, heads, Dh) each."""
        linears = (self.query, self.key, self.value)
        return [linear(lines).unflatten(-1, (self.heads, -1)) for linear in linears]


def add_norm(norm: nn.LayerNorm, dropout: nn.Dropout, residual: Tensor, branch: Tensor) -> Tensor:
    """The end of every block, three passes over memory."""
    return norm(residual + dropout(branch))


class Block(nn.Module):
    """Parallel axes, one output Linear, dropout, residual sum, LayerNorm."""

    def __init__(self, config: ModelConfig, axes: str) -> None:
        super().__init__()
        names = axes.split("|")
        self.axes = nn.ModuleList(
            LineAttention(config, name, config.heads // len(names)) for name in names
        )
        self.dense = nn.Linear(config.heads * config.head_dim, config.width)
        self.norm = nn.LayerNorm(config.width, eps=EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, cls: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D), (B, T, H, W, D) -> the same shapes."""
        outputs = [axis(cls, x) for axis in self.axes]
        cls_out = torch.cat([o[0] for o in outputs], -1)
        out = torch.cat([o[1] for o in outputs], -1)
        cls = add_norm(self.norm, self.dropout, cls, self.dense(cls_out))
        return cls, add_norm(self.norm, self.dropout, x, self.dense(out))


class FeedForward(nn.Module):
    """Linear, GELU, Linear, dropout, residual sum, LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, cls: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D), (B, T, H, W, D) -> the same shapes."""
        cls, x = (
            add_norm(self.norm, self.dropout, h, self.down(F.gelu(self.up(h)))) for h in (cls, x)
        )
        return cls, x


class ReleasedModel(nn.Module):
    """Encoder, token head over all positions, contrastive head; post-LN."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.width
        self.embedding = nn.Embedding(EMBEDDING_ROWS, D)
        self.cls = nn.Parameter(torch.randn(D) * 0.02)
        self.positions = nn.ParameterList(
            nn.Parameter(torch.randn(size, D) * 0.02) for size in config.grid
        )
        self.norm, self.dropout = nn.LayerNorm(D, eps=EPS), nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList()
        for _ in range(config.layers):
            self.blocks.extend(Block(config, axes) for axes in config.layout.split(","))
            self.blocks.append(FeedForward(config))
        self.transform = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.LayerNorm(D, eps=EPS))
        self.bias = nn.Parameter(torch.zeros(EMBEDDING_ROWS))
        wide = config.contrastive_width
        self.project = nn.Sequential(
            nn.Linear(D, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Linear(wide, 256, bias=False)
        )

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """(2B, T, H, W) masked ids and labels, -100 where not masked -> the loss."""
        cls, x = self.encode(tokens)
        return self.token_loss(x, labels) + self.contrastive_loss(cls)

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, H, W) ids -> [CLS] (B, D) and x (B, T, H, W, D)."""
        cls, x = self.embed(tokens)
        for block in self.blocks:
            cls, x = block(cls, x)
        return cls, x

    def embed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(2B, T, H, W) ids -> [CLS] (2B, D) and x (2B, T, H, W, D)."""
        t, h, w = self.positions
        x = self.embedding(tokens) + t[:, None, None] + h[:, None] + w
        cls = self.dropout(self.norm(self.cls)).expand(len(tokens), -1)
        return cls, self.dropout(self.norm(x))

    def token_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """(2B, T, H, W, D), (2B, T, H, W) -> the mean over masked tokens, logits of all."""
        logits = F.linear(self.transform(x), self.embedding.weight, self.bias)
        return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())

    def contrastive_loss(self, cls: Tensor) -> Tensor:
        """(2B, D) -> InfoNCE of both views, times 0.2."""
        features = F.normalize(self.project(cls).float(), dim=-1)
        similarity = features @ features.T / 0.2
        similarity.fill_diagonal_(-math.inf)
        other = torch.arange(len(cls), device=cls.device).roll(len(cls) // 2)
        return 0.2 * 2 * F.cross_entropy(similarity, other)


def released_inputs(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(2B, T, H, W) ids -> masked ids and labels, by the Python loop over clips and boxes."""
    return python_loop(tokens.long())


@torch.no_grad()
def copy_weights(model: Vimpac, released: ReleasedModel) -> None:
    """Gives the baseline the weights of our model, so that their losses can be compared."""
    encoder, head = model.encoder, model.token_head
    released.embedding.load_state_dict(encoder.token_embedding.state_dict())
    released.cls.copy_(encoder.cls_token + encoder.positions.cls[0])
    tables = (encoder.positions.time, encoder.positions.height, encoder.positions.width)
    for ours, theirs in zip(tables, released.positions, strict=True):
        theirs.copy_(ours)
    released.norm.load_state_dict(encoder.embedding_norm.state_dict())
    blocks = iter(released.blocks)
    for layer in encoder.layers:
        for attention, block in zip(layer.attention, blocks, strict=False):
            _copy_attention(attention, block)
        feed_forward = next(blocks)
        feed_forward.up.load_state_dict(layer.mlp.up.state_dict())
        feed_forward.down.load_state_dict(layer.mlp.out.state_dict())
        feed_forward.norm.load_state_dict(layer.mlp.norm.state_dict())
    released.transform[0].load_state_dict(head.dense.state_dict())
    released.transform[2].load_state_dict(head.norm.state_dict())
    released.bias.copy_(head.cross_entropy.bias)
    released.project.load_state_dict(model.contrastive_head.layers.state_dict())


def _copy_attention(attention: nn.Module, block: Block) -> None:
    block.dense.load_state_dict(attention.out.state_dict())
    block.norm.load_state_dict(attention.norm.state_dict())
    groups = len(block.axes)
    for i, name in enumerate(("query", "key", "value")):
        weights = attention.axial.in_proj_weight.chunk(3)[i].chunk(groups)
        biases = attention.axial.in_proj_bias.chunk(3)[i].chunk(groups)
        for axis, weight, bias in zip(block.axes, weights, biases, strict=True):
            getattr(axis, name).weight.copy_(weight)
            getattr(axis, name).bias.copy_(bias)
