"""Trains a classifier of videos on a pre-trained encoder, or on its frozen features.

    vimpac finetune runs/small/checkpoints/step-00012000 data=ucf labels=ucf.csv out=runs/ucf
    vimpac finetune runs/small/checkpoints/step-00012000 data=ucf labels=ucf.csv --linear-probe

Fine-tuning draws a clip per video and step. A linear probe encodes `test_clips` clips of every
training video once and fits a logistic regression to their [CLS]. Either is tested on `test_clips`
evenly spaced clips of every unflipped 1x crop of a video, whose probabilities are averaged.
`vimpac.load_classifier` reads the result, which can itself be fine-tuned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac.checkpoints import training_state as ckpt
from vimpac.checkpoints.classifier import describe, load_encoder
from vimpac.data.labelled_clips import EvenClips, RandomClips
from vimpac.data.labels import Split, read_labels
from vimpac.data.sampler import ResumableSampler
from vimpac.errors import UsageError, VimpacError
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.model.heads import VideoClassifier
from vimpac.train.batches import make_loader, open_store, read
from vimpac.train.config import FinetuneConfig
from vimpac.train.distributed import join_world
from vimpac.train.log import RunLog
from vimpac.train.optim import lr_at, make_optimizer, update
from vimpac.train.overrides import to_yaml


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended: its checkpoint, and the shares of test clips and videos that are right."""

    checkpoint: Path
    clip_accuracy: float
    video_accuracy: float


def finetune(
    config: FinetuneConfig, checkpoint: str | Path, *, probe: bool = False, quiet: bool = False
) -> Result:
    """Trains a classifier and tests it, in one process.

    Args:
        config: The run.
        checkpoint: Of a pre-training or a classifier, or a model directory of `vimpac convert`.
        probe: Whether to leave the encoder as it is.
        quiet: Print nothing.

    Returns:
        The classifier's checkpoint and its accuracies.

    Raises:
        UsageError: The settings, labels, store and checkpoint do not fit together.
        VimpacError: The loss is not finite, or a file is damaged.
    """
    config.check()
    out = Path(config.out)
    if ckpt.list_checkpoints(out / "checkpoints"):
        raise UsageError(f"{out} has a checkpoint already: give another out=")
    with join_world(config.device) as world:
        if world.size > 1:
            raise UsageError("a classifier is trained in one process: start it without torchrun")
        run = Finetuning(config, load_encoder(Path(checkpoint)), world.device)
        out.mkdir(parents=True, exist_ok=True)
        with RunLog(
            out,
            steps=run.steps,
            done=0,
            active=True,
            tensorboard=config.run.tensorboard and not probe,
            quiet=quiet,
        ) as log:
            if probe:
                run.fit_probe()
            else:
                run.train(log)
            clip, video = run.test()
            log.say(f"test accuracy: {clip:.1%} of clips, {video:.1%} of videos")
        saved = ckpt.save_checkpoint(
            out / "checkpoints",
            0 if probe else run.steps,
            model=run.model.state_dict(),
            state=describe(run.model.encoder, run.classes),
            config=to_yaml(config),
            keep=1,
        )
    return Result(saved, clip, video)


