"""[CLS] as in the paper's text, against loops over lines and copies."""

import math

import pytest
import torch
import torch.nn.functional as F

from vimpac import PAD_TOKEN, Vimpac, preset
from vimpac.model.cls_per_line import attend_per_line
from vimpac.model.encoder import VideoTokenEncoder

GRID = (2, 3, 4)


def _lines(axis: str) -> list[list[int]]:
    """Token numbers of each line."""
    number = torch.arange(24).view(GRID)
    return {
        "T": number.permute(1, 2, 0).reshape(-1, 2),
        "H": number.permute(0, 2, 1).reshape(-1, 3),
        "W": number.reshape(-1, 4),
        "HW": number.reshape(2, -1),
        "THW": number.reshape(1, -1),
    }[axis].tolist()


def _block(block, x: torch.Tensor, residual: torch.Tensor, padding: torch.Tensor):
    """Sums of one clip, before any mean: [CLS] per line, (lines, D), and tokens, (24, D)."""
    axial = block.axial
    q, k, v = (
        part.unflatten(-1, (axial.num_heads, axial.head_dim))
        for part in F.linear(x, axial.in_proj_weight, axial.in_proj_bias).chunk(3, dim=-1)
    )  # (25, N, Dh)

    def attend(query: int, line: list[int]) -> torch.Tensor:
        keys = [1 + n for n in line if not padding[n]]
        if not keys:
            return torch.zeros(axial.num_heads * axial.head_dim)
        p = (torch.einsum("nd,knd->nk", q[query], k[keys]) * axial.head_dim**-0.5).softmax(-1)
        return torch.einsum("nk,knd->nd", p, v[keys]).flatten()

    tokens = {n: attend(1 + n, line) for line in _lines(axial.axes) for n in line}
    cls = torch.stack([attend(0, line) for line in _lines(axial.axes)])
    tokens = torch.stack([tokens[n] for n in range(24)])
    return residual[:1] + block.out(cls), residual[1:] + block.out(tokens)


def _encode(
    encoder: VideoTokenEncoder, clip: torch.Tensor, stream: torch.Tensor, norm: str
) -> torch.Tensor:
    """The encoder for one clip, from its embedding, (25, D) as the result."""
    padding, prenorm = (clip == PAD_TOKEN).flatten().tolist(), norm != "post"
    for layer in encoder.layers:
        for block in layer.attention:
            x = block.norm(stream) if prenorm else stream
            cls, tokens = _block(block, x, x if norm == "pre" else stream, padding)
            if not prenorm:
                cls, tokens = block.norm(cls), block.norm(tokens)
            stream = torch.cat((cls.mean(0, keepdim=True), tokens))
        mlp = layer.mlp
        x = mlp.norm(stream) if prenorm else stream
        stream = stream + mlp.out(F.gelu(mlp.up(x)))
        stream = stream if prenorm else mlp.norm(stream)
    return encoder.final_norm(stream) if prenorm else stream


@pytest.mark.parametrize("norm", ["post", "pre", "pre_textbook"])
@pytest.mark.parametrize("layout", ["T,H,W", "T,HW", "THW"])
def test_encoder_equals_loops_over_lines(layout, norm):
    torch.manual_seed(0)
    config = preset(
        "tiny",
        width=32,
        heads=2,
        head_dim=16,
        mlp_width=32,
        layout=layout,
        norm=norm,
        grid=GRID,
        cls="paper",
    )
    encoder = VideoTokenEncoder(config).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    clips = torch.randint(0, 8192, (2, *GRID))
    clips[0, 1] = PAD_TOKEN  # whole lines of W without a key
    streams = []  # the embedding, as it enters the first layer
    encoder.layers[0].register_forward_pre_hook(lambda _, inputs: streams.append(inputs[1]))
    with torch.no_grad():
        actual = encoder(clips)
        pairs = zip(clips, streams[0], strict=True)
        expected = torch.stack([_encode(encoder, *pair, norm) for pair in pairs])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_trains_with_dropout():
    torch.manual_seed(0)
    model = Vimpac.from_preset("tiny", layout="T,H,W", grid=GRID, cls="paper")
    clips = torch.randint(0, 8192, (2, 2, *GRID))
    model(clips, clips).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("layout", ["T,H|W", "T|H|W"])
def test_parallel_axes_are_refused(layout):
    with pytest.raises(ValueError, match=r"cls='paper'.*layout without '|'"):
        preset("tiny", layout=layout, cls="paper")


def test_scores_beyond_half_precision_and_broken_ones_are_attended_as_in_fp32() -> None:
    """fp16 products of 200 by 200 overflow; a hidden key has no weight beside a score of -inf."""
    torch.manual_seed(0)
    qkv = torch.randn(1, 25, 3, 2, 8)
    qkv[:, :, :2] *= 100
    half = qkv.half()
    actual = attend_per_line(half, GRID, "W", None, 0.0)
    torch.testing.assert_close(
        actual.float(), attend_per_line(half.float(), GRID, "W", None, 0.0), rtol=1e-2, atol=1e-2
    )
    padding = torch.zeros(1, *GRID, dtype=torch.bool)
    padding[..., 2:] = True
    qkv[:, 0, 0], qkv[:, 1:, 1] = 1.0, -math.inf
    cls = attend_per_line(qkv, GRID, "W", padding, 0.0)[:, :6]
    assert cls.isnan().all()
