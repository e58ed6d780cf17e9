"""Classifies videos by their nearest neighbours, without training anything.

    vimpac knn runs/small/checkpoints/step-00012000 data=ucf labels=ucf.csv

Weighted k-NN as in InstDisc (Wu et al., 2018) and DINO (Caron et al., 2021): of the k training
videos whose features have the largest cosine s with that of a video, each votes for its class with
the weight exp(s / temperature). The feature of a video is the mean over its views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac.data.even_clips import EvenClips
from vimpac.data.labels import Split, keep_videos, missing_warning, read_labels
from vimpac.errors import UsageError
from vimpac.eval.config import FeatureConfig
from vimpac.eval.features import Featurizer, Pool
from vimpac.eval.metrics import check_finite, top_k, wilson
from vimpac.eval.over_views import over_views
from vimpac.train.distributed import World, join_world

K, TEMPERATURE = 200, 0.07
_BLOCK = 1 << 23  # similarities that are held in memory at once


class Neighbours(NamedTuple):
    """How many videos of a split are right."""

    top1: int
    top5: int
    videos: int

    def share(self, right: int) -> tuple[float, tuple[float, float]]:
        """One of the counts as a share, with Wilson's 95 % interval."""
        return right / self.videos, wilson(right, self.videos)


@torch.no_grad()
def knn(
    train_features: Tensor,  # (N, D)
    train_labels: Tensor,  # (N,)
    features: Tensor,  # (M, D)
    *,
    classes: int,
    k: int = K,
    temperature: float = TEMPERATURE,
) -> Tensor:  # (M, classes)
    """Classifies features by the nearest of the training features.

    It is computed in fp32, the weights in fp64, and in blocks, so memory is bounded. Of equal
    neighbours the first ones count.

    Args:
        train_features: (N, D), of any length but 0.
        train_labels: (N,) int64 in [0, classes).
        features: (M, D).
        classes: Their number.
        k: Neighbours that vote; all N if they are fewer.
        temperature: Of the weights: the lower, the more the nearest ones count.

    Returns:
        (M, classes) fp32, the share of every class in the votes; a row sums to 1.

    Raises:
        ValueError: A shape, `k` or `temperature` is wrong, or a feature is not finite.
    """
    _check(train_features, train_labels, features, k, temperature)
    train = F.normalize(train_features.float(), dim=-1)
    scores = torch.zeros(len(features), classes, device=features.device)
    size = max(1, _BLOCK // len(train))
    for part, found in zip(features.split(size), scores.split(size), strict=True):
        similarity = F.normalize(part.float(), dim=-1) @ train.T  # (size, N)
        nearest = _nearest(similarity, min(k, len(train)))  # (size, k)
        cosine = similarity.gather(1, nearest).double()
        # From the largest on: a low temperature makes nothing that is not finite.
        weight = ((cosine - cosine.amax(1, keepdim=True)) / temperature).softmax(-1)
        found.scatter_add_(1, train_labels[nearest], weight.float())
    return scores


def _check(
    train_features: Tensor, train_labels: Tensor, features: Tensor, k: int, temperature: float
) -> None:
    shapes = [tuple(tensor.shape) for tensor in (train_features, train_labels, features)]
    if train_features.dim() != 2 or not len(train_features) or features.dim() != 2:
        raise ValueError(f"features must be (N, D) and (M, D), got {shapes[0]} and {shapes[2]}")
    if train_labels.shape != train_features.shape[:1] or features.shape[1] != shapes[0][1]:
        raise ValueError(f"(N, D), (N,) and (M, D) do not fit: {', '.join(map(str, shapes))}")
    if k < 1 or not temperature > 0:
        raise ValueError(f"k={k} and temperature={temperature} must be positive")
    if not (train_features.isfinite().all() and features.isfinite().all()):
        raise ValueError("a feature is not finite")


def _nearest(
    similarity: Tensor,  # (B, N)
    k: int,
) -> Tensor:  # (B, k)
    """The places of the k largest values of each row, rising; of equal ones the first."""
    least = similarity.topk(k).values[:, -1:]
    above, tied = similarity > least, similarity == least
    wanted = k - above.sum(1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(1, dtype=torch.int32) <= wanted))
    return chosen.nonzero()[:, 1].view(len(similarity), k)


