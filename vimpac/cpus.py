"""How many processes can work at the same time."""

from __future__ import annotations

import os


def usable_cpus() -> int:
    """The CPUs that this process may use: a scheduler may give a job a few of a node's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS
