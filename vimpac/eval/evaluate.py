"""Tests classifiers on evenly spaced clips of every video of a split.

One pass over the views serves several numbers of clips, and what several classifiers say of a video
is averaged (an ensemble). A video's probabilities are the means of those of its views.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vimpac.checkpoints.model_dir import load_classifier, read_description
from vimpac.data.even_clips import EvenClips, find_crops
from vimpac.data.joined_store import Store
from vimpac.data.labels import Split, keep_videos, missing_warning, read_split
from vimpac.errors import UsageError
from vimpac.eval.applied import fit_to_store
from vimpac.eval.config import InferenceConfig
from vimpac.eval.metrics import check_finite, top_k
from vimpac.eval.over_views import over_views
from vimpac.eval.report import Report, Scores, score
from vimpac.paths import local_path
from vimpac.settings import load_config
from vimpac.train.batches import damage_warning, damaged_videos, open_store
from vimpac.train.distributed import World, join_world

Logits = Callable[[Tensor], Tensor]  # (B, T, H, W) -> (B, classes)


class Verdicts(NamedTuple):
    """What a classifier says of videos, by numbers of clips."""

    probabilities: dict[int, Tensor]  # (videos, classes) fp32
    right_clips: dict[int, list[int]]  # right, right among five, views

    def scores(self, labels: Tensor) -> list[Scores]:
        """The scores of every number of clips, rising."""
        return [
            score(self.probabilities[clips], labels, clips, self.right_clips.get(clips))
            for clips in sorted(self.probabilities)
        ]


@torch.no_grad()
def classify(
    logits: Logits,
    views: EvenClips,
    labels: Tensor,  # (videos,) int64
    classes: int,
    world: World,
    *,
    batch: int,
    workers: int,
    prefetch: int = 4,
) -> Verdicts:
    """Classifies videos by their views, the videos divided among the processes.

    Args:
        logits: Of clips: (B, T, H, W) to (B, classes).
        views: The clips.
        labels: The class of each video.
        classes: Their number.
        world: The processes, all of which get the result.
        batch: Views at once.
        workers: Processes that read; 0: none.
        prefetch: Batches that each of them keeps ready.

    Returns:
        The probabilities of every video for every number of clips, and how many views are right.
    """
    numbers, videos = views.clips, len(views.videos)
    found = torch.zeros(len(numbers), videos, classes)
    counts = torch.zeros(len(numbers), 3, dtype=torch.int64)
    for place, values in over_views(
        logits, views, world, batch=batch, workers=workers, prefetch=prefetch
    ):
        probabilities = values.float().softmax(-1)  # (views, classes)
        label = labels[place].expand(len(values))
        right = torch.stack([top_k(probabilities, label, k) for k in (1, 5)])  # (2, views)
        for i, clips in enumerate(numbers):
            chosen = views.chosen(place, clips)
            found[i, place] = probabilities[chosen].mean(0)
            counts[i] += torch.tensor([*right[:, chosen].sum(1), len(chosen)])
    found, counts = world.sum(found), world.sum(counts)
    return Verdicts(
        dict(zip(numbers, found, strict=True)), dict(zip(numbers, counts.tolist(), strict=True))
    )


def evaluate(
    classifiers: str | Path | Sequence[str | Path],
    data: str | Path,
    labels: str | Path,
    *,
    clips: int | Sequence[int] = 10,
    crops: str = "all",
    split: str = "test",
    batch: int = 32,
    workers: int = 2,
    device: str = "auto",
    precision: str = "bf16",
    cache: str | Path = "",
    cache_gb: float = 100.0,
    skip_damaged: bool = False,
    timeout: float = 300.0,
    say: Callable[[str], object] = lambda line: None,
) -> Report:
    """Tests a classifier, or the mean of several, on the videos of a split.

    Args:
        classifiers: Directories of `vimpac finetune`'s checkpoints; with several, their
            probabilities are averaged.
        data: A token store, its URL, or several: "a,b".
        labels: The classes of its videos, as `vimpac finetune` takes them.
        clips: Numbers of clips, evenly spaced; one pass serves several.
        crops: "all", "center" or names: see `vimpac.data.even_clips.find_crops`.
        split: "test", "val" or "train".
        batch: Views at once, of each process.
        workers: Processes that read, for each process; 0: none.
        device: "auto", "cpu" or "cuda".
        precision: "bf16" is autocast; "fp32".
        cache: Directory on a local disk for the shards of stores with a URL.
        cache_gb: Of shards that are kept there.
        skip_damaged: Whether to read the whole store first and leave damaged videos out.
        timeout: Seconds until a silent process counts as dead.
        say: Told, on the main process, what is not as it was in training, or is left out.

    Returns:
        The scores, and what they are made of.

    Raises:
        UsageError: Classifier, store and labels do not fit together.
        VimpacError: A file is damaged, or another process was lost.
    """
    paths = [classifiers] if isinstance(classifiers, str | Path) else [*classifiers]
    numbers = sorted({clips} if isinstance(clips, int) else {*clips})
    if not paths or not numbers or numbers[0] < 1:
        raise UsageError("give a classifier, and a positive number of clips")
    settings = {
        "data": data,
        "labels": labels,
        "batch": batch,
        "workers": workers,
        "device": device,
        "precision": precision,
        "cache": cache,
        "cache_gb": cache_gb,
        "clips.skip_damaged": str(bool(skip_damaged)).lower(),
        "timeout": timeout,
    }
    words = [f"{key}={value}" for key, value in settings.items()]
    config = load_config(InferenceConfig, None, words)
    return _evaluate([local_path(path) for path in paths], config, numbers, crops, split, say)


def _evaluate(
    folders: Sequence[Path],
    config: InferenceConfig,
    numbers: Sequence[int],  # of clips, rising
    crops: str,
    split: str,
    say: Callable[[str], object],
) -> Report:
    """As `evaluate`."""
    begin = time.perf_counter()
    store = open_store(config.data, cache=config.shard_cache)
    variants = find_crops(store.meta.variants, crops, "--crops")
    with join_world(config.device, config.timeout) as world:
        classes = _common_classes(folders)
        damaged = damaged_videos(store, config.clips)
        whole = sorted({*range(len(store))} - {*damaged})
        videos = read_split(config.labels, store, split, classes)
        videos = keep_videos({split: videos}, whole)[split]
        notes = [*missing_warning(config.labels, split, videos), *damage_warning(store, damaged)]
        for note in notes if world.is_main else ():
            say(note)
        parts, views = list[Verdicts](), 0
        for folder in folders:
            part, computed, notes = _test(folder, store, videos, numbers, variants, config, world)
            parts.append(part)
            views += computed
            for note in notes if world.is_main else ():
                say(note)
    verdicts, truth = parts[0] if len(parts) == 1 else _mean(parts), torch.tensor(videos.classes)
    seconds = time.perf_counter() - begin
    facts = {
        "classifiers": [str(folder) for folder in folders],
        "data": config.data,
        "labels": config.labels,
        "split": split,
        "missing_videos": videos.missing,
        "crops": [store.meta.variants[variant] for variant in variants],
        "precision": config.precision,
        "views": views,
        "seconds": round(seconds, 3),
    }
    names = [store.name(video) for video in videos.videos]
    best = verdicts.probabilities[numbers[-1]]
    return Report(classes, names, truth, best, verdicts.scores(truth), facts)


def _test(
    folder: Path,
    store: Store,
    videos: Split,
    clips: Sequence[int],
    variants: Sequence[int],
    config: InferenceConfig,
    world: World,
) -> tuple[Verdicts, int, list[str]]:
    """What one classifier says, the number of its views, and what is not as it was in training."""
    model, classes = load_classifier(folder)
    reading = fit_to_store(model.encoder, folder, read_description(folder), store.meta)
    model.to(world.device)
    views = EvenClips(
        store,
        videos.videos,
        frames=reading.frames,
        stride=reading.stride,
        clips=clips,
        variants=variants,
    )
    has_padding = int(store.frames.min()) < views.span

    def logits(tokens: Tensor) -> Tensor:
        with world.autocast(config.precision):
            return model(tokens.to(world.device, non_blocking=True), has_padding=has_padding)

    labels = torch.tensor(videos.classes)
    how = {"batch": config.batch, "workers": config.workers}
    verdicts = classify(logits, views, labels, len(classes), world, **how)
    check_finite(torch.stack([*verdicts.probabilities.values()]), f"probabilities of {folder}")
    return verdicts, len(views), reading.notes


def _common_classes(folders: Sequence[Path]) -> list[str]:
    """The classes that all classifiers tell apart."""
    found = []
    for folder in folders:
        description = read_description(folder)
        if description.classes is None:
            raise UsageError(f"{folder} holds no classifier: train one with `vimpac finetune`")
        found.append(description.classes)
        if found[-1] != found[0]:
            same = sorted(found[-1]) == sorted(found[0])
            problem = "has the classes in another order" if same else "tells other classes apart"
            raise UsageError(f"{folder} {problem} than {folders[0]}")
    return found[0]


def _mean(parts: Sequence[Verdicts]) -> Verdicts:
    """An ensemble's verdicts; its views are not judged by themselves."""
    numbers = parts[0].probabilities
    means = {n: torch.stack([p.probabilities[n] for p in parts]).mean(0) for n in numbers}
    return Verdicts(means, {})
