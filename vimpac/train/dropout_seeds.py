"""Dropout as a function of the run's seed and of a clip: the same after a resume, on any rank."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from vimpac.data.random import DROPOUT, words
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.model.layer import Layer

SEEDS = 1 << 16  # from the dropout seed of a clip to that of the next; an encoder takes fewer


class DropoutSeeds:
    """The seeds of the micro-batches of a run.

    A micro-batch is named by its first clip. Where some dropout of the encoder takes no seed
    (joint axes on a GPU, the paper's [CLS]), PyTorch's generator is seeded, too.

    Args:
        encoder: What drops out.
        seed: Of the run.
        device: Where the seeds are read.

    Attributes:
        seeds_generator: Whether PyTorch's generator is seeded, too.
    """

    def __init__(self, encoder: VideoTokenEncoder, seed: int, device: torch.device) -> None:
        self._seed = seed
        key = words(DROPOUT, seed, 0, 1).view("int64")
        self._first = torch.from_numpy(key)[0].to(device)
        layers = [cast(Layer, layer) for layer in encoder.layers]
        self.seeds_generator = any(layer.draws_from_generator(device) for layer in layers)

    def __call__(self, clip: int | Tensor) -> Tensor:
        """The seed of a micro-batch, 0-d int64 on the device.

        Args:
            clip: Number of its first clip among all of the run; a tensor is read on the device.
        """
        if self.seeds_generator:  # on the host: no graph, as `PretrainConfig.check` says
            torch.manual_seed(int(words(DROPOUT, self._seed, int(clip), 1)[0]))
        return torch.add(self._first, clip, alpha=SEEDS)
