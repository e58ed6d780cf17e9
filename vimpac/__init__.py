"""VIMPAC: model, data, trainer and command line on top of `vimpac_kernels`.

The names below are imported on first use, so that `vimpac --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vimpac.checkpoints.model_dir import load_classifier, load_model, save_model
    from vimpac.checkpoints.released import export_released, load_released
    from vimpac.eval.evaluate import evaluate
    from vimpac.eval.extract import extract
    from vimpac.eval.predict import Predictor
    from vimpac.model.config import PRESETS, LossConfig, ModelConfig, preset
    from vimpac.model.contrastive import info_nce
    from vimpac.model.encoder import VideoTokenEncoder
    from vimpac.model.heads import ContrastiveHead, MaskedTokenHead, VideoClassifier
    from vimpac.model.pretraining import PretrainingOutput, Vimpac, view_major
    from vimpac.tokens import MASK_TOKEN, PAD_TOKEN

_HOME = {
    "ContrastiveHead": "model.heads",
    "evaluate": "eval.evaluate",
    "export_released": "checkpoints.released",
    "extract": "eval.extract",
    "info_nce": "model.contrastive",
    "load_classifier": "checkpoints.model_dir",
    "load_model": "checkpoints.model_dir",
    "load_released": "checkpoints.released",
    "LossConfig": "model.config",
    "MASK_TOKEN": "tokens",
    "MaskedTokenHead": "model.heads",
    "ModelConfig": "model.config",
    "PAD_TOKEN": "tokens",
    "Predictor": "eval.predict",
    "preset": "model.config",
    "PRESETS": "model.config",
    "PretrainingOutput": "model.pretraining",
    "save_model": "checkpoints.model_dir",
    "VideoClassifier": "model.heads",
    "VideoTokenEncoder": "model.encoder",
    "view_major": "model.pretraining",
    "Vimpac": "model.pretraining",
}

__all__ = [
    "MASK_TOKEN",
    "PAD_TOKEN",
    "PRESETS",
    "ContrastiveHead",
    "LossConfig",
    "MaskedTokenHead",
    "ModelConfig",
    "Predictor",
    "PretrainingOutput",
    "VideoClassifier",
    "VideoTokenEncoder",
    "Vimpac",
    "evaluate",
    "export_released",
    "extract",
    "info_nce",
    "load_classifier",
    "load_model",
    "load_released",
    "preset",
    "save_model",
    "view_major",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vimpac' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vimpac.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
