"""What runs found for the rows of the paper's tables, and what can be counted without a run."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vimpac.config import FinetuneConfig, PretrainConfig
from vimpac.data.annotations.datasets import parse_source
from vimpac.errors import UsageError
from vimpac.model.config import PRESETS
from vimpac.paper_rows import NUMBERS, Row, find_row
from vimpac.settings import load_config, to_yaml
from vimpac.train.log import LOG, read_log

# Settings that change nothing of what a row claims, or that differ from machine to machine.
_OWN = {
    *"row data out labels seed device precision compile parallel graph cache cache_gb".split(),
    *"activation_checkpointing batch.micro".split(),
    *"clips.workers clips.prefetch clips.window clips.skip_damaged".split(),
}
_TOKENIZER, _FPS, _PATCH = "dalle", 2.0, 8  # of the paper's tokens; pixels of a token's side
_CLIPS = 2048  # that are masked to count a share, in parts
_PART = 256


@dataclasses.dataclass(frozen=True)
class Found:
    """What one run found.

    Attributes:
        path: Its directory.
        row: Its row.
        is_pretraining: Else a fine-tuning.
        numbers: As `Row.paper`; the accuracy of labels that are no data set of the paper stands
            under the name of their file; a file called ucf101.csv is taken for UCF101.
        remarks: What is not as the row says.
    """

    path: Path
    row: Row
    is_pretraining: bool
    numbers: dict[str, float]
    remarks: list[str]

    def counts_for(self, row: Row) -> bool:
        """Whether it is what a row asks for, which may be that of another table."""
        if self.is_pretraining:
            return self.row.pretraining == row.pretraining
        return self.row.finetuning == row.finetuning


def read_runs(paths: Iterable[Path]) -> tuple[list[Found], list[Path]]:
    """Reads the runs that belong to a row.

    Args:
        paths: Directories of runs, or of the splits of one.

    Returns:
        What they found, and the directories that are no run of a row.

    Raises:
        UsageError: A run names a row that does not exist, or its files are damaged.
    """
    found, others = dict[Path, Found](), []
    for path in paths:
        runs = [path] if (path / "config.yaml").is_file() else sorted(path.glob("split-*"))
        here = {run.resolve(): result for run in runs if (result := _read_run(run)) is not None}
        for run, result in here.items():
            found.setdefault(run, result)  # a run that is given twice is one run
        if not here:
            others.append(path)
    return [*found.values()], others


def _read_run(path: Path) -> Found | None:
    """What a run found; None if it belongs to no row."""
    import yaml

    file = path / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        records = read_log(path / LOG)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is no run: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict) or not config.get("row"):
        return None
    settings = flatten(config)
    read = _of_finetuning if "labels" in settings else _of_pretraining
    try:
        row = find_row(str(config["row"]))
        numbers, remarks = read(row, settings, records)
        pixels = row.pixels if read is _of_pretraining else row.finetune_pixels or row.pixels
        remarks += _other_tokens(path, pixels, settings.get("clips.fps") or _FPS)
        for name, number in numbers.items():
            if not isinstance(number, int | float):
                raise TypeError(f"{name} is no number")
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path} is no run of this version of vimpac: {error!r}") from error
    return Found(path, row, "labels" not in settings, numbers, remarks)


def _of_pretraining(
    row: Row, settings: dict[str, Any], records: list[dict[str, float]]
) -> tuple[dict[str, float], list[str]]:
    expected = load_config(PretrainConfig, row.config, row.pretrain_words())
    remarks = _differences(to_yaml(expected), settings)
    trained = [record for record in records if "mask_loss" in record]
    if not trained:
        return {}, [*remarks, "no step is in its log"]
    last, epochs = trained[-1], settings.get("run.until") or settings["optim.epochs"]
    if settings.get("optim.steps") is None and last["epoch"] < 0.99 * epochs:
        remarks.append(f"at epoch {last['epoch']:.3g} of {epochs:g}")
    numbers = {"speed": statistics.median(record["videos_per_s"] for record in trained)}
    if settings["loss.mask"]:
        numbers["mask_accuracy"] = 100 * last["mask_accuracy"]
    if settings["loss.alpha"]:
        numbers["cl_loss"] = last["cl_loss"]
    return numbers, remarks


def _of_finetuning(
    row: Row, settings: dict[str, Any], records: list[dict[str, float]]
) -> tuple[dict[str, float], list[str]]:
    labels = str(settings["labels"])
    source = parse_source(labels)
    dataset = Path(labels).stem if source is None else source.dataset
    if dataset in NUMBERS:
        dataset = f"labels {dataset}"  # which is no number of a pre-training
    config = row.finetune_config(dataset if dataset in row.datasets else "ucf101")
    expected = load_config(FinetuneConfig, config, row.finetune_words())
    remarks = _differences(to_yaml(expected), settings)
    tests = [record["test_video_accuracy"] for record in records if "test_video_accuracy" in record]
    if not tests:
        return {}, [*remarks, "it is not tested yet"]
    return {dataset: 100 * tests[-1]}, remarks


def _differences(expected: str, settings: dict[str, Any]) -> list[str]:
    """The settings of a run that are not those of its row, without those in `_OWN`."""
    import yaml

    wanted = flatten(yaml.safe_load(expected))
    if settings.get("model.name") in PRESETS:  # which stands for the sizes
        sizes = {f"model.{key}" for values in PRESETS.values() for key in values}
        wanted = {key: value for key, value in wanted.items() if key not in sizes}
    return [
        f"{key}={settings[key]}"
        for key, value in wanted.items()
        if key in settings and settings[key] != value and key not in _OWN
        if not key.startswith("run.") or key == "run.until"
        if (key, value) != ("optim.lr", None)  # which stands for the paper's
    ]


def _other_tokens(path: Path, pixels: int, fps: float) -> list[str]:
    """What the tokens of a run are that those of its row are not, as its checkpoint says."""
    files = sorted((path / "checkpoints").glob("step-*/model.json"))
    if not files:
        return []
    data = json.loads(files[-1].read_text(encoding="utf-8"))["data"]
    remarks = []
    if data["tokenizer"] != _TOKENIZER:
        remarks.append(f"tokens of {data['tokenizer']}")
    if {data["height"], data["width"]} != {pixels // _PATCH}:
        remarks.append(f"{_PATCH * data['height']} x {_PATCH * data['width']} pixels")
    if not math.isclose(data["fps"] / data["frame_stride"], fps, rel_tol=1e-6):
        remarks.append(f"{data['fps'] / data['frame_stride']:g} frames per second")
    return remarks


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as it stands in YAML, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def ours(row: Row, number: str, runs: Iterable[Found]) -> list[float]:
    """What the runs found for a number of a row; those of another row may be the same runs."""
    return [run.numbers[number] for run in runs if number in run.numbers if run.counts_for(row)]


def counted(row: Row, number: str) -> float | None:
    """A number of a row that needs no run, in the paper's unit; None for the others."""
    if number not in ("masked", "parameters") or row.pretrain is None:
        return None
    import torch  # seconds

    config = load_config(PretrainConfig, row.config, row.pretrain_words())
    grid = (config.clips.frames, row.pixels // 8, row.pixels // 8)
    if number == "parameters":
        from vimpac.model.encoder import VideoTokenEncoder

        with torch.device("meta"):
            encoder = VideoTokenEncoder(dataclasses.replace(config.model, grid=grid))
        return sum(p.numel() for p in encoder.parameters()) / 1e6
    from vimpac.tokens import MASK_TOKEN
    from vimpac_kernels import mask_tokens

    tokens, hidden = torch.zeros((_PART, *grid), dtype=torch.int32), 0
    for first in range(0, _CLIPS, _PART):
        masked = mask_tokens(
            tokens,
            mask_token=MASK_TOKEN,
            num_blocks=config.mask.blocks,
            seed=config.seed,
            clip_offset=first,
        )
        hidden += int(masked.count)
    return 100 * hidden / (_CLIPS // _PART * tokens.numel())