class Finetuning:
    """A classifier and its videos.

    Args:
        config: The run.
        encoder: Where it starts from; its positions are interpolated to the clips' grid.
        device: Where it computes.
    """

    def __init__(
        self, config: FinetuneConfig, encoder: VideoTokenEncoder, device: torch.device
    ) -> None:
        self.config, self.device = config, device
        self.store = open_store(config.data, config.clips.variant)
        self.classes, self.splits = read_labels(config.labels, self.store)
        self.has_padding = int(self.store.frames.min()) < config.clips.span
        meta = self.store.meta
        encoder.positions.resize_((config.clips.frames, meta.height, meta.width), None)
        torch.manual_seed(config.seed)
        self.model = VideoClassifier(encoder, len(self.classes)).to(device)
        epoch_steps = len(self.splits["train"].videos) / config.batch
        self.steps = config.optim.steps or math.ceil(config.optim.epochs * epoch_steps)

    def train(self, log: RunLog) -> None:
        """Trains the encoder and the classifier together."""
        optim, every = self.config.optim, self.config.run.log_every
        self.model.train()
        optimizer = make_optimizer(self.model, optim)
        metrics: list[Tensor] = []  # (2,) per step since the last record
        with closing(self._train_batches()) as batches:
            for step, (clips, classes) in enumerate(islice(batches, self.steps), 1):
                classes = classes.to(self.device, non_blocking=True)
                logits = self._logits(clips)
                loss = F.cross_entropy(logits, classes)
                loss.backward()
                lr = lr_at(step - 1, self.steps, optim)
                update(self.model, optimizer, optim, torch.full((), lr, device=self.device))
                right = (logits.argmax(-1) == classes).float().mean()
                metrics.append(torch.stack((loss.detach(), right)))
                log.step(step)
                if step % every == 0 or step == self.steps:
                    mean, accuracy = torch.stack(metrics).mean(0).tolist()
                    metrics.clear()
                    if not math.isfinite(mean):
                        raise VimpacError(f"the loss is not finite by step {step}: lower optim.lr")
                    log.record({"step": step, "loss": mean, "accuracy": accuracy, "lr": lr})

    @torch.no_grad()
    def fit_probe(self) -> None:
        """Fits the classifier to the frozen encoder's [CLS] of the training videos."""
        classifier, split = self.model.eval().classifier, self.splits["train"]
        features = self._over_views(split, self._cls)
        labels = torch.tensor(split.classes).repeat_interleave(features.shape[1])
        decay = self.config.optim.weight_decay
        weight, bias = fit_linear(features.flatten(0, 1), labels, len(self.classes), decay)
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)

    @torch.no_grad()
    def test(self) -> tuple[float, float]:
        """Accuracy over the clips and over the videos of the test split."""
        self.model.eval()
        split = self.splits["test"]
        probabilities = self._over_views(split, self._logits).softmax(-1)
        labels = torch.tensor(split.classes)
        clips = (probabilities.argmax(-1) == labels[:, None]).float().mean()
        videos = (probabilities.mean(1).argmax(-1) == labels).float().mean()
        return clips.item(), videos.item()

    def _cls(self, clips: Tensor) -> Tensor:
        """(B, T, H, W) -> (B, D) fp32."""
        enabled = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            cls = self.model.encoder.cls(
                clips.to(self.device, non_blocking=True), has_padding=self.has_padding
            )
        return cls.float()

    def _logits(self, clips: Tensor) -> Tensor:
        """(B, T, H, W) -> (B, classes) fp32."""
        return self.model.classifier(self._cls(clips))

    def _train_batches(self) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Random clips (B, T, H, W) and their classes (B,), without end."""
        config, split = self.config, self.splits["train"]
        sampler = ResumableSampler(len(split.videos), global_batch=config.batch, seed=config.seed)
        clips = RandomClips(self.store, config, split)
        return read(make_loader(clips, sampler, config.batch, config.clips, self.device))

    def _over_views(self, split: Split, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`function` of every view of every video in turn, (videos, views, ...) on the CPU."""
        views = EvenClips(self.store, self.config, split)
        per_batch = math.ceil(self.config.batch / views.views)
        loader = make_loader(views, range(len(views)), per_batch, self.config.clips, self.device)
        with closing(read(loader)) as batches:
            results = [function(clips.flatten(0, 1)).cpu() for clips in batches]
        return torch.cat(results).unflatten(0, (-1, views.views))


def fit_linear(
    features: Tensor,  # (M, D)
    labels: Tensor,  # (M,)
    classes: int,
    weight_decay: float,
) -> tuple[Tensor, Tensor]:
    """Logistic regression on standardised features, in fp64.

    Args:
        features: (M, D).
        labels: (M,) integers.
        classes: Their number.
        weight_decay: Half of it times the squared norm of the weight is added to the loss.

    Returns:
        The weight (classes, D) and the bias (classes,) for the features as they are.
    """
    mean, std = features.double().mean(0), features.double().std(0).clamp_min(1e-6)
    x = (features - mean) / std
    with torch.enable_grad():
        weight = x.new_zeros(classes, x.shape[1], requires_grad=True)
        bias = x.new_zeros(classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

        def loss() -> float:
            optimizer.zero_grad()
            value = F.cross_entropy(F.linear(x, weight, bias), labels)
            value = value + weight_decay / 2 * weight.square().sum()
            value.backward()
            return value.item()

        optimizer.step(loss)
    weight = weight.detach() / std
    return weight, bias.detach() - weight @ mean
