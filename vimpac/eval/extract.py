"""Computes the features of the videos of a store, one after the other.

    vimpac extract runs/small/checkpoints/step-00012000 data=store --out features.npz

Nothing is kept: memory does not grow with the number of videos.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vimpac.errors import UsageError
from vimpac.eval.config import FeatureConfig
from vimpac.eval.feature_files import FeatureTable, check_out, write_features
from vimpac.eval.features import Featurizer, Pool
from vimpac.eval.metrics import check_finite
from vimpac.eval.over_views import over_views
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.settings import load_config
from vimpac.train.distributed import World, join_world, pick_device
from vimpac.train.launch import Place


def extract(
    model: str | Path | VideoTokenEncoder,
    store: str | Path,
    *,
    pool: Pool = "cls",
    per_clip: bool = False,
    clips: int = 10,
    crops: str = "all",
    frames: int | None = None,
    frame_stride: int | None = None,
    batch: int = 32,
    workers: int = 2,
    device: str = "auto",
    precision: str = "bf16",
    cache: str | Path = "",
    cache_gb: float = 100.0,
    say: Callable[[str], object] = lambda line: None,
) -> Iterator[tuple[str, Tensor]]:
    """Computes the features of the videos of a store.

    Args:
        model: A model directory: of a pre-training, a classifier or `vimpac convert`. Or an
            encoder of the clips' shape, which stays on its device and is in evaluation mode
            from now on.
        store: A token store, its URL, or several: "a,b".
        pool: "cls", or "mean" over the tokens that are not PAD.
        per_clip: Whether to yield every view, the clips of the first crop first, or their mean.
        clips: Evenly spaced clips of a video and crop.
        crops: "all" (the unflipped ones at scale 1), "center", or names of variants.
        frames: Of a clip; None: as many as in training.
        frame_stride: Stored frames from one of a clip to the next; None: as far apart as in
            training, or, of an encoder, one by one.
        batch: Views at once.
        workers: Processes that read; 0: none.
        device: "auto", "cpu" or "cuda".
        precision: "bf16" is autocast; "fp32".
        cache: Directory on a local disk for the shards of stores with a URL.
        cache_gb: Of shards that are kept there.
        say: Told what is not as it was in training.

    Returns:
        An iterator of (name, feature) in the order of the store. A feature is (D,), or
        (crops * clips, D), fp32 on the CPU.

    Raises:
        UsageError: Model, store and settings do not fit together.
        VimpacError: A file is damaged, or a feature is not finite.
    """
    settings = {
        "data": store,
        "batch": batch,
        "workers": workers,
        "precision": precision,
        "cache": cache,
        "cache_gb": cache_gb,
        "clips.frames": frames,
        "clips.frame_stride": frame_stride,
    }
    words = [f"{key}={'null' if value is None else value}" for key, value in settings.items()]
    config = load_config(FeatureConfig, None, words)
    if isinstance(model, VideoTokenEncoder):
        world = World(model.cls_token.device)
    else:
        world = World(pick_device(device, Place()))
    source = Featurizer(model, config, world, pool=pool, clips=clips, crops=crops)
    for note in source.notes:
        say(note)
    features = read_features(source, per_clip=per_clip)
    return ((source.store.name(video), feature) for video, feature in features)


def read_features(source: Featurizer, *, per_clip: bool) -> Generator[tuple[int, Tensor]]:
    """The features of the videos of a store, which the processes divide.

    Args:
        source: The model and the store.
        per_clip: Whether to yield the features of the views, or their mean.

    Yields:
        The store's number of every video, in order and on every process, and its feature on the
        CPU: (D,), or (crops * clips, D).
    """
    views, world, config = source.views(source.videos), source.world, source.config
    shape = (source.clips * len(source.variants), source.width)[not per_clip :]
    parts = over_views(source.encode, views, world, batch=config.batch, workers=config.workers)
    with closing(parts):
        for first in range(0, len(source.videos), world.size):
            videos = source.videos[first : first + world.size]
            rows = torch.zeros(len(videos), *shape)
            if world.rank < len(videos):
                place, values = next(parts)
                values = values[views.chosen(place, source.clips)]
                rows[world.rank] = values if per_clip else values.mean(0)
            for video, row in zip(videos, world.sum(rows), strict=True):
                check_finite(row, f"features of '{source.store.name(video)}'")
                yield video, row


def extract_to_file(
    model: str | Path,
    config: FeatureConfig,
    out: Path,
    *,
    pool: Pool = "cls",
    per_clip: bool = False,
    clips: int = 10,
    crops: str = "all",
    say: Callable[[str], object] = lambda line: None,
    begin: Callable[[int], Callable[[], object]] = lambda videos: lambda: None,
) -> FeatureTable:
    """Writes the features of the videos of a store into a file: see `feature_files`.

    Args:
        model: A model directory.
        config: The store, and how it is computed.
        out: The file, of one of the kinds of `feature_files`; it must not exist.
        pool: As in `extract`.
        per_clip: As in `extract`.
        clips: As in `extract`.
        crops: As in `extract`.
        say: Told, on the main process, what is not as it was in training.
        begin: Called on the main process with the number of videos; what it returns is called
            after each.

    Returns:
        What stands beside the features.

    Raises:
        UsageError: The file exists or has another suffix, or model, store and settings do not fit
            together.
        VimpacError: A file is damaged, or a feature is not finite.
    """
    if config.labels:
        raise UsageError(f"labels={config.labels}: features need no labels, drop it")
    with join_world(config.device, config.timeout) as world:
        world.on_main(lambda: check_out(out))
        source = Featurizer(model, config, world, pool=pool, clips=clips, crops=crops)
        table = _describe(source, per_clip)
        features = read_features(source, per_clip=per_clip)
        if not world.is_main:  # the main process gets its part, too
            for _ in features:
                pass
            return table
        for note in source.notes:
            say(note)
        advance = begin(len(source.videos))

        def rows() -> Iterator[np.ndarray]:
            for _, feature in features:
                yield feature.numpy()
                advance()

        with closing(features):
            write_features(out, table, rows())
    return table


def _describe(source: Featurizer, per_clip: bool) -> FeatureTable:
    store, videos, variants = source.store, source.videos, np.array(source.variants)
    views = source.views(videos)

    def clips_of(place: int) -> np.ndarray:
        starts = np.array(views.starts(place))
        crop, clip = divmod(views.chosen(place, source.clips).numpy(), len(starts))
        return np.stack((starts[clip], variants[crop]), 1).astype(np.int32)

    return FeatureTable(
        videos=len(videos),
        name=lambda place: store.name(videos[place]),
        width=source.width,
        views=source.clips * len(variants) if per_clip else None,
        clips=clips_of,
        variants=store.meta.variants,
    )
