"""Captioned videos as samples: a clip of a video and one of its captions, drawn for each sample."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vimpac.data.random import CLIPS, below, words
from vimpac.data.video import UnreadableVideo
from vimpac.errors import UsageError, VimpacError
from vimpac.simvtp.captions import Captioned, match_videos, read_captions
from vimpac.simvtp.frames import CROP_DRAWS, VideoFiles, clip_of, multi_scale_crop
from vimpac.simvtp.run_config import SimVTPConfig
from vimpac.simvtp.text import TokenizersVocabulary, Words, WordVocabulary

MOST_UNREADABLE = 20  # videos in a row: if half of all are, one sample in a million meets so many


@dataclasses.dataclass
class CaptionedVideos:
    """Videos with captions.

    Attributes:
        files: The files.
        captioned: Those that have captions.
        numbers: The file of each of them.
        notes: What has no counterpart, a line each.
    """

    files: VideoFiles
    captioned: list[Captioned]
    numbers: list[int]
    notes: list[str]

    def __len__(self) -> int:
        return len(self.captioned)

    @property
    def captions(self) -> list[str]:
        """All of them."""
        return [caption for one in self.captioned for caption in one.captions]


def open_pairs(
    data: str, videos: str, *, split: str = "", part: str = "train", missing: str = "error"
) -> CaptionedVideos:
    """Reads captions and finds their videos.

    Args:
        data: As `read_captions` takes it.
        videos: A directory of video files, or one of them.
        split: As `read_captions` takes it.
        part: "train", "val" or "test": what of the table is used, if it says so of any video.
        missing: "error" or "skip": what to do about captions without a file.

    Raises:
        UsageError: Nothing was given, or nothing fits.
    """
    if not data:
        raise UsageError("data= is missing: give a table of captions (see docs/simvtp.md)")
    if not videos:
        raise UsageError("videos= is missing: give the directory of the video files")
    captioned = read_captions(data, split)
    files = VideoFiles.find(videos)
    matched = match_videos(captioned, files.videos, source=data, missing=missing)
    named = {one.split for one in captioned} - {""}
    kept = [i for i, one in enumerate(matched.captioned) if not named or one.split == part]
    if not kept:
        raise UsageError(f"{data} has no video in '{part}', only in {', '.join(sorted(named))}")
    return CaptionedVideos(
        files,
        [matched.captioned[i] for i in kept],
        [matched.files[i] for i in kept],
        matched.notes,
    )


def open_words(vocab: str, captions: list[str]) -> Words:
    """The vocabulary that a file holds, or without one that of the captions."""
    if vocab:
        return TokenizersVocabulary.read(Path(vocab).expanduser())
    return WordVocabulary.of(captions)


class PairDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Clips with captions, indexed by (sample number, video).

    Which caption, which frames and which part of the picture are a function of (seed, sample
    number). An unreadable video is named in a file, and the next one takes its place.

    Args:
        pairs: The videos.
        vocabulary: How a caption becomes ids.
        config: The run.
    """

    def __init__(self, pairs: CaptionedVideos, vocabulary: Words, config: SimVTPConfig) -> None:
        self.pairs, self.vocabulary, self.config = pairs, vocabulary, config
        ids, _ = vocabulary.encode(pairs.captions, config.text.length)
        self.length = ids.shape[1]  # of every batch, however the samples are divided
        self._named: set[int] = set()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Draws one sample.

        Args:
            index: (sample number, video).

        Returns:
            The clip (T, S, S, 3) uint8, ids (L,) int32, and 1 if the video was unreadable, else 0.

        Raises:
            VimpacError: Many videos in a row are unreadable.
        """
        sample, video = index
        draws = words(CLIPS, self.config.seed, sample, 2 + CROP_DRAWS)
        for place in range(video, video + MOST_UNREADABLE):
            number = place % len(self.pairs)
            try:
                clip = self._clip(self.pairs.numbers[number], draws[1:])
            except UnreadableVideo as error:
                last = f"{self.pairs.files.paths[self.pairs.numbers[number]]}: {error}"
                self._note(number, last)
                continue
            captions = self.pairs.captioned[number].captions
            caption = captions[below(draws[0], len(captions))]
            ids, _ = self.vocabulary.encode([caption], self.config.text.length, pad_to=self.length)
            return torch.from_numpy(clip), ids[0], torch.tensor(int(place > video))
        raise VimpacError(f"{MOST_UNREADABLE} videos in a row are unreadable, the last: {last}")

    def _clip(self, number: int, draws: np.ndarray) -> np.ndarray:
        """A clip (T, S, S, 3) of a file."""
        network, step = self.config.model, self.config.clips.step
        window = network.frames * step
        start = below(draws[0], max(self.pairs.files.num_frames(number) - window, 0) + 1)
        frames = clip_of(self.pairs.files.paths[number], start, network.frames, step)
        return multi_scale_crop(frames, network.size, draws[1:])

    def _note(self, number: int, line: str) -> None:
        """Names an unreadable video, once for each process, in a file of the run."""
        if number in self._named:
            return
        self._named.add(number)
        with open(Path(self.config.out) / "unreadable.txt", "ab") as file:  # whole lines
            file.write(f"{line}\n".encode(errors="surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
