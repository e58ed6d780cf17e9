"""Counter-based random numbers for the data: a function of a key, never of what ran before.

Built on the raw Philox4x64 words, which numpy keeps the same across versions; its
distributions are not promised to stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Streams: the order of an epoch, the clips of a sample, the dropout and the mixing of a clip; the
# masked words of a run, the mismatch of a caption, the branches that a sample goes past, the rounds
# in which videos are drawn that have a weight, the order of the shards of an epoch, the videos of a
# picture.
ORDER, CLIPS, DROPOUT, CUTMIX, WORD_MASK = range(1, 6)
MISMATCH, DROP_PATH, ROUNDS, WINDOWS, SAMPLES = range(6, 11)


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


def words_of_each(stream: int, seed: int, numbers: Sequence[int], count: int) -> np.ndarray:
    """Random words of several epochs or samples.

    Args:
        stream: As in `words`.
        seed: As there.
        numbers: The epochs or samples.
        count: How many words of each.

    Returns:
        (len(numbers), count) uint64, each row as `words` gives it, in a fifth of the time.
    """
    generator = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64))
    state = generator.state
    state["state"]["counter"][-1] = stream
    found = np.empty((len(numbers), count), np.uint64)
    for row, number in zip(found, numbers, strict=True):
        state["state"]["key"][1] = number
        generator.state = state
        row[:] = generator.random_raw(count)
    return found


def below(word: np.uint64, bound: int) -> int:
    """Maps a word to [0, bound), uniformly up to bound * 2**-64."""
    return int(word) * bound >> 64


def each_below(
    words: np.ndarray,  # uint64
    bounds: np.ndarray,  # in [1, 2^32)
) -> np.ndarray:  # int64
    """Maps words as `below` does."""
    high, low = words >> np.uint64(32), words & np.uint64(2**32 - 1)
    bounds = bounds.astype(np.uint64)
    return (high * bounds + (low * bounds >> np.uint64(32)) >> np.uint64(32)).astype(np.int64)


def share_of(word: np.uint64) -> float:
    """A word as a number in [0, 1)."""
    return (int(word) >> 11) / 2**53
