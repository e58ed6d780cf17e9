"""What the demos of both systems share: a directory of their own, and a run that fits a time."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vimpac.errors import UsageError
from vimpac.train.log import LOG, read_log
from vimpac.train.loop import Result


def clear_folder(out: Path, mark: str, made: Sequence[Path]) -> None:
    """Removes what an earlier demo left in a directory, which no other directory may be.

    Args:
        out: The directory.
        mark: Name of the file by which it is known.
        made: What is removed, files and directories.

    Raises:
        UsageError: `out` is a file or holds other files.
    """
    if out.is_file():
        raise UsageError(f"--out {out} is a file: name a directory for the demo alone")
    if out.is_dir() and any(out.iterdir()) and not (out / mark).exists():
        raise UsageError(f"--out {out} holds other files: name a directory for the demo alone")
    out.mkdir(parents=True, exist_ok=True)
    (out / mark).touch()
    for old in made:
        if old.is_file():
            old.unlink()
        shutil.rmtree(old, ignore_errors=True)


def steps_within(config: Any, run: Callable[[Any], Result], seconds: float, most: int) -> int:
    """Measures a few steps of a run and says how many fit, between 20 and `most`.

    The fastest count: those before them wait for the first clips, or for other programs.
    """
    with tempfile.TemporaryDirectory() as folder:
        trial = copy.copy(config)
        trial.out = folder
        trial.optim = dataclasses.replace(config.optim, steps=8)
        trial.run = dataclasses.replace(config.run, log_every=2, tensorboard=False)
        run(trial)
        rates = [record.get("videos_per_s", 0.0) for record in read_log(Path(folder) / LOG)]
    return int(min(max(seconds * max(rates) / config.batch.videos, 20), most))
