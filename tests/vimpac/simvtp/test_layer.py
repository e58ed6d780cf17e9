"""The layers of SimVTP, and the table of positions."""

import math

import pytest
import torch
import torch.nn.functional as F

from vimpac.simvtp.layer import Attention, Transformer
from vimpac.simvtp.positions import sine_table


def test_positions_are_sine_and_cosine_of_the_flattened_index():
    table = sine_table(5, 6)
    assert table[3, 2] == pytest.approx(math.sin(3 / 10_000 ** (2 / 6)))
    assert table[3, 5] == pytest.approx(math.cos(3 / 10_000 ** (4 / 6)))
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1]


def test_a_bias_of_the_keys_would_change_nothing(one_thread):
    torch.manual_seed(0)
    attention, x = Attention(16, 2).double(), torch.randn(3 * 5, 16, dtype=torch.float64)
    torch.nn.init.normal_(attention.q_bias)
    torch.nn.init.normal_(attention.v_bias)
    bias = torch.cat((attention.q_bias, torch.randn(16, dtype=torch.float64), attention.v_bias))
    qkv = F.linear(x, attention.qkv.weight, bias).view(3, 5, 3, 2, 8)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    expected = F.linear((weights @ v).transpose(1, 2).reshape(15, 16), attention.out.weight)
    torch.testing.assert_close(attention(x, [(3, 5)], [None], 0), expected)


def test_batches_that_go_together_do_not_see_each_other(one_thread):
    torch.manual_seed(0)
    layers = Transformer(2, 16, 2, 32).double()
    batches = [torch.randn(B, S, 16, dtype=torch.float64) for B, S in ((2, 5), (3, 2), (1, 7))]
    keys = [None, None, torch.arange(7)[None, None, None] < 4]
    for first in (0, 1):
        together = layers(batches, keys, first)
        for i, (rows, stream) in enumerate(together):
            ((alone, alone_stream),) = layers(batches[i : i + 1], keys[i : i + 1], first)
            torch.testing.assert_close(rows, alone)
            torch.testing.assert_close(stream, alone_stream)