def judge_by_neighbours(
    encode: Callable[[Tensor], Tensor],
    views_of: Callable[[Sequence[int]], EvenClips],
    splits: dict[str, Split],
    world: World,
    *,
    width: int,
    classes: int,
    batch: int,
    workers: int,
    prefetch: int = 4,
    k: int = K,
    temperature: float = TEMPERATURE,
) -> dict[str, Neighbours]:
    """Classifies the videos of every split by those of "train"; the processes divide both.

    Args:
        encode: (B, T, H, W) to features (B, D); every process calls it equally often.
        views_of: The clips of some videos, for one number of clips.
        splits: "train", and those that are judged.
        world: The processes, all of which get the result.
        width: D.
        classes: Their number.
        batch: Views at once.
        workers: Processes that read; 0: none.
        prefetch: Batches that each of them keeps ready.
        k: As in `knn`.
        temperature: As in `knn`.

    Returns:
        The counts of every split but "train".

    Raises:
        VimpacError: A feature is not finite.
    """
    reading = {"batch": batch, "workers": workers, "prefetch": prefetch}
    features = {
        name: _mean_features(encode, views_of(split.videos), width, world, **reading)
        for name, split in splits.items()
    }
    for name, found in features.items():
        check_finite(found, f"features of the split '{name}'")
    train, known = features.pop("train"), torch.tensor(splits["train"].classes)
    counts: dict[str, Neighbours] = {}
    for name, found in features.items():
        labels = torch.tensor(splits[name].classes)[world.rank :: world.size]
        own = found[world.rank :: world.size]
        scores = knn(train, known, own, classes=classes, k=k, temperature=temperature)
        right = torch.stack([top_k(scores, labels, best).sum() for best in (1, 5)])
        top1, top5 = world.sum(right).tolist()
        counts[name] = Neighbours(top1, top5, len(found))
    return counts


def _mean_features(
    encode: Callable[[Tensor], Tensor],
    views: EvenClips,
    width: int,
    world: World,
    **reading: int,
) -> Tensor:  # (videos, D) fp32, on the CPU
    """The mean over the views of every video, on every process."""
    (clips,), found = views.clips, torch.zeros(len(views.videos), width)
    for place, values in over_views(encode, views, world, **reading):
        found[place] = values[views.chosen(place, clips)].mean(0)
    return world.sum(found)


class Judgement(NamedTuple):
    """How good the features of a model are.

    Attributes:
        splits: The counts of every split that is judged.
        train: Training videos.
        classes: Their number.
        k: Neighbours that voted.
    """

    splits: dict[str, Neighbours]
    train: int
    classes: int
    k: int


def judge_model(
    model: str | Path,
    config: FeatureConfig,
    *,
    k: int = K,
    temperature: float = TEMPERATURE,
    pool: Pool = "cls",
    clips: int = 10,
    crops: str = "all",
    say: Callable[[str], object] = lambda line: None,
) -> Judgement:
    """Classifies the videos of the splits test and val by their neighbours in train.

    Args:
        model: A model directory.
        config: The store, the labels, and how it is computed.
        k: Neighbours that vote; all training videos if they are fewer.
        temperature: As in `knn`.
        pool: As in `vimpac.extract`, and so are `clips` and `crops`.
        clips: Evenly spaced clips of a video and crop.
        crops: "all", "center" or names.
        say: Told, on the main process, what is not as it was in training.

    Returns:
        How many videos are right.

    Raises:
        UsageError: Model, store, labels and settings do not fit together.
        VimpacError: A file is damaged, or a feature is not finite.
    """
    if k < 1 or not 0 < temperature < float("inf"):
        raise UsageError(f"-k {k} and --temperature {temperature:g} must be positive")
    with join_world(config.device, config.timeout) as world:
        source = Featurizer(model, config, world, pool=pool, clips=clips, crops=crops)
        classes, splits = read_labels(config.labels, source.store)
        splits = keep_videos(splits, source.videos)
        notes, train = source.notes, len(splits["train"].videos)
        for name, split in splits.items():
            notes += missing_warning(config.labels, name, split)
        if k > train:
            notes.append(f"k is {train}, so all training videos vote: a smaller -k is often better")
        if len({*splits["train"].classes}) == 1:
            notes.append("all training videos are of one class, so the accuracy says nothing")
        for note in notes if world.is_main else ():
            say(note)
        found = judge_by_neighbours(
            source.encode,
            source.views,
            splits,
            world,
            width=source.width,
            classes=len(classes),
            batch=config.batch,
            workers=config.workers,
            k=k,
            temperature=temperature,
        )
    return Judgement(found, train, len(classes), min(k, train))
