"""What every system's description of a model can do; `model.json` holds it as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
# kind in model.json -> the module whose `from_json` reads it; the others are VIMPAC's
READERS = dict.fromkeys(("simvtp", "simvtp_dual"), "vimpac.simvtp.description")
VIMPAC_READER = "vimpac.checkpoints.description"


class Description(Protocol):
    """What a model is, and what it was trained on."""

    @property
    def kind(self) -> str:
        """Names the system, or a model within it."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What it says besides the network, see `vimpac.checkpoints.hub`."""

    def to_json(self) -> str:
        """The text of `model.json`."""

    def with_new_names(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a file under the names of today."""

    def check_data(self, path: Path, was: Description) -> Iterator[str]:
        """Compares the data of a run with those of the checkpoint that it goes on with.

        Args:
            path: The checkpoint.
            was: What it says.

        Yields:
            What differs and may, for the log.

        Raises:
            UsageError: Something differs that must not.
        """
