"""Trains a classifier of videos on a pre-trained encoder, or on its frozen features.

    vimpac finetune runs/small/checkpoints/step-00012000 data=ucf labels=ucf.csv out=runs/ucf
    vimpac finetune runs/small/checkpoints/step-00012000 data=ucf labels=ucf.csv --probe linear
    torchrun --nproc-per-node 8 -m vimpac finetune runs/... data=ucf labels=ucf.csv --resume auto

Fine-tuning draws `clips.repeat` clips of every video in an epoch, as does an attentive probe, which
leaves the encoder as it is. A linear probe encodes `test_clips` clips of every training video once
and fits a logistic regression to their [CLS]. All are tested on `test_clips` evenly spaced clips of
the `test_crops` of a video, whose probabilities are averaged.
`vimpac.load_classifier` reads the result, which can itself be fine-tuned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from vimpac.checkpoints.description import ModelDescription, check_tokenizer
from vimpac.checkpoints.model_dir import load_encoder, read_description
from vimpac.checkpoints.training_state import AVERAGED
from vimpac.config import FinetuneConfig
from vimpac.model.config import PRESETS, preset
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.train.distributed import World, join_world
from vimpac.train.finetune_system import KINDS, Finetuning
from vimpac.train.linear_probe import check_linear_probe, fit_linear_probe
from vimpac.train.loop import Loop
from vimpac.train.optim import with_lr
from vimpac.train.resume import choose_checkpoint

Probe = Literal["none", "linear", "attentive"]
ATTENTIVE_LR = 1e-3  # of so few parameters, from random ones; V-JEPA's


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """How a run ended.

    Attributes:
        checkpoint: The classifier that was tested; its averaged weights, if there are any.
        clip_accuracy: The share of test clips that are right.
        video_accuracy: Of test videos (top-1).
        top5_accuracy: Of test videos whose class is among the five likeliest.
        class_accuracy: The mean of the classes' shares.
    """

    checkpoint: Path
    clip_accuracy: float
    video_accuracy: float
    top5_accuracy: float
    class_accuracy: float


def finetune(
    config: FinetuneConfig,
    checkpoint: str | Path,
    *,
    probe: Probe = "none",
    resume: str = "none",
    stop: Callable[[], bool] = lambda: False,
    quiet: bool = False,
) -> FinetuneResult:
    """Trains a classifier and tests it.

    Args:
        config: The run.
        checkpoint: A model directory: of a pre-training, a classifier or `vimpac convert`; or the
            name of a network (`vimpac.model.config.PRESETS`), to train it from scratch.
        probe: "none" trains everything. The others leave the encoder as it is: "linear" fits a
            logistic regression to [CLS], in one process; "attentive" trains an
            `AttentiveClassifier`, whose learning rate is 1e-3 unless it is given.
        resume: "none", "auto" (the newest checkpoint of the run, if any) or a checkpoint's
            directory, which then stands in the place of `checkpoint`.
        stop: Asked after every step; true ends the run early, with a checkpoint and untested.
        quiet: Print nothing.

    Returns:
        The classifier's checkpoint and its accuracies, NaN if untested.

    Raises:
        UsageError: The settings, labels, store and checkpoint do not fit together.
        Interrupted: SIGTERM or SIGINT came; a checkpoint was written after the step in hand.
        VimpacError: The loss is not finite, a file is damaged, or another process was lost.
    """
    config.check()
    with join_world(config.device, config.run.timeout) as world:
        config.check(world.size, world.device.type)
        if probe == "linear":
            check_linear_probe(config, world, resume)
        path = choose_checkpoint(resume, Path(config.out), world)
        saved, found = _train(config, path, Path(checkpoint), world, probe, stop, quiet)
    accuracies = (found.get(f"test_{of}_accuracy", math.nan) for of in KINDS)
    return FinetuneResult(saved, *accuracies)


def _train(
    config: FinetuneConfig,
    path: Path | None,  # to continue from
    start: Path,
    world: World,
    probe: Probe,
    stop: Callable[[], bool],
    quiet: bool,
) -> tuple[Path, dict[str, float]]:  # the checkpoint, and what the last evaluation found
    """All that holds the model, which must be gone when the process leaves the others."""
    if path is not None:  # the loop loads its weights
        description = read_description(path)
        encoder = VideoTokenEncoder(description.config)
    elif str(start) in PRESETS and not start.exists():  # from scratch
        torch.manual_seed(config.seed)  # the same initial parameters on every rank
        encoder = VideoTokenEncoder(preset(str(start)))
        description = ModelDescription("vimpac", encoder.config)
    else:
        encoder, description = load_encoder(start)
    if probe == "attentive" and config.optim.lr is None:
        optim = dataclasses.replace(config.optim, lr=ATTENTIVE_LR)
        config = dataclasses.replace(config, optim=optim)
    config = with_lr(config, encoder.width)
    run = Finetuning(config, encoder, world, attentive=probe == "attentive")
    run.pretrained_on = description.data
    check_tokenizer(path or start, description.data, run.describe().data)
    if probe == "linear":
        return fit_linear_probe(run, quiet)
    result = Loop(run, config, world, path).run(stop, quiet)
    averaged = result.checkpoint / AVERAGED  # what was tested
    tested = averaged if config.ema is not None and averaged.is_dir() else result.checkpoint
    return tested, result.record
