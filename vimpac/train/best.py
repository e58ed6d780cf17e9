"""The checkpoint that was best while it trained: a copy of it in `<out>/best`.

It is judged by the videos of val, where there are none by those of test, and in a pre-training of
VIMPAC by k-NN; SimVTP by R@1 from text to video. Its accuracy on what it was chosen by is too high.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from vimpac.files import whole_directory
from vimpac.train.log import LOG, read_log

METRICS = (
    "val_video_accuracy",
    "test_video_accuracy",
    "knn_accuracy",
    "val_text_to_video_r1",
    "test_text_to_video_r1",
)


class BestCheckpoint:
    """Keeps it.

    Args:
        out: The run's directory, whose log says what was found up to now.
        done: Updates done; later records are of a run that was cut off.
        active: Whether to keep it, as the main process may be asked to.
    """

    def __init__(self, out: Path, done: int, *, active: bool) -> None:
        self.folder, self._active, log = out / "best", active, out / LOG
        records = read_log(log) if log.exists() else []
        found = [_score(record) for record in records if record["step"] <= done]
        self._best = max((score for score in found if score is not None), default=-1.0)
        if not self.folder.is_dir():
            self._best = -1.0

    def offer(self, path: Path | None, found: Mapping[str, float]) -> bool:
        """Copies a checkpoint if it is better than those before, and says whether it is.

        Args:
            path: The checkpoint; None, which is there before the first one, is no offer.
            found: What its test found.
        """
        score = _score(found)
        if not self._active or path is None or score is None or score <= self._best:
            return False
        self._best = score
        with whole_directory(self.folder) as temporary:
            shutil.copytree(path, temporary, dirs_exist_ok=True)
        return True


def _score(found: Mapping[str, float]) -> float | None:
    return next((found[name] for name in METRICS if name in found), None)
