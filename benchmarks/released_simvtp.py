"""The SimVTP step people run without this library: the released model's, in plain PyTorch.

Written from the description of its behaviour, as a baseline to be measured against. It computes
what `vimpac.simvtp.SimVTP` computes, and spends more on it:
  * every pass embeds all tubelets by a convolution, and then takes the visible ones;
  * the joint pass of the matching pairs runs twice, the second time beside the mismatches;
  * attention materialises its scores and probabilities, with -10000 added where there is padding;
  * all words go through the word head, and unmasked ones are ignored by the loss;
  * the decoder computes the visible rows in its last layer, too;
  * targets are made of the normalised video, which is normalised back first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac.simvtp import SimVTP
from vimpac.simvtp.encoder import WORD_NORM_EPS
from vimpac.simvtp.layer import MLP, Attention, Transformer
from vimpac.simvtp.objective import IGNORE_INDEX

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]

PADDING = 0  # the id, whose row of the word embedding gets no gradient


class ReleasedSimVTP(nn.Module):
    """The four losses of a batch, from the parameters of our model.

    Args:
        model: Holds the parameters; none of its functions is called.
        sdpa: Attention by F.scaled_dot_product_attention, without probabilities in memory.
    """

    def __init__(self, model: SimVTP, *, sdpa: bool = False) -> None:
        super().__init__()
        self.model, self.sdpa = model, sdpa

    def forward(
        self,
        video: Tensor,  # (B, T, S, S, 3) uint8
        mask: Tensor,  # (B, N) bool, true: masked
        ids: Tensor,  # (B, L), some of them [MASK]
        attention: Tensor,  # (B, L) bool, false: padding
        labels: Tensor,  # (B, L) int64, IGNORE_INDEX where nothing is to be predicted
        negatives: Tensor,  # (B,) int64, the clip that each text is shown beside as a mismatch
    ) -> Tensor:  # (4,): pixel, word, contrastive and match loss
        clips = self.normalise(video)
        joint = self.encode(clips, mask, ids, attention)
        words = ids.shape[1]
        pixels = self.decode(joint[:, :-words], mask)
        return torch.stack(
            (
                self.pixel_loss(pixels, clips, mask),
                self.word_loss(joint[:, -words:], labels),
                self.contrastive_loss(clips, mask, ids, attention),
                self.match_loss(clips, mask, ids, attention, negatives),
            )
        )

    def normalise(self, video: Tensor) -> Tensor:
        """(B, T, S, S, 3) uint8 -> (B, 3, T, S, S)."""
        clips = video.permute(0, 4, 1, 2, 3).to(self.model.word_weight.dtype) / 255
        return (clips - _channels(clips, MEAN)) / _channels(clips, STD)

    def embed_tubelets(self, clips: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, T, S, S), (B, N) -> (B, V, D): all tubelets, of which the visible ones stay."""
        own = self.model.encoder.tubelets
        x = F.conv3d(clips, own.weight, own.bias, stride=own.weight.shape[2:])
        x = x.flatten(2).transpose(1, 2) + own.table.to(x.dtype)
        return x[~mask].reshape(len(x), -1, x.shape[-1])

    def embed_words(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        own = self.model.encoder.words
        x = F.embedding(ids, own.words.weight, padding_idx=PADDING)
        x = x + own.positions.weight[: ids.shape[1]] + own.texts.weight[0]
        return F.layer_norm(x, x.shape[-1:], own.norm.weight, own.norm.bias, WORD_NORM_EPS)

    def encode(
        self,
        clips: Tensor | None,  # (B, 3, T, S, S)
        mask: Tensor | None,  # (B, N)
        ids: Tensor | None = None,  # (B, L)
        attention: Tensor | None = None,  # (B, L)
    ) -> Tensor:  # (B, V + L, D): one pass over what is given
        parts, added = [], None
        if clips is not None and mask is not None:
            parts.append(self.embed_tubelets(clips, mask))
        if ids is not None and attention is not None:
            parts.append(self.embed_words(ids))
            seen = attention.to(parts[0].dtype)
            seen = F.pad(seen, (sum(part.shape[1] for part in parts[:-1]), 0), value=1.0)
            added = (1 - seen)[:, None, None] * -10_000
        return self.transform(self.model.encoder.transformer, torch.cat(parts, 1), added)

    def transform(
        self, half: Transformer, x: Tensor, added: Tensor | None, first: int = 0
    ) -> Tensor:
        """(B, S, D) -> (B, S - first, D): pre-LN layers, and the last LayerNorm from `first` on."""
        norm = half.first_norm
        for layer in half.layers:
            x = x + self.attend(layer.attention, norm(x), added)
            x = x + self.feed_forward(layer.mlp, layer.attention_norm(x))
            norm = layer.mlp_norm
        return norm(x[:, first:])

    def attend(self, own: Attention, x: Tensor, added: Tensor | None) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        bias = torch.cat((own.q_bias, torch.zeros_like(own.v_bias), own.v_bias))
        qkv = F.linear(x, own.qkv.weight, bias).unflatten(-1, (3, own.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, N, S, Dh) each
        if self.sdpa:
            added = None if added is None else added.to(q.dtype)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=added)
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            if added is not None:
                scores = scores + added
            y = scores.softmax(-1).to(v.dtype) @ v
        return own.out(y.transpose(1, 2).flatten(2))

    def feed_forward(self, own: MLP, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        return own.out(F.gelu(own.up(x)))

    def decode(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(B, V, D), (B, N) -> (B, M, t*P*P*3), the normalised pixels of masked tubelets."""
        own = self.model.decoder
        seen = own.project(hidden)
        B, V, D = seen.shape
        places = own.table.to(seen.dtype).expand(B, -1, -1)
        blanks = own.mask_token + places[mask].reshape(B, -1, D)
        x = torch.cat((seen + places[~mask].reshape(B, V, D), blanks), 1)
        return own.head(self.transform(own.transformer, x, None, first=V))

    def pixel_loss(self, pixels: Tensor, clips: Tensor, mask: Tensor) -> Tensor:
        """(B, M, t*P*P*3), (B, 3, T, S, S), (B, N) -> the mean squared error."""
        with torch.no_grad():
            t, P = self.model.config.tubelet, self.model.config.patch
            T, H, W = self.model.config.grid
            unit = clips * _channels(clips, STD) + _channels(clips, MEAN)  # pixels in [0, 1]
            rows = unit.reshape(len(clips), 3, T, t, H, P, W, P).permute(0, 2, 4, 6, 3, 5, 7, 1)
            rows = rows.reshape(len(clips), T * H * W, t * P * P, 3)
            deviation = rows.var(2, unbiased=True, keepdim=True).sqrt()
            rows = (rows - rows.mean(2, keepdim=True)) / (deviation + 1e-6)
            target = rows.flatten(2)[mask].reshape(pixels.shape)
        return F.mse_loss(pixels.to(target.dtype), target)

    def word_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """(B, L, D), (B, L) -> the mean over masked words, logits of all."""
        logits = F.linear(hidden, self.model.word_weight, self.model.word_head.bias)
        return F.cross_entropy(
            _at_least_fp32(logits.flatten(0, 1)), labels.flatten(), ignore_index=IGNORE_INDEX
        )

    def contrastive_loss(
        self, clips: Tensor, mask: Tensor, ids: Tensor, attention: Tensor
    ) -> Tensor:
        """Videos and texts alone, all (B, B) cosines of their means; rows plus columns."""
        video = _at_least_fp32(self.encode(clips, mask)).mean(1)
        text = _at_least_fp32(self.encode(None, None, ids, attention)).mean(1)
        scores = F.normalize(text, dim=-1) @ F.normalize(video, dim=-1).T
        scores = scores / self.model.loss_config.temperature
        pairs = torch.arange(len(scores), device=scores.device)
        return F.cross_entropy(scores, pairs) + F.cross_entropy(scores.T, pairs)

    def match_loss(
        self, clips: Tensor, mask: Tensor, ids: Tensor, attention: Tensor, negatives: Tensor
    ) -> Tensor:
        """Another joint pass, of the pairs and of the mismatches."""
        hidden = self.encode(
            torch.cat((clips, clips[negatives])),
            torch.cat((mask, mask[negatives])),
            torch.cat((ids, ids)),
            torch.cat((attention, attention)),
        )
        logits = self.model.match_head(_at_least_fp32(hidden).mean(1))
        target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        target[: len(clips)] = 1
        return F.cross_entropy(_at_least_fp32(logits), target)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _channels(clips: Tensor, values: tuple[float, float, float]) -> Tensor:
    """(3, 1, 1, 1): a value for each channel."""
    return clips.new_tensor(values)[:, None, None, None]
