"""VIMPAC: model, data, trainer and command line on top of `vimpac_kernels`.

The names below are imported on first use, so that `vimpac --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vimpac.encoder import VideoTokenEncoder
    from vimpac.heads import ContrastiveHead, MaskedTokenHead, VideoClassifier
    from vimpac.model import PretrainingOutput, Vimpac, view_major
    from vimpac.objective import info_nce
    from vimpac.presets import MASK_TOKEN, PAD_TOKEN, PRESETS, ModelConfig, preset
    from vimpac.released import export_released, load_released
    from vimpac.saved import load_model, save_model
    from vimpac.train.classifier import load_classifier

_HOME = {
    "ContrastiveHead": "heads",
    "MASK_TOKEN": "presets",
    "MaskedTokenHead": "heads",
    "ModelConfig": "presets",
    "PAD_TOKEN": "presets",
    "PRESETS": "presets",
    "PretrainingOutput": "model",
    "VideoClassifier": "heads",
    "VideoTokenEncoder": "encoder",
    "Vimpac": "model",
    "export_released": "released",
    "info_nce": "objective",
    "load_classifier": "train.classifier",
    "load_model": "saved",
    "load_released": "released",
    "preset": "presets",
    "save_model": "saved",
    "view_major": "model",
}

__all__ = [
    "MASK_TOKEN",
    "PAD_TOKEN",
    "PRESETS",
    "ContrastiveHead",
    "MaskedTokenHead",
    "ModelConfig",
    "PretrainingOutput",
    "VideoClassifier",
    "VideoTokenEncoder",
    "Vimpac",
    "export_released",
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
