"""SimVTP on videos of moving shapes in a minute or two: pre-train, search by text, fill in."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vimpac.errors import UsageError
from vimpac.settings import load_config
from vimpac.shared_demo import clear_folder, steps_within
from vimpac.simvtp.captioned_shapes import CLASSES, SLOTS, other_classes, write_videos
from vimpac.simvtp.pairs import open_pairs
from vimpac.simvtp.pictures import draw_filled
from vimpac.simvtp.predictions import accuracy_by_place, fill_in
from vimpac.simvtp.pretrain import pretrain
from vimpac.simvtp.ranks import Retrieval, judge
from vimpac.simvtp.retrieval import Retriever
from vimpac.simvtp.run_config import SimVTPConfig
from vimpac.simvtp.text import split_words

VIDEOS = 512  # to train on
PLACES = {"colour": 1, "shape": 2, "direction": 4}  # of the words of "a red square moves left"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the demo made.

    Attributes:
        picture: The PNG.
        run: The run's directory.
        checkpoint: Its last checkpoint.
        retrieval: Among the videos to test with, one of every caption.
        right: Word accuracy by slot beside the right video, all three words masked.
        wrong: The same beside a video whose words are all other ones.
    """

    picture: Path
    run: Path
    checkpoint: Path
    retrieval: Retrieval
    right: dict[str, float]
    wrong: dict[str, float]

    @property
    def chance(self) -> float:
        """R@1 of guessing."""
        return 1 / len(CLASSES)

    @property
    def learned(self) -> bool:
        """Whether words are read off the video, and searches beat chance three times."""
        found = self.retrieval.text_to_video.r1, self.retrieval.video_to_text.r1
        reads = sum(self.right.values()) > sum(self.wrong.values())
        return reads and min(found) > 3 * self.chance


def run_demo(out: Path, *, seconds: float = 60.0, say: Callable = print) -> Outcome:
    """Runs the demo; what an earlier one left in `out` is replaced.

    Args:
        out: Directory of everything it makes.
        seconds: For the pre-training.
        say: Takes the lines of progress.

    Returns:
        The files and the numbers.

    Raises:
        UsageError: `out` holds anything else.
    """
    if not 0 < seconds < math.inf:
        raise UsageError(f"--seconds {seconds:g} must be positive and finite")
    made = [out / "shapes", out / "run", out / "demo.png"]
    clear_folder(out, ".vimpac-simvtp-demo", made)
    say(f"1. Drawing {VIDEOS + len(CLASSES)} videos of moving shapes")
    table = write_videos(out / "shapes", VIDEOS)
    words = [f"data={table}", f"videos={table.parent / 'videos'}", f"out={out / 'run'}"]
    config = load_config(SimVTPConfig, "tiny", [*words, "device=cpu", "clips.workers=1"])
    config.optim.steps = steps_within(
        config, lambda trial: pretrain(trial, quiet=True), seconds, most=2000
    )
    config.run.log_every = max(1, config.optim.steps // 20)
    say(
        f"2. Pre-training the tiny model for about {seconds:.0f} s: {config.optim.steps} steps of "
        f"{config.batch.videos} videos"
    )
    deadline = time.monotonic() + 2 * seconds
    result = pretrain(config, stop=lambda: time.monotonic() > deadline)
    say(f"3. Searching {len(CLASSES)} other videos, and filling in what is masked")
    retriever = Retriever(result.checkpoint, device="cpu")
    pairs = open_pairs(config.data, config.videos, part="test")
    gallery = retriever.index(pairs.files, pairs.numbers)
    similarity = retriever.embed_captions(pairs.captions) @ gallery.features.T
    retrieval = judge(similarity, torch.arange(len(CLASSES)))
    views = retriever.views(pairs.files, pairs.numbers)
    videos = torch.cat([views[place][0] for place in range(len(views))])
    right = word_accuracy(retriever, videos, pairs.captions)
    wrong = word_accuracy(retriever, videos[other_classes()], pairs.captions)
    outcome = Outcome(out / "demo.png", result.out, result.checkpoint, retrieval, right, wrong)
    _paint(retriever, videos, pairs.captions, outcome)
    return outcome


def word_accuracy(retriever: Retriever, videos: Tensor, captions: list[str]) -> dict[str, float]:
    """How many of the three masked words are those of the caption, by slot."""
    filled = fill_in(
        retriever.joint_model,
        retriever.words,
        videos,
        captions,
        [[*PLACES.values()]] * len(captions),
        masked_cells=retriever.masked_cells,
    )
    shares = accuracy_by_place(filled, [split_words(text) for text in captions])
    return {slot: shares[place] for slot, place in PLACES.items()}


def _paint(retriever: Retriever, videos: Tensor, captions: list[str], outcome: Outcome) -> None:
    chosen = [CLASSES.index(c) for c in (("red", "square", "left"), ("blue", "cross", "down"))]
    filled = fill_in(
        retriever.joint_model,
        retriever.words,
        videos[chosen],
        [captions[i] for i in chosen],
        [[*PLACES.values()]] * len(chosen),
        masked_cells=retriever.masked_cells,
        seed=2,  # of which something of both shapes is seen
    )
    draw_filled(videos[chosen], filled, outcome.picture, lines(outcome))


def lines(outcome: Outcome) -> list[str]:
    """The numbers, in words."""
    to_video, to_text = outcome.retrieval.text_to_video, outcome.retrieval.video_to_text
    return [
        "masked words right   " + "   ".join(f"{slot:>9}" for slot in SLOTS),
        "  with the video     " + "   ".join(f"{x:9.0%}" for x in outcome.right.values()),
        "  with another one   " + "   ".join(f"{x:9.0%}" for x in outcome.wrong.values()),
        f"R@1 among {len(CLASSES)}: text to video {to_video.r1:.1%}, video to text "
        f"{to_text.r1:.1%}; chance {outcome.chance:.1%}",
        f"median rank: {to_video.median:g} and {to_text.median:g}; chance "
        f"{(len(CLASSES) + 1) / 2:g}",
    ]
