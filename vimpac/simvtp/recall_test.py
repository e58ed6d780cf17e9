"""How well texts find their videos while a model is trained.

The videos of val, or where there are none those of test, are searched by their captions; at the
end of a run both are. A video is seen in one view, its middle: `vimpac simvtp retrieve` averages
several, and finds more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn

from vimpac.errors import UsageError, VimpacError
from vimpac.simvtp.config import NetworkConfig
from vimpac.simvtp.pairs import CaptionedVideos, longest_caption
from vimpac.simvtp.ranks import judge
from vimpac.simvtp.text import Words
from vimpac.simvtp.unreadable import UnreadableVideos
from vimpac.simvtp.views import VideoViews, read_views
from vimpac.train.distributed import World
from vimpac.train_config import TestedRunConfig

PARTS = ("val", "test")


class Embeds(Protocol):
    """The features of a model that may be sharded: every process calls them equally often."""

    def embed_video(self, video: Tensor) -> Tensor:
        """(B, T, S, S, 3) uint8 to (B, D)."""

    def embed_text(self, ids: Tensor, attention: Tensor) -> Tensor:
        """(B, L) and (B, L) bool to (B, D)."""


def require_test(run: TestedRunConfig, parts: Mapping[str, CaptionedVideos], data: str) -> None:
    """Raises UsageError if a run asks for a test without videos to test it on.

    Args:
        run: Its settings.
        parts: As `open_parts` has them.
        data: Where the captions were read, for the message.
    """
    asked = {"keep_best": run.keep_best, "evaluate_every": run.evaluate_every is not None}
    for name, wanted in asked.items():
        if wanted and not any(part in parts for part in PARTS):
            raise UsageError(
                f"run.{name} needs a test, and {data} has no video in val or test: put some there, "
                "or leave it out"
            )


class RecallTest:
    """The videos that a run is tested on.

    Args:
        pairs: Captioned videos by the part of the table; those of `PARTS` are used.
        words: The vocabulary.
        network: Sizes of the clips and of a text.
        step: Frames of a video from one of a clip to the next.
        length: The most ids of a caption.
        batch: Videos, or captions, at once.
        workers: Processes that decode; 0: none.
        out: The run's directory, which gets the names of unreadable videos.
        precision: "bf16" or "fp32".
        world: The processes, which divide videos and captions.

    Raises:
        UsageError: No caption of a part has a word.
        VimpacError: No video of a part can be read.
    """

    def __init__(
        self,
        pairs: Mapping[str, CaptionedVideos],
        words: Words,
        network: NetworkConfig,
        *,
        step: int,
        length: int,
        batch: int,
        workers: int,
        out: str,
        precision: str,
        world: World,
    ) -> None:
        self.pairs = {part: pairs[part] for part in PARTS if part in pairs}
        self._words, self._network, self._step = words, network, step
        self._unreadable = UnreadableVideos(out)
        self._batch, self._workers, self._precision = batch, workers, precision
        self._world = world
        self._longest = {
            part: longest_caption(words, pairs.captions, length)
            for part, pairs in self.pairs.items()
        }
        for part in self.pairs:
            self._require_readable(part)

    def _require_readable(self, part: str) -> None:
        pairs = self.pairs[part]
        views = self._views(pairs, pairs.numbers)
        reason = ""
        for place in range(len(views)):
            _, reason = views[place]
            if not reason:
                return
        last = f"{pairs.files.names[pairs.numbers[-1]]}: {reason}"
        raise VimpacError(
            f"none of the {len(pairs)} videos of '{part}' can be read, the last: {last}"
        )

    def __call__(self, model: nn.Module, features: Embeds, *, final: bool) -> dict[str, float]:
        """Tests a model.

        Args:
            model: Is in evaluation mode meanwhile.
            features: What computes its features.
            final: Whether all parts are tested, or the first one only.

        Returns:
            Recalls and the median rank, for the log, and how many videos could not be read.

        Raises:
            VimpacError: No video of a part can be read, or features are not finite.
        """
        found: dict[str, float] = {}
        model.eval()
        with torch.no_grad():
            for part in [*self.pairs][: None if final else 1]:
                found |= self._test(part, features)
        model.train()
        return found

    def _test(self, part: str, features: Embeds) -> dict[str, float]:
        pairs = self.pairs[part]
        videos, readable = self._embed_videos(pairs, features)
        captions, owners = list[str](), list[int]()
        for number, one in enumerate(pairs.captioned):
            if readable[number]:
                captions += one.captions
                owners += [number] * len(one.captions)
        if not captions:
            raise VimpacError(f"none of the {len(pairs)} videos of '{part}' can be read")
        texts = self._embed_captions(captions, self._longest[part], features)
        if not (videos.isfinite().all() and texts.isfinite().all()):
            raise VimpacError(f"features of '{part}' are not finite")
        places = readable.cumsum(0) - 1  # among those that can be read
        similarity = (texts @ videos[readable].T).cpu()
        result = judge(similarity, places[torch.tensor(owners)].cpu())
        to_video, to_text = result.text_to_video, result.video_to_text
        lost = len(pairs) - len(videos[readable])
        return {
            **({f"{part}_unreadable": lost} if lost else {}),
            f"{part}_text_to_video_r1": to_video.r1,
            f"{part}_text_to_video_r5": to_video.r5,
            f"{part}_text_to_video_r10": to_video.r10,
            f"{part}_text_to_video_median": to_video.median,
            f"{part}_video_to_text_r1": to_text.r1,
            f"{part}_video_to_text_r5": to_text.r5,
            f"{part}_video_to_text_r10": to_text.r10,
            f"{part}_video_to_text_median": to_text.median,
        }

    def _embed_videos(
        self, pairs: CaptionedVideos, features: Embeds
    ) -> tuple[Tensor, Tensor]:  # (videos, D), (videos,) bool: which could be read
        numbers = [pairs.numbers[place] for place in self._own(len(pairs))]
        names = iter(pairs.files.names[number] for number in numbers)
        clips = read_views(self._views(pairs, numbers), self._workers)
        device, network = self._world.device, self._network
        black = torch.zeros(network.frames, network.size, network.size, 3, dtype=torch.uint8)

        def embed(places: Sequence[int]) -> tuple[Tensor, Tensor]:
            read = [next(clips) for _ in places]
            for name, (_, reason) in zip(islice(names, len(read)), read, strict=True):
                if reason:
                    self._unreadable.add(name, reason)
            batch = torch.stack([black if reason else clip[0] for clip, reason in read])
            rows = features.embed_video(batch.to(device))
            return rows, torch.tensor([not reason for _, reason in read], device=device)

        rows = self._gather(len(pairs), embed)
        return rows[:, :-1], rows[:, -1] > 0

    def _views(self, pairs: CaptionedVideos, numbers: Sequence[int]) -> VideoViews:
        return VideoViews(
            pairs.files,
            numbers,
            frames=self._network.frames,
            step=self._step,
            size=self._network.size,
            clips=1,
            crops=1,
        )

    def _embed_captions(self, captions: Sequence[str], length: int, features: Embeds) -> Tensor:
        device = self._world.device

        def embed(places: Sequence[int]) -> tuple[Tensor, Tensor]:
            texts = [captions[place] for place in places]
            ids, attention = self._words.encode(texts, length, pad_to=length)
            rows = features.embed_text(ids.to(device), attention.to(device))
            return rows, torch.ones(len(rows), dtype=torch.bool, device=device)

        return self._gather(len(captions), embed)[:, :-1]

    def _own(self, count: int) -> list[int]:
        """This process's share, which is as long on every process: the last one may come again."""
        share, rank, size = math.ceil(count / self._world.size), self._world.rank, self._world.size
        return [min(rank + size * i, count - 1) for i in range(share)]

    def _gather(
        self, count: int, embed: Callable[[Sequence[int]], tuple[Tensor, Tensor]]
    ) -> Tensor:  # (count, D + 1), the last column 1 where there is a row
        """Features of all processes."""
        own = self._own(count)
        found = []
        with self._world.autocast(self._precision):
            for start in range(0, len(own), self._batch):
                rows, there = embed(own[start : start + self._batch])
                found.append(torch.cat((rows.float(), there[:, None].float()), 1))
        mine = torch.cat(found)
        rank, size = self._world.rank, self._world.size
        first = torch.tensor([rank + size * i == place for i, place in enumerate(own)])
        whole = torch.zeros(count, mine.shape[1], device=mine.device)
        whole[torch.tensor(own)[first]] = mine[first.to(mine.device)]
        return self._world.sum(whole)

    def warnings(self) -> Iterator[str]:
        """What the test may do but is hardly meant to, a line each."""
        for part, pairs in self.pairs.items():
            if len(pairs) < 2:
                yield f"'{part}' has one video, so its recall says nothing"
