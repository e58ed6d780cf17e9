"""The random words: Random123's published answers, and the same words under torch.compile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vimpac_kernels.runtime import philox


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((-1, -1, -1, -1), -1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_words_are_the_published_ones(counter: tuple, seed: int, words: tuple) -> None:
    drawn = philox.philox(torch.tensor(seed), *(torch.tensor(c) for c in counter))
    assert tuple(drawn.tolist()) == words


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63), np.int8(-1), np.uint64(7)], ids=str)
def test_seed_is_any_int64(seed: int) -> None:
    assert philox.as_seed(seed, torch.device("cpu")) == int(seed)


@pytest.mark.parametrize("seed", [2**63, 2**64, -(2**63) - 1, np.uint64(2**63)], ids=str)
def test_a_seed_beyond_int64_is_refused(seed: int) -> None:
    """Cut to 64 bits, two seeds would draw the same bits."""
    with pytest.raises(ValueError, match=rf"seed must be in \[-2\^63, 2\^63\).* got {seed}"):
        philox.as_seed(seed, torch.device("cpu"))


@pytest.mark.parametrize("seed", [1.5, "1", torch.tensor(1, dtype=torch.int32)], ids=str)
def test_a_seed_that_is_no_integer_is_refused(seed) -> None:
    """Cut to an integer, 0.1 and 0.9 would draw the same bits."""
    with pytest.raises(ValueError, match="seed must be an int or a 0-d int64 tensor, got "):
        philox.as_seed(seed, torch.device("cpu"))


def test_compiled_decisions_are_the_eager_ones() -> None:
    """With the broadcast of heads and queries for which Inductor's own words differ."""
    weights = torch.ones(2, 2, 3, 3)

    def drop(weights: Tensor) -> Tensor:
        seed = philox.as_seed(3, weights.device)
        line, head = torch.arange(2).view(2, 1, 1), torch.arange(2).view(2, 1)
        counters = torch.broadcast_tensors(torch.arange(3), line, head)
        return weights * philox.keep_mask(seed, 13107, 3, *counters)

    assert torch.equal(torch.compile(drop, fullgraph=True)(weights), drop(weights))
