"""Micro-batches of a data set, read in the order of a sampler by processes that outlive signals."""

from __future__ import annotations

import re
import signal
from collections.abc import Generator, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vimpac.data.store import DamagedVideo
from vimpac.errors import VimpacError


def make_loader(
    dataset: Dataset,
    sampler: Iterable,
    batch: int,
    *,
    workers: int,
    prefetch: int,
    device: torch.device,
) -> DataLoader:
    """Batches of a dataset, in pinned memory where they go to a GPU.

    Reading them draws nothing from PyTorch's generator, from which others may be drawing.

    Args:
        dataset: What is read.
        sampler: The indices, in order.
        batch: Samples of a batch.
        workers: Processes that read; 0: none.
        prefetch: Batches that each of them keeps ready.
        device: Where the batches will go.

    Returns:
        The loader.
    """
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_outlive_signals,
        generator=torch.Generator(),
    )


def read(loader: DataLoader) -> Generator[Any, None, None]:
    """The loader's batches; what a worker finds wrong is one line, as it is without workers.

    Close it: workers outlive the signal by which Python would end those that are left at its exit.
    """
    iterator = iter(loader)
    try:
        yield from iterator
    except VimpacError as error:  # torch puts the worker's traceback in front
        line = re.sub(r"^vimpac\.[\w.]+: ", "", str(error).strip().splitlines()[-1])
        if isinstance(error, DamagedVideo):
            line += ", or leave such videos out with clips.skip_damaged=true"
        raise VimpacError(line) from None
    finally:
        # Not left to the garbage collector: a traceback may hold the iterator to the end.
        getattr(iterator, "_shutdown_workers", lambda: None)()


def _outlive_signals(worker: int) -> None:
    """A terminal or SLURM signals every process, but the step in hand still needs its data."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
