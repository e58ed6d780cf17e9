"""The calls that a visit to a GPU checks and times: every op at the published shapes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from cases import SCALES, TINY, Case

from vimpac_kernels import OPS

__all__ = ["SCALES", "TINY", "Case", "cases"]


def cases(scale: str, device: str) -> Iterator[Case]:
    """The cases of all ops at one of `SCALES`, interleaved: a run cut short has some of each."""
    ranked = []
    for op in OPS:
        own = list(importlib.import_module(f"bench_{op}").cases(scale, device))
        ranked += [(i / len(own), case) for i, case in enumerate(own)]
    yield from (case for _, case in sorted(ranked, key=lambda pair: pair[0]))
