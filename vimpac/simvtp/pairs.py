"""Captioned videos as samples: a clip of a video and one of its captions, drawn for each sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vimpac.data.random import CLIPS, below, words
from vimpac.data.video import UnreadableVideo
from vimpac.errors import UsageError, VimpacError
from vimpac.simvtp.captions import Captioned, match_videos, read_captions
from vimpac.simvtp.clips import DrawClip
from vimpac.simvtp.frames import Frames, open_frames
from vimpac.simvtp.text import SHORTEST, TokenizersVocabulary, Words, WordVocabulary
from vimpac.simvtp.unreadable import UnreadableVideos

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

    files: Frames
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
    data: str,
    videos: str,
    *,
    split: str = "",
    part: str = "train",
    missing: str = "error",
    skip: str = "missing=skip",
) -> CaptionedVideos:
    """Reads captions and finds their videos.

    Args:
        data: As `read_captions` takes it.
        videos: A directory of video files, or a store of `vimpac frames`.
        split: As `read_captions` takes it.
        part: "train", "val" or "test": what of the table is used, if it says so of any video.
        missing: "error" or "skip": what to do about captions without a file, and the reverse.
        skip: How the user writes that, for the message.

    Raises:
        UsageError: Nothing was given, or nothing fits.
    """
    parts = open_parts(data, videos, split=split, missing=missing, skip=skip)
    return pick_part(parts, part, data)


def pick_part(parts: Mapping[str, CaptionedVideos], part: str, data: str) -> CaptionedVideos:
    """A part of `open_parts`, or all videos if the table names no parts.

    Raises:
        UsageError: It names others only.
    """
    if list(parts) == [""]:
        return parts[""]
    if part not in parts:
        raise UsageError(
            f"{data} has no video in '{part}', only in {', '.join(sorted(parts))} (a line without "
            "a part is in none)"
        )
    return parts[part]


def open_parts(
    data: str,
    videos: str,
    *,
    split: str = "",
    missing: str = "error",
    skip: str = "missing=skip",
) -> dict[str, CaptionedVideos]:
    """`open_pairs` for every part that the table names; one part, "", if it names none.

    Raises:
        UsageError: Nothing was given, or nothing fits.
    """
    if not data:
        raise UsageError("data= is missing: give a table of captions (see docs/simvtp.md)")
    if not videos:
        raise UsageError("videos= is missing: give the directory of the video files")
    captioned = read_captions(data, split)
    files = open_frames(videos)
    matched = match_videos(captioned, files.names, source=data, missing=missing, skip=skip)
    named = {one.split for one in captioned} - {""}
    parts: dict[str, CaptionedVideos] = {}
    for one, number in zip(matched.captioned, matched.files, strict=True):
        if one.split or not named:
            empty = CaptionedVideos(files, [], [], matched.notes)
            part = parts.setdefault(one.split, empty)
            part.captioned.append(one)
            part.numbers.append(number)
    return parts


def open_words(vocab: str, captions: list[str]) -> Words:
    """The vocabulary that a file holds, or without one that of the captions."""
    if vocab:
        return TokenizersVocabulary.read(Path(vocab).expanduser())
    return WordVocabulary.of(captions)


def longest_caption(words: Words, captions: Sequence[str], length: int) -> int:
    """Ids of the longest of some captions, none of which is longer than `length`.

    Raises:
        UsageError: None of them has a word.
    """
    longest = max(words.lengths(captions))
    if longest < SHORTEST:
        raise UsageError(
            f"none of {len(captions)} captions has a word, as {captions[0]!r} has none"
        )
    return min(longest, length)


def caption_warnings(words: Words, captions: Sequence[str], length: int) -> Iterator[str]:
    """How many captions have no word, and how many are cut, a line each."""
    empty = cut = 0
    for ids in words.lengths(captions):
        empty += ids < SHORTEST
        cut += ids > length
    if empty:
        yield f"{empty} of {len(captions)} captions have no word"
    if cut:
        yield f"{cut} of {len(captions)} captions are cut after text.length={length} tokens"


class PairDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Clips with captions, indexed by (sample number, video).

    Which caption, which frames and which part of the picture are a function of (seed, sample
    number). An unreadable video is named in a file, and the next one takes its place.

    Args:
        pairs: The videos.
        vocabulary: How a caption becomes ids.
        draw_clip: Draws a clip.
        length: The most ids of a caption.
        seed: Of the run.
        out: Its directory, which gets the names of unreadable videos.

    Attributes:
        length: Ids of every caption, padding included: of the longest one.
    """

    def __init__(
        self,
        pairs: CaptionedVideos,
        vocabulary: Words,
        draw_clip: DrawClip,
        *,
        length: int,
        seed: int,
        out: str,
    ) -> None:
        self.pairs, self.vocabulary, self.draw_clip = pairs, vocabulary, draw_clip
        self.seed = seed
        # The same for every batch, so that nothing depends on how samples are divided.
        self.length = longest_caption(vocabulary, pairs.captions, length)
        self._unreadable = UnreadableVideos(out)

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
        draws = words(CLIPS, self.seed, sample, 1 + self.draw_clip.draws)
        most = min(MOST_UNREADABLE, len(self.pairs))
        for place in range(video, video + most):
            number = place % len(self.pairs)
            try:
                clip = self.draw_clip(self.pairs.files, self.pairs.numbers[number], draws[1:])
            except UnreadableVideo as error:
                name, reason = self.pairs.files.names[self.pairs.numbers[number]], str(error)
                self._unreadable.add(name, reason)
                continue
            captions = self.pairs.captioned[number].captions
            caption = captions[below(draws[0], len(captions))]
            ids, _ = self.vocabulary.encode([caption], self.length, pad_to=self.length)
            return torch.from_numpy(clip), ids[0], torch.tensor(int(place > video))
        raise VimpacError(f"{most} videos in a row are unreadable, the last: {name}: {reason}")
