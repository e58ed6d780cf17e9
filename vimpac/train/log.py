"""What a run tells while it goes: JSON lines, TensorBoard and a live line in the terminal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vimpac.files import whole_file
from vimpac.paths import on_one_line

LOG = "log.jsonl"

# name in the record: (title, format) in the terminal
COLUMNS = {
    "loss": ("loss", ".3f"),
    "accuracy": ("accuracy", ".1%"),
    "val_clip_accuracy": ("val clips", ".1%"),
    "val_video_accuracy": ("val videos", ".1%"),
    "test_clip_accuracy": ("test clips", ".1%"),
    "val_top5_accuracy": ("val top-5", ".1%"),
    "test_video_accuracy": ("test videos", ".1%"),
    "test_top5_accuracy": ("test top-5", ".1%"),
    "test_class_accuracy": ("mean of classes", ".1%"),
    "knn_accuracy": ("k-NN", ".1%"),
    "val_text_to_video_r1": ("val R@1", ".1%"),
    "val_text_to_video_r5": ("R@5", ".1%"),
    "val_text_to_video_median": ("MdR", "g"),
    "test_text_to_video_r1": ("test R@1", ".1%"),
    "test_text_to_video_r5": ("R@5", ".1%"),
    "test_text_to_video_median": ("MdR", "g"),
    "val_unreadable": ("val unreadable", "g"),
    "test_unreadable": ("test unreadable", "g"),
    "word_accuracy": ("words", ".1%"),
    "match_accuracy": ("matches", ".1%"),
    "mask_accuracy": ("mask acc", ".1%"),
    "cl_loss": ("CL", ".3f"),
    "lr": ("lr", ".1e"),
    "videos_per_s": ("videos/s", "digits"),
    "data_wait": ("data wait", ".0%"),
}


class RunLog:
    """Writes the records of the main process; on other processes it does nothing.

    A resumed run drops the records after its checkpoint, so every step stands in the log once.

    Args:
        out: The run's directory.
        steps: Steps of the whole run.
        done: Steps done before.
        active: Whether this process writes.
        tensorboard: Whether to write TensorBoard events too.
        quiet: Whether to print nothing.
    """

    def __init__(
        self,
        out: Path,
        *,
        steps: int,
        done: int,
        active: bool,
        tensorboard: bool,
        quiet: bool = False,
    ) -> None:
        self._active, self._steps = active, steps
        self._events: Any = None
        self._progress: Progress | None = None
        if not active:
            return
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        path = out / LOG
        kept = [r for r in read_log(path) if r["step"] <= done] if path.exists() else []
        with whole_file(path) as temporary:
            temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # imports for a second

            self._events = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1)
        if self._console.is_terminal and not quiet:
            self._progress = Progress(
                TextColumn("[bold]step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"),
                console=self._console,
            )
            self._task = self._progress.add_task("", total=steps, completed=done, values="")
            self._progress.start()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, step: int) -> None:
        """Moves the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def record(self, record: dict[str, float]) -> None:
        """Writes one record.

        Args:
            record: "step" and the values.
        """
        if not self._active:
            return
        self._write(record)
        values = "  ".join(
            f"{title} {_format(record[name], form)}"
            for name, (title, form) in COLUMNS.items()
            if name in record
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=record["step"], values=values)
        else:
            of = f"/{self._steps}" if self._steps else ""  # a probe has no steps
            self.say(f"step {record['step']:>6}{of}  {values}")
        if self._events is not None:
            for name, value in record.items():
                if name != "step":
                    self._events.add_scalar(name, value, record["step"])

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._active:
            self._console.print(on_one_line(text), markup=False, soft_wrap=True)

    def close(self) -> None:
        """Flushes and closes everything."""
        if not self._active:
            return
        if self._progress is not None:
            self._progress.stop()
        if self._events is not None:
            self._events.close()
        self._file.close()

    def _write(self, record: dict[str, float]) -> None:
        try:
            self._file.write(_line(record))
            self._file.flush()
        except OSError as error:
            error.filename = self._file.name
            raise


def _format(value: float, form: str) -> str:
    """A value of the console; "digits": at least one decimal, and more if it is small."""
    if form == "digits":
        form = f".{max(1, 2 - math.floor(math.log10(value)))}f" if value > 0 else ".1f"
    return format(value, form)


def _line(record: dict[str, float]) -> str:
    return json.dumps(record) + "\n"


def read_log(path: Path) -> list[dict[str, float]]:
    """The records of a run; a last line that a killed process left unfinished is dropped."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
