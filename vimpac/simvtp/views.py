"""The views by which a video is judged: evenly spaced clips, and crops along the longer side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vimpac.data.video import UnreadableVideo
from vimpac.simvtp.frames import Frames, test_crops, test_windows
from vimpac.train.loader import read


class VideoViews(Dataset[tuple[Tensor, str]]):
    """All views of a video, or why there are none.

    Args:
        files: Where videos are.
        numbers: Which of them.
        frames: Of a clip.
        step: Frames of the video from one to the next.
        size: Of a frame, pixels.
        clips: Evenly spaced.
        crops: Of each.
    """

    def __init__(
        self,
        files: Frames,
        numbers: Sequence[int],
        *,
        frames: int,
        step: int,
        size: int,
        clips: int,
        crops: int,
    ) -> None:
        self.files, self.numbers = files, numbers
        self.frames, self.step, self.size = frames, step, size
        self.clips, self.crops = clips, crops

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> tuple[Tensor, str]:
        """Views (clips * crops, T, S, S, 3) uint8 and no text; or none, and the reason."""
        video = self.numbers[place]
        try:
            count = self.files.num_frames(video)
            windows = test_windows(count, self.frames, self.step, self.clips)
            pixels = self.files.read(video, windows.ravel().tolist())
        except UnreadableVideo as error:
            return torch.empty(0, dtype=torch.uint8), str(error)
        clips = pixels.reshape(self.clips, self.frames, *pixels.shape[1:])
        views = [test_crops(clip, self.size, self.crops) for clip in clips]
        return torch.from_numpy(np.concatenate(views)), ""


def read_views(views: VideoViews, workers: int) -> Iterator[tuple[Tensor, str]]:
    """Every video's views in order, read by `workers` processes, at most one for each."""
    workers = min(workers, len(views))
    loader = DataLoader(
        views,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        generator=torch.Generator(),
    )
    with closing(read(loader)) as items:
        yield from items
