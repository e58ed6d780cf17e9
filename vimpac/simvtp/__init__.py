"""SimVTP (arXiv 2212.03490): masked video-text pre-training, on the same loop and kernels.

The names below are imported on first use, so that `vimpac --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vimpac.simvtp.config import NetworkConfig, ObjectiveConfig, TextConfig
    from vimpac.simvtp.description import load_simvtp, save_simvtp
    from vimpac.simvtp.dual import DualEncoder
    from vimpac.simvtp.model import SimVTP
    from vimpac.simvtp.outputs import SimVTPOutput
    from vimpac.simvtp.released import export_released, load_released
    from vimpac.simvtp.retrieval import Retriever

_HOME = {
    "DualEncoder": "dual",
    "export_released": "released",
    "load_released": "released",
    "load_simvtp": "description",
    "NetworkConfig": "config",
    "ObjectiveConfig": "config",
    "Retriever": "retrieval",
    "save_simvtp": "description",
    "SimVTP": "model",
    "SimVTPOutput": "outputs",
    "TextConfig": "config",
}

__all__ = [
    "DualEncoder",
    "NetworkConfig",
    "ObjectiveConfig",
    "Retriever",
    "SimVTP",
    "SimVTPOutput",
    "TextConfig",
    "export_released",
    "load_released",
    "load_simvtp",
    "save_simvtp",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vimpac.simvtp' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vimpac.simvtp.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
