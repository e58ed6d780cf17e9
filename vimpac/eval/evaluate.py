"""Classifies the videos of a split by their evenly spaced clips."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vimpac.data.even_clips import EvenClips
from vimpac.eval.over_views import over_views
from vimpac.train.distributed import World


@torch.no_grad()
def accuracies(
    logits: Callable[[Tensor], Tensor],
    views: EvenClips,
    labels: list[int],
    world: World,
    *,
    batch: int,
    workers: int,
    prefetch: int = 4,
    name: str = "test",
) -> dict[str, float]:
    """The shares of clips and of videos that are classified right.

    A video's probabilities are the means of those of its clips.

    Args:
        logits: Of clips: (B, T, H, W) to (B, classes).
        views: The clips.
        labels: The class of each video.
        world: The processes, all of which get the result.
        batch: Views at once.
        workers: Processes that read; 0: none.
        prefetch: Batches that each of them keeps ready.
        name: Of the split.

    Returns:
        "<name>_clip_accuracy" and "<name>_video_accuracy".
    """
    (clips,) = views.clips
    counts = torch.zeros(4, dtype=torch.float64)  # right clips, clips, right videos, videos
    for place, values in over_views(
        logits, views, world, batch=batch, workers=workers, prefetch=prefetch
    ):
        probabilities = values.softmax(-1)[views.chosen(place, clips)]  # (crops * clips, classes)
        right = probabilities.argmax(-1) == labels[place]
        video = probabilities.mean(0).argmax(-1) == labels[place]
        found = right.sum(), right.numel(), video, 1
        counts += torch.tensor([float(count) for count in found], dtype=torch.float64)
    right_clips, all_clips, right_videos, videos = world.mean(counts).tolist()
    return {
        f"{name}_clip_accuracy": right_clips / all_clips,
        f"{name}_video_accuracy": right_videos / videos,
    }
