"""How well texts find their videos, and videos their texts.

The rank of a query is the expected place, from 1, of its right answer when ties are broken by
chance: a model that says the same of everything ranks in the middle, not first.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Recall:
    """Of one direction.

    Attributes:
        queries: How many.
        r1: Share of queries whose rank is at most 1.
        r5: At most 5.
        r10: At most 10.
        r50: At most 50.
        median: Of the ranks (MdR).
        mean: Of the ranks (MnR).
    """

    queries: int
    r1: float
    r5: float
    r10: float
    r50: float
    median: float
    mean: float

    @classmethod
    def of(cls, ranks: Tensor) -> Recall:
        """From the ranks (Q,) of all queries."""
        ranks = ranks.double()
        r1, r5, r10, r50 = (float((ranks <= k).double().mean()) for k in (1, 5, 10, 50))
        return cls(len(ranks), r1, r5, r10, r50, float(ranks.quantile(0.5)), float(ranks.mean()))

    @property
    def geometric_mean(self) -> float:
        """Of R@1, R@5 and R@10."""
        return math.prod((self.r1, self.r5, self.r10)) ** (1 / 3)


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Both directions."""

    text_to_video: Recall
    video_to_text: Recall


def judge(
    similarity: Tensor,  # (texts, videos)
    videos: Tensor,  # (texts,) int64: of which video a text is
) -> Retrieval:
    """Ranks in both directions.

    Args:
        similarity: (texts, videos), the larger the more alike.
        videos: (texts,) the video that each text describes. Of several texts of one video the best
            ranked counts in the direction from video to text.

    Raises:
        ValueError: A similarity is not finite, or a shape does not fit.
    """
    texts, count = similarity.shape
    if videos.shape != (texts,):
        raise ValueError(f"videos must be ({texts},), got {tuple(videos.shape)}")
    if not similarity.isfinite().all():
        raise ValueError("similarities must be finite")
    right = videos[:, None] == torch.arange(count)
    described = right.any(0)  # a video without a text is no query, but still an answer
    return Retrieval(
        Recall.of(rank_of(similarity, right)),
        Recall.of(rank_of(similarity.T[described], right.T[described])),
    )


def rank_of(
    scores: Tensor,  # (Q, A)
    right: Tensor,  # (Q, A) bool
) -> Tensor:  # (Q,) fp64
    """The expected rank, from 1, of the best right answer of each query."""
    best = scores.masked_fill(~right, -math.inf).amax(1, keepdim=True)
    wrong = ~right
    above = ((scores > best) & wrong).sum(1)
    beside = ((scores == best) & wrong).sum(1)
    return 1 + above.double() + beside.double() / 2


def dense_rank(
    scores: Tensor,  # (A,)
) -> Tensor:  # (A,) fp32
    """The place of each score from the least, 0; equal ones have the same."""
    return scores.unique(return_inverse=True)[1].float()


def dual_softmax(
    similarity: Tensor,  # (texts, videos)
    temperature: float,
) -> tuple[Tensor, Tensor]:  # (texts, videos) each: for texts that search videos, and the reverse
    """Similarities times the softmax over the other direction's queries.

    An answer that many queries find counts less. It takes all queries at once, so it suits a test,
    not a search: say so beside the numbers.

    A positive similarity becomes the published product, in fp64, where it does not vanish. A
    product of a negative one would be the nearer to 0, and so rank the higher, the less alike it
    is. Negative similarities are therefore divided by their share: they stay below the positive
    ones, as published, and among themselves the more alike, and the less often found, ranks higher.
    """

    def weigh(direction: int) -> Tensor:
        share = (similarity.double() / temperature).softmax(direction)
        share = share.clamp_min(torch.finfo(share.dtype).tiny)
        return torch.where(similarity > 0, similarity * share, similarity / share)

    return weigh(0), weigh(1)
