"""Parts of a store made by the workers of a Dask cluster, or of some on this machine.

A task is a part. It makes the part's store in its own processes, so a video that crashes ends none
of Dask's; where a whole worker is lost, Dask gives its part to another one, which continues where
the journal ends. All of them see the same files at the same paths.
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import distributed
from distributed.worker import get_worker

from vimpac.data.merge import merge_stores
from vimpac.data.parts import Plan
from vimpac.data.store import TokenStore
from vimpac.data.tokenize import TokenizeSettings, tokenize_videos
from vimpac.data.writer import is_complete
from vimpac.errors import UsageError, VimpacError
from vimpac.lock import InUse

PARTS_PER_WORKER = 4  # by default: the last parts then hardly leave workers idle
_TOPIC = "vimpac-parts"
_MOST_LOSSES = 3  # of the workers of a part, without a video done in between
_ASKED_EVERY = 5.0  # seconds: whether there are workers
_LONGEST_WAIT = 600.0  # seconds for the lock of a part whose worker is lost


@contextmanager
def connect(address: str, *, gpu: bool) -> Iterator[distributed.Client]:
    """Connects to a cluster, or starts workers on this machine until the end of the block.

    Args:
        address: Of a scheduler, such as tcp://head:8786, or local:N for N workers here.
        gpu: Whether the workers here are to offer a GPU.

    Yields:
        The client.

    Raises:
        UsageError: The address is none.
        VimpacError: No scheduler answers there.
    """
    for logger in ("distributed", "distributed.client"):  # what is wrong is raised, too
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    kind, _, count = address.partition(":")
    if kind != "local":
        try:
            client = distributed.Client(address, timeout=5)
        except (OSError, ValueError, TypeError) as error:
            raise VimpacError(
                f"--dask {address}: no scheduler answers there ({type(error).__name__}): start "
                "one with `dask scheduler`, or give local:N"
            ) from error
        with client:
            yield client
        return
    if not count.isdigit() or not int(count):
        raise UsageError(f"--dask {address}: give the number of workers, such as local:4")
    with ExitStack() as stack:
        with _interrupts_held_back():
            cluster = distributed.LocalCluster(
                n_workers=int(count),
                threads_per_worker=1,
                memory_limit=None,
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": ":0"},  # its server warns of a used port
                silence_logs=logging.CRITICAL,
                resources={"GPU": 1} if gpu else None,
            )
            stack.enter_context(cluster)
            client = stack.enter_context(distributed.Client(cluster))
        yield client


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Raises Ctrl-C and SIGTERM at the end of the block: Dask cannot clear a half-made cluster.

    What is started in it, and by that, is not reached by the terminal's Ctrl-C: this process ends
    the workers.
    """
    came = list[int]()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in signals}
    resource_tracker.ensure_running()  # which would let the signal through again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    except Exception as error:  # as of workers that were terminated, too
        if not came:
            raise VimpacError(f"no Dask workers can be started here: {error}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def default_parts(client: distributed.Client, videos: int) -> int:
    """How many parts so many videos are divided into.

    Raises:
        UsageError: No worker is there, by whose number this could be said.
    """
    workers = len(client.nthreads())
    if not workers:
        raise UsageError(
            "the Dask cluster has no workers yet: start them first, or give --parts N, "
            f"{PARTS_PER_WORKER} for each worker that will come"
        )
    return min(videos, PARTS_PER_WORKER * workers)


def make_on_cluster(
    client: distributed.Client,
    plan: Plan,
    out: Path,
    settings: TokenizeSettings,
    *,
    workers: int,
    timeout: float,
    report: Callable[[int, str], None],
) -> TokenStore:
    """Makes the parts of a store that are not finished, joins all, and removes them.

    Args:
        client: Of the cluster.
        plan: The parts.
        out: Where the store is to be.
        settings: How.
        workers: Processes of each part.
        timeout: Seconds without progress after which one is ended.
        report: As of `vimpac.data.tokenize.tokenize_videos`.

    Returns:
        The store.

    Raises:
        VimpacError: A part cannot be made; the others that were done stay.
    """
    done = [plan.sizes[part] * is_complete(plan.store(part)) for part in range(len(plan))]
    report(sum(done), "")

    def hear(event: tuple[float, dict[str, Any]]) -> None:
        part = event[1]["part"]
        done[part] = max(done[part], event[1]["done"])
        report(sum(done), event[1]["line"])

    def submit(part: int) -> distributed.Future:
        resources = {} if settings.device == "cpu" else {"GPU": 1}
        return client.submit(
            _make_part, plan, part, settings, workers, timeout, pure=False, resources=resources
        )

    todo = [part for part in range(len(plan)) if not is_complete(plan.store(part))]
    if todo and settings.device != "cpu" and not _have_gpu(client):
        report(sum(done), "no worker offers a GPU yet: start them with `--resources GPU=1`")
    client.subscribe_topic(_TOPIC, hear)
    futures = {submit(part): part for part in todo}
    losses = dict.fromkeys(todo, (0, 0))  # in a row, and videos done at the last one
    try:
        finished = distributed.as_completed(futures)
        for future in _completed(client, finished, lambda line: report(sum(done), line)):
            part = futures[future]
            error = future.exception()
            if isinstance(error, distributed.KilledWorker):
                count, before = losses[part]
                losses[part] = (count + 1 if done[part] == before else 1, done[part])
                if losses[part][0] < _MOST_LOSSES:
                    again = submit(part)
                    futures[again] = part
                    finished.add(again)
                    continue
                raise VimpacError(
                    f"{plan.store(part)}: its workers end, one after the other (out of memory, or "
                    "preempted?): run the same command again"
                )
            if error is not None:
                raise _readable(error, plan.store(part))
            if future.status != "finished":  # cancelled, as no scheduler has it any more
                raise VimpacError(
                    "the scheduler of the Dask cluster is gone: run the same command again when "
                    "there is one; parts that are done stay done"
                )
            hear((0.0, {"part": part, "done": plan.sizes[part], "line": ""}))
    finally:
        client.cancel(list(futures), force=True)
        client.unsubscribe_topic(_TOPIC)
    stores = [plan.store(part) for part in range(len(plan))]
    for store in stores:
        if not is_complete(store):
            raise VimpacError(
                f"{store} is made but not to be seen here: {plan.folder} must be the same folder "
                "for this machine and all workers, on a file system that they share"
            )
    merged = merge_stores(stores, out)
    shutil.rmtree(plan.folder)
    return merged


def _completed(
    client: distributed.Client,
    finished: distributed.as_completed,
    say: Callable[[str], None],
) -> Iterator[distributed.Future]:
    """The futures as they are completed; says so while there is no worker to complete one."""
    had_workers, asked = True, -_ASKED_EVERY
    while not finished.is_empty():
        if finished.has_ready():
            yield next(finished)
            continue
        if time.monotonic() > asked + _ASKED_EVERY and client.status == "running":
            asked, has_workers = time.monotonic(), bool(client.nthreads())
            if had_workers and not has_workers:
                say(
                    "the Dask cluster has no workers: waiting for some (if they end, see their log)"
                )
            had_workers = has_workers
        time.sleep(0.1)


def _have_gpu(client: distributed.Client) -> bool:
    workers = client.scheduler_info()["workers"].values()
    return any("GPU" in worker["resources"] for worker in workers)


def _readable(error: BaseException, part: Path) -> BaseException:
    """An error of a task as one line; ours are that already."""
    if isinstance(error, VimpacError):
        return error
    reason = " ".join(str(error).split())
    return VimpacError(f"{part}: a worker failed ({type(error).__name__}: {reason:.200})")


class _Cancelled(Exception):
    """The command that wanted the part has ended."""


def _make_part(
    plan: Plan, part: int, settings: TokenizeSettings, workers: int, timeout: float
) -> None:
    """Makes a part, in a worker of the cluster."""
    multiprocessing.current_process().daemon = False  # Dask's is, but needs processes of its own
    worker = get_worker()
    key = worker.get_current_task()

    def report(done: int, line: str) -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise _Cancelled
        worker.log_event(_TOPIC, {"part": part, "done": done, "line": line})

    give_up = time.monotonic() + _LONGEST_WAIT
    while True:
        try:
            tokenize_videos(
                plan.videos(part),
                plan.store(part),
                settings,
                workers=min(workers, plan.sizes[part]),
                timeout=timeout,
                may_be_empty=True,
                report=report,
            )
            return
        except InUse:  # by the worker from which the part was taken
            if time.monotonic() > give_up:
                raise
            time.sleep(1.0)
