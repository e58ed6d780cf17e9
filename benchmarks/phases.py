"""The time of a training step by phase, in milliseconds, forward and backward together.

A phase is a profiler range around a function of the model (`PLACES`) or a `with phase(...)` of the
step itself; the innermost one counts. Backward has no such ranges: an autograd node belongs to the
phase of the operator that made it, which both name by the same sequence number. Times are the
host's on a CPU and the kernels' on a GPU, except for `data wait`, in which the host waits.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import released_step
import torch
from torch.autograd.profiler_util import FunctionEvent

from vimpac.model import encoder, heads, layer, pretraining
from vimpac.train import pretrain_step, update
from vimpac_kernels import AxialAttention

RANGE = "phase: "
PHASES = (
    *("data wait", "masks", "embedding", "projections", "attention core", "MLP", "add + LN"),
    *("token head", "contrastive head", "optimiser", "other"),
)
Place = tuple[Any, str, str]  # owner, function, phase
PLACES: tuple[Place, ...] = (
    (encoder.VideoTokenEncoder, "_embed", "embedding"),
    (layer.Attention, "forward", "projections"),
    (inspect.getmodule(AxialAttention), "axial_attention", "attention core"),
    (layer.MLP, "forward", "MLP"),
    (layer, "dropout_add_layer_norm", "add + LN"),
    (layer, "take_rows", "projections"),
    (pretrain_step, "choose_masked_rows", "token head"),
    (heads.MaskedTokenHead, "predict", "token head"),
    (heads.ContrastiveHead, "forward", "contrastive head"),
    (pretraining.Vimpac, "contrastive_loss", "contrastive head"),
    (pretrain_step.PretrainStep, "_mask", "masks"),
    (update, "update", "optimiser"),
    (released_step.ReleasedModel, "embed", "embedding"),
    (released_step.Block, "forward", "projections"),
    (released_step.LineAttention, "forward", "attention core"),
    (released_step.LineAttention, "project", "projections"),
    (released_step.FeedForward, "forward", "MLP"),
    (released_step, "add_norm", "add + LN"),
    (released_step.ReleasedModel, "token_loss", "token head"),
    (released_step.ReleasedModel, "contrastive_loss", "contrastive head"),
)


def phase(name: str) -> torch.profiler.record_function:
    """A range of the step that is not a function in `PLACES`."""
    return torch.profiler.record_function(RANGE + name)


def breakdown(
    step: Callable[[], None],
    device: str,
    places: Iterable[Place] = PLACES,
    names: Iterable[str] = PHASES,
) -> dict[str, float]:
    """Profiles one step.

    Args:
        step: Runs it; warmed up.
        device: "cpu" or "cuda".
        places: The functions that are phases.
        names: The phases, of which `other` is one.

    Returns:
        Milliseconds of every name in `names`; on a CPU they add up to the step.
    """
    with _named_places(places), torch.profiler.profile() as profiler:
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        wall_ms = (time.perf_counter() - start) * 1e3
    totals = _totals(profiler.events(), device)
    if device == "cpu":  # what runs between the profiler's events has no phase either
        totals["other"] += wall_ms - sum(totals.values())
    return {name: totals[name] for name in names}


@contextmanager
def _named_places(places: Iterable[Place]) -> Iterator[None]:
    def named(function: Callable, name: str) -> Callable:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with phase(name):
                return function(*args, **kwargs)

        return run

    with ExitStack() as stack:
        for owner, attribute, name in places:
            wrapped = named(getattr(owner, attribute), name)
            stack.enter_context(mock.patch.object(owner, attribute, wrapped))
        yield


def _totals(events: Iterable[FunctionEvent], device: str) -> dict[str, float]:
    """Milliseconds by phase of the host's events, each with the kernels that it launched."""
    host = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    host.sort(key=lambda event: event.time_range.start)
    # Operators that record no node share the number of the next one that does: the last one counts.
    made_by = {
        (event.thread, event.sequence_nr): _phase_of(event)
        for event in host
        if event.sequence_nr >= 0 and not event.fwd_thread
    }
    totals: dict[str, float] = defaultdict(float)
    for event in host:
        name = _phase_of(event) or made_by.get(_node_of(event)) or "other"
        on_host = device == "cpu" or name == "data wait"
        microseconds = event.self_cpu_time_total if on_host else event.self_device_time_total
        totals[name] += microseconds / 1e3
    return totals


def _ancestors(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """The event and those around it, from the inside."""
    around: FunctionEvent | None = event
    while around is not None:
        yield around
        around = around.cpu_parent


def _phase_of(event: FunctionEvent) -> str | None:
    names = (e.name for e in _ancestors(event))
    return next((name[len(RANGE) :] for name in names if name.startswith(RANGE)), None)


def _node_of(event: FunctionEvent) -> tuple[int, int] | None:
    """(thread, number) of the forward operator whose node this event belongs to."""
    nodes = ((e.fwd_thread, e.sequence_nr) for e in _ancestors(event))
    return next((node for node in nodes if node[0] and node[1] >= 0), None)
