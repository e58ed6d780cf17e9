"""What a run on a token store reads of it, and what it says of the videos."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from vimpac.config import PretrainConfig
from vimpac.data.clips import ClipDataset
from vimpac.data.joined_store import JoinedStore, Store
from vimpac.data.sampler import Share, Windows
from vimpac.data.shard_cache import ShardCache
from vimpac.data.store import TokenStore
from vimpac.errors import UsageError
from vimpac.eval.config import InferenceClipConfig
from vimpac.paths import is_url, split_paths
from vimpac.settings import LARGEST
from vimpac.tokens import NUM_TOKENS, PAD_TOKEN
from vimpac.train_config import ClipConfig, TokenTrainConfig

Config = TypeVar("Config", bound=TokenTrainConfig)


def open_store(paths: str, variant: int | None = None, *, cache: ShardCache | None = None) -> Store:
    """Opens a token store that the model can read, or several as one.

    Args:
        paths: The store's directory or URL, or those of several with commas between them.
        variant: Which of its variants is wanted; None: any.
        cache: Where the shards of stores with a URL are kept.

    Returns:
        The store.

    Raises:
        UsageError: No path was given, or a store has ids the model does not know, no video, not
            that variant, or other settings than the first one.
    """
    if not paths:
        raise UsageError("data= is missing: give a token store (see `vimpac tokenize`)")
    stores = []
    for path in split_paths(paths):
        if is_url(path) and cache is None:
            raise UsageError(f"{path} is a URL: give cache=DIRECTORY on a local disk, too")
        store = TokenStore(path, cache=cache)
        if store.meta.vocab_size > NUM_TOKENS:
            raise UsageError(
                f"{path} has {store.meta.vocab_size} token ids, the model has {NUM_TOKENS}: "
                "tokenise with another tokenizer"
            )
        if not len(store):
            raise UsageError(f"{path} holds no video: tokenise some")
        last = len(store.meta.variants) - 1
        if (variant or 0) > last:
            raise UsageError(f"clips.variant={variant}: {path} has the variants 0 to {last}")
        stores.append(store)
    return stores[0] if len(stores) == 1 else JoinedStore(stores)


def make_shares(
    store: Store, weights: Sequence[float] | None, videos: Sequence[int] | None = None
) -> list[Share]:
    """How often the videos of every store are drawn, as a `ResumableSampler` takes it.

    Args:
        store: The store or stores.
        weights: `data_weights`.
        videos: Those of the store that are drawn, by whose places the shares number them; None:
            all.

    Returns:
        A share of each store; of one store without a weight none, as a sampler needs none.

    Raises:
        UsageError: There are not as many weights as stores, or a weight draws no video.
    """
    stores = store.stores if isinstance(store, JoinedStore) else [store]
    if weights is None and len(stores) == 1:
        return []
    values = [1.0] * len(stores) if weights is None else weights
    if len(values) != len(stores):
        given = ", ".join(f"{weight:g}" for weight in values)
        raise UsageError(
            f"data_weights=[{given}] has {len(values)} weights, data={store.path} {len(stores)} "
            "stores: give a weight of each"
        )
    numbers = np.arange(len(store)) if videos is None else np.asarray(videos, np.int64)
    owners = np.zeros_like(numbers)
    if isinstance(store, JoinedStore):
        owners = store.store_of(numbers)
    shares = []
    for k, (one, weight) in enumerate(zip(stores, values, strict=True)):
        name = f"{len(one)} videos {one.names_crc32:08x}"
        share = Share(name, np.flatnonzero(owners == k), weight)
        if len(share.videos) and not share.draws:
            raise UsageError(
                f"data_weights: {weight:g} of the {len(share.videos)} videos of {one.path} is no "
                "video in an epoch: raise it"
            )
        shares.append(share)
    return shares


def make_windows(
    store: Store, config: TokenTrainConfig, videos: Sequence[int] | None = None
) -> Windows | None:
    """The windows in which shards are read, as a `ResumableSampler` takes it.

    Args:
        store: The store or stores.
        config: The run.
        videos: As of `make_shares`.

    Returns:
        The windows; None where all videos are mixed.

    Raises:
        UsageError: The shards that are read at a time do not fit into the cache, so that each clip
            might fetch one.
    """
    size, sizes = config.clips.window, sorted(store.remote_bytes, reverse=True)
    # Some processes still read a window when others begin the next one.
    needed, limit = sum(sizes if size is None else sizes[: 2 * size]), config.cache_gb * 1e9
    if needed > limit:
        fits = int(limit // (2 * sizes[0]))
        held = "all shards" if size is None else f"two windows of {size} shards"
        raise UsageError(
            f"cache_gb={config.cache_gb:g} is too small: the cache must hold {held} of "
            f"{store.path}, {needed / 1e9:.3g} GB: give "
            + (f"clips.window={fits}{' or less' * (fits > 1)}, or " if fits else "")
            + f"cache_gb={math.ceil(needed / 1e8) / 10:g}"
        )
    if size is None:
        return None
    return Windows(store.shards if videos is None else store.shards[np.asarray(videos)], size)


def with_stride(config: Config, store: Store) -> Config:
    """A run's settings whose `clips.frame_stride` gives `clips.fps`, if that is set.

    Raises:
        UsageError: No stride does.
    """
    fps = config.clips.fps
    if fps is None:
        return config
    stride = store.meta.fps / fps
    if not 0.5 < stride < LARGEST or abs(stride - round(stride)) > 1e-3 * stride:
        raise UsageError(
            f"clips.fps={fps:g}: {store.path} has {store.meta.fps:g} frames per second, which is "
            "no multiple of it: give another clips.fps, or tokenise again"
        )
    clips = dataclasses.replace(config.clips, frame_stride=round(stride))
    return dataclasses.replace(config, clips=clips)


def damaged_videos(store: Store, clips: ClipConfig | InferenceClipConfig) -> list[int]:
    """The videos that are to be left out, as `clips.skip_damaged` says."""
    if not clips.skip_damaged:
        return []
    return [i for i, problem in enumerate(store.verify()) if problem]


def damage_warning(store: Store, damaged: list[int]) -> Iterator[str]:
    """A line, if videos are left out."""
    if damaged:
        names = ", ".join(f"'{store.name(i)}'" for i in damaged[:3])
        more = ", ..." if len(damaged) > 3 else ""
        yield f"{len(damaged)} of {len(store)} videos are damaged and left out: {names}{more}"


def clip_pairs(
    store: Store, config: PretrainConfig, videos: Sequence[int] | np.ndarray | None = None
) -> ClipDataset:
    """The two clips (2, T, H, W) that pre-training draws of a video; `videos` as `ClipDataset`."""
    clips = config.clips
    return ClipDataset(
        store,
        num_frames=clips.frames,
        frame_stride=clips.frame_stride,
        max_distance=clips.max_distance,
        variant=clips.variant,
        pad_token=PAD_TOKEN,
        seed=config.seed,
        videos=videos,
    )


def padding_warning(store: Store, clips: ClipConfig) -> Iterator[str]:
    """A line, if most videos are shorter than a clip."""
    videos, short = len(store), int((store.frames < clips.span).sum())
    if 2 * short > videos:
        yield (
            f"{short} of {videos} videos have fewer than the {clips.span} frames of a clip and are "
            "padded: lower clips.frames or clips.frame_stride"
        )
