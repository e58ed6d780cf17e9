"""Counter-based random numbers for the data: a function of a key, never of what ran before.

Built on the raw Philox4x64 words, which numpy keeps the same across versions; its
distributions are not promised to stay.
"""

from __future__ import annotations

import numpy as np

# Streams: the order of an epoch, the clips of a sample, the dropout and the mixing of a clip; the
# masked words of a run, the mismatch of a caption, the branches that a sample goes past.
ORDER, CLIPS, DROPOUT, CUTMIX, WORD_MASK, MISMATCH, DROP_PATH = 1, 2, 3, 4, 5, 6, 7


def words(stream: int, seed: int, number: int, count: int) -> np.ndarray:
    """Random words.

    Args:
        stream: What the words are for.
        seed: The run's seed.
        number: The epoch or the sample they are for.
        count: How many.

    Returns:
        (count,) uint64.
    """
    key = np.array([seed, number], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def below(word: np.uint64, bound: int) -> int:
    """Maps a word to [0, bound), uniformly up to bound * 2**-64."""
    return int(word) * bound >> 64


def share_of(word: np.uint64) -> float:
    """A word as a number in [0, 1)."""
    return (int(word) >> 11) / 2**53
