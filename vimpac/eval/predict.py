"""Classifies video files, which are tokenised as those were that a classifier was trained on.

The views are those of `vimpac evaluate`, so a file and its tokens in a store give the same
probabilities.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vimpac.checkpoints.description import DataFacts
from vimpac.checkpoints.model_dir import load_classifier, read_description
from vimpac.data.even_clips import EvenClips, TokenArray, find_crops
from vimpac.data.journal import Tries
from vimpac.data.tokenize import TokenizeSettings, tokenized
from vimpac.data.tokenize_video import tokenize_video
from vimpac.data.tokenize_workers import Outcome
from vimpac.data.variants import Variant, parse_variants
from vimpac.errors import UsageError
from vimpac.eval.metrics import check_finite
from vimpac.eval.over_views import over_views
from vimpac.paths import local_path
from vimpac.tokenizers import Tokenizer, get_tokenizer
from vimpac.train.distributed import World, explained, pick_device
from vimpac.train.launch import Place
from vimpac.train_config import clip_span


class Prediction(NamedTuple):
    """What a classifier says of a video file.

    Attributes:
        name: Of the video.
        classes: (class, probability), the likeliest first; empty if it could not be read.
        note: What is wrong with the video, or why it could not be read; empty if nothing is.
    """

    name: str
    classes: list[tuple[str, float]]
    note: str


class Predictor:
    """A classifier of video files.

    Args:
        folder: A checkpoint of `vimpac finetune`.
        clips: Evenly spaced clips of a video.
        crops: "all" (the unflipped ones at scale 1 that it was trained on), "center", or names of
            variants, as `vimpac tokenize --variants` takes them.
        weights: Those of the tokenizer, if it has any.
        batch: Views at once.
        device: "auto", "cpu" or "cuda".
        precision: "bf16" is autocast; "fp32".

    Attributes:
        classes: The names of the classes.

    Raises:
        UsageError: The directory holds no classifier, or does not say how to tokenise; or the
            weights are another tokenizer's.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        clips: int = 10,
        crops: str = "all",
        weights: str | Path | None = None,
        batch: int = 32,
        device: str = "auto",
        precision: str = "bf16",
    ) -> None:
        if min(clips, batch) < 1:
            raise UsageError(f"clips={clips} and batch={batch} must be positive")
        self._path = path = local_path(folder)
        model, self.classes = load_classifier(path)
        data = read_description(path).data
        if data is None:
            raise UsageError(
                f"{path} does not say what it was trained on: tokenise the videos, then use "
                "`vimpac evaluate`"
            )
        self.world = World(pick_device(device, Place()))
        self.model = model.to(self.world.device)
        self.data, self.clips, self.batch, self.precision = data, clips, batch, precision
        self.settings = _settings(path, data, crops, weights, self.world.device)

    def __call__(self, video: str | Path) -> list[tuple[str, float]]:
        """Classifies a video file.

        Args:
            video: The file.

        Returns:
            (class, probability), the likeliest first.

        Raises:
            UnreadableVideo: It is no video, has no frame, is cut short, or too damaged.
        """
        tokens = tokenize_video(local_path(video), self.settings, self._tokenizer)
        return self._ranked(self.probabilities(tokens))

    def predict(
        self, videos: Sequence[tuple[str, Path]], *, workers: int = 0, timeout: float = 300.0
    ) -> Iterator[Prediction]:
        """Classifies video files; workers decode and tokenise the next ones meanwhile.

        Args:
            videos: (name, file).
            workers: Processes; 0 works in this one, which a damaged video may end.
            timeout: Seconds without progress after which a worker is ended.

        Yields:
            The predictions, in order.

        Raises:
            VimpacError: The device failed, or no worker can start.
        """
        results = tokenized(
            videos,
            self.settings,
            self._tokenizer,
            workers=workers,
            timeout=timeout,
            record=Tries(),
        )
        with closing(results):
            for (name, _), outcome in zip(videos, results, strict=True):
                yield self._prediction(name, outcome)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return self.settings.make_tokenizer()

    @torch.no_grad()
    def probabilities(
        self,
        tokens: np.ndarray,  # (crops, frames, H, W) ids
    ) -> Tensor:  # (classes,) fp32, on the CPU
        """The mean over the views of a tokenised video."""
        frames = self.model.encoder.grid[0]
        views = EvenClips(
            TokenArray(tokens),
            [0],
            frames=frames,
            stride=self.data.frame_stride,
            clips=[self.clips],
            variants=range(len(tokens)),
        )
        has_padding = tokens.shape[1] < views.span

        def logits(clips: Tensor) -> Tensor:
            with self.world.autocast(self.precision):
                return self.model(clips.to(self.world.device), has_padding=has_padding)

        with explained():
            ((place, values),) = over_views(logits, views, self.world, batch=self.batch, workers=0)
        found = values.float().softmax(-1)[views.chosen(place, self.clips)].mean(0)
        check_finite(found, f"probabilities of {self._path}")
        return found

    def _prediction(self, name: str, outcome: Outcome) -> Prediction:
        tokens, note, _ = outcome
        if tokens is None:
            return Prediction(name, [], note)
        span = clip_span(self.model.encoder.grid[0], self.data.frame_stride)
        if tokens.shape[1] < span:
            short = f"{tokens.shape[1]} of the {span} frames of a clip: padded"
            note = f"{note}; {short}" if note else short
        return Prediction(name, self._ranked(self.probabilities(tokens)), note)

    def _ranked(self, probabilities: Tensor) -> list[tuple[str, float]]:
        order = probabilities.argsort(descending=True, stable=True).tolist()
        return [(self.classes[i], float(probabilities[i])) for i in order]


def _settings(
    path: Path, data: DataFacts, crops: str, weights: str | Path | None, device: torch.device
) -> TokenizeSettings:
    """How the classifier's videos were tokenised."""
    weights = None if weights is None else local_path(weights)
    tokenizer = get_tokenizer(data.tokenizer, weights=weights, device="cpu")
    if tokenizer.digest != data.digest:
        raise UsageError(
            f"{path} reads tokens of {data.tokens}, --weights has those with the digest "
            f"{tokenizer.digest[:12]}"
        )
    if data.height != data.width:
        raise UsageError(f"{path} reads maps of {data.map} tokens, which no square crop gives")
    return TokenizeSettings(
        fps=Fraction(data.fps).limit_denominator(100_000),
        size=data.height * tokenizer.patch,
        variants=_crops(data, crops),
        tokenizer=data.tokenizer,
        weights=weights,
        device="cpu" if weights is None else str(device),  # others compute on the CPU only
    )


def _crops(data: DataFacts, crops: str) -> tuple[Variant, ...]:
    if crops == "center":
        return (Variant(),)
    if crops != "all":
        return parse_variants(crops)
    names = [data.variants[i] for i in find_crops(data.variants, "all")] if data.variants else []
    try:
        return parse_variants(",".join(names)) if names else (Variant(),)
    except UsageError:  # a store of LMDBs has names of its own
        return (Variant(),)
