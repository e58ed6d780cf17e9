"""A linear probe: a logistic regression on the frozen encoder's [CLS] of the training videos."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vimpac.checkpoints.training_state import Checkpoint, list_checkpoints, save_checkpoint
from vimpac.config import FinetuneConfig
from vimpac.errors import UsageError
from vimpac.eval.metrics import check_finite
from vimpac.eval.over_views import over_views
from vimpac.eval.probes import choose_decay, fit_linear
from vimpac.settings import to_yaml
from vimpac.train.distributed import World
from vimpac.train.finetune_system import Finetuning
from vimpac.train.log import RunLog
from vimpac.train.run_folder import hold_folder


def check_linear_probe(config: FinetuneConfig, world: World, resume: str) -> None:
    """Raises UsageError if a linear probe cannot be fitted, or not saved."""
    if world.size > 1 or resume != "none":
        raise UsageError("--probe linear is fitted at once, in one process, without --resume")
    if list_checkpoints(Path(config.out) / "checkpoints"):
        raise UsageError(f"{config.out} has a checkpoint already: give another out=")


def fit_linear_probe(run: Finetuning, quiet: bool) -> tuple[Path, dict[str, float]]:
    """Fits a linear probe, tests it and saves it.

    Args:
        run: The videos, and the encoder.
        quiet: Print nothing.

    Returns:
        The classifier's checkpoint, and what the test found.
    """
    out, config = Path(run.config.out), to_yaml(run.config)
    with hold_folder(out, run.world):
        with RunLog(out, steps=0, done=0, active=True, tensorboard=False, quiet=quiet) as log:
            log.say(f"linear probe of {run.headline()}")
            for warning in run.warnings():
                log.say(f"warning: {warning}")
            decay = _fit(run)
            log.say(
                f"weight decay {decay:g}" + (", by a held-out tenth" if run.config.sweep else "")
            )
            found = run.evaluate(final=True)
            log.record({"step": 0, **found})
        checkpoint = Checkpoint(run.describe(), run.model.state_dict(), {"step": 0})
        return save_checkpoint(out / "checkpoints", 0, checkpoint, config=config, keep=1), found


@torch.no_grad()
def _fit(run: Finetuning) -> float:
    """Fits the classifier to the clips by which the training videos would be judged.

    Returns:
        The weight decay.
    """
    model, split, config = run.model.eval(), run.splits["train"], run.config

    def features(clips: Tensor) -> Tensor:
        """(B, T, H, W) -> (B, D) fp32."""
        clips = clips.to(run.world.device, non_blocking=True)
        with run.world.autocast(config.precision):
            return model.encoder.cls(clips, has_padding=run.has_padding).float()

    views, rows, labels = run.views(split), list[Tensor](), list[int]()
    for place, values in over_views(
        features, views, run.world, batch=config.batch.micro, **run.reading
    ):
        rows.append(values[views.chosen(place, config.test_clips)])
        labels.append(split.classes[place])
    x, y, classes = torch.stack(rows), torch.tensor(labels), len(run.classes)
    check_finite(x, "features of the training videos")
    decay = choose_decay(x, y, classes) if config.sweep else config.optim.weight_decay
    views_each = x.shape[1]
    weight, bias = fit_linear(x.flatten(0, 1), y.repeat_interleave(views_each), classes, decay)
    model.classifier.weight.copy_(weight)
    model.classifier.bias.copy_(bias)
    return decay
