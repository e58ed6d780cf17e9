"""Worker processes that may end at any moment without harm to the others.

Each has a pipe of its own. Where processes share one, as in the pools of Python's library, one that
is killed while it sends a result leaves the others waiting for ever.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import popen_spawn_posix
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from vimpac.data.worker_process import Part, Work, serve
from vimpac.errors import VimpacError

MOST_WAITING = 1 << 28  # bytes of results
_MOST_STARTS = 3  # in a row that fail


class WorkerDied(Exception):
    """A worker process ended during a task.

    Args:
        code: Its exit code.
    """

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


class Workers:
    """Worker processes, started as they are needed; one that ends is replaced.

    Tasks are begun in the order in which they were queued, and each as soon as a worker is idle,
    so that results come in any order. They are taken in the order of the tasks.

    Args:
        make_work: Called once in every process.
        most: Processes at a time.
        timeout: Seconds without progress after which one is ended.
        most_waiting: Bytes of results: while more wait to be taken no task is begun, but for the
            one whose result is waited for.
    """

    def __init__(
        self,
        make_work: Callable[[], Work],
        most: int,
        timeout: float,
        *,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._new_worker = functools.partial(_Worker, make_work, timeout)
        self._most = most
        self._most_waiting = most_waiting
        self._workers: list[_Worker] = []
        self._queue: deque[_Task] = deque()
        self._awaited: _Task | None = None
        self._waiting = 0  # bytes of results
        self._failed = 0  # starts in a row

    def start(
        self,
        argument: Any,
        *,
        begin: Callable[[], object] = lambda: None,
        end: Callable[[], object] = lambda: None,
        part: Callable[[Any], int] = lambda content: 0,
        again: bool = False,
    ) -> Callable[[], Any]:
        """Queues a task.

        Args:
            argument: Of the work.
            begin: Called when a worker has got the task.
            end: Called when the task has ended, unless it ended its process or raised.
            part: Called with what the task sends before its end; returns how many bytes of it are
                kept until the result is taken.
            again: Whether it comes before all others, as one does whose worker has ended.

        Returns:
            A function that waits for the result. It raises WorkerDied if the worker ended,
            MemoryError or VimpacError if the work did, and VimpacError if no worker can start.
        """
        task = _Task(argument, begin, end, part)
        if again:
            self._queue.appendleft(task)
        else:
            self._queue.append(task)
        self._receive(0.0)
        return functools.partial(self._result, task)

    def receive(self) -> bool:
        """Waits until a worker has sent something, and takes it; False if none has a task."""
        if all(worker.task is None for worker in self._workers):
            return False
        self._receive()
        return True

    def close(self) -> None:
        """Ends all processes, whatever they do."""
        for worker in self._workers:
            worker.process.kill()
            worker.end()

    def _result(self, task: _Task) -> Any:
        self._awaited = task
        self._assign()
        while not task.done:
            self._receive()
        self._waiting -= task.size
        if isinstance(task.reply, Exception):
            raise task.reply
        return task.reply

    def _assign(self) -> None:
        """Gives tasks to idle workers, and starts a worker if there are too few."""
        for worker in self._workers:
            if self._may_begin() and worker.takes(self._queue[0]):
                self._queue.popleft().begin()
        if self._queue and len(self._workers) < self._most:
            try:
                self._workers.append(self._new_worker())
            except OSError as error:
                raise VimpacError(f"cannot start a worker process: {error.strerror}") from error

    def _may_begin(self) -> bool:
        """Whether there is a task, and room for its result."""
        if not self._queue:
            return False
        return self._waiting < self._most_waiting or self._queue[0] is self._awaited

    def _receive(self, timeout: float | None = None) -> None:
        """Takes what the workers have sent, waiting for something, and gives them new tasks."""
        ready = wait([worker.connection for worker in self._workers], timeout)
        for worker in [worker for worker in self._workers if worker.connection in ready]:
            self._receive_from(worker)
        self._assign()

    def _receive_from(self, worker: _Worker) -> None:
        """Takes what a worker has sent: the result of its task, that it is ready, or its end."""
        try:
            message = worker.connection.recv_bytes()
            reply, size = pickle.loads(message), len(message)
        except (EOFError, OSError):  # also halfway through a result
            self._workers.remove(worker)
            reply, size = WorkerDied(worker.end()), 0
        if worker.task is not None:
            self._take(worker, worker.task, reply, size)
        elif not worker.ready:
            self._started(worker, reply)

    def _take(self, worker: _Worker, task: _Task, reply: Any, size: int) -> None:
        """Takes a part of a task's result, or what remains of it."""
        kept = task.part(reply.content) if isinstance(reply, Part) else size
        task.size += kept
        self._waiting += kept
        if isinstance(reply, Part):
            return
        worker.task = None
        task.done, task.reply = True, reply
        if not isinstance(reply, Exception):
            task.end()

    def _started(self, worker: _Worker, reply: Exception | None) -> None:
        """Takes how the start of a worker went."""
        worker.ready = reply is None
        self._failed = 0 if worker.ready else self._failed + 1
        if isinstance(reply, VimpacError):
            raise reply
        if self._failed == _MOST_STARTS:
            raise VimpacError(
                "worker processes end before they have work (out of memory?): run the same "
                "command again, with fewer --workers"
            )


class _Task:
    """What is to be done, and the result."""

    def __init__(
        self,
        argument: Any,
        begin: Callable[[], object],
        end: Callable[[], object],
        part: Callable[[Any], int],
    ) -> None:
        self.argument, self.begin, self.end, self.part = argument, begin, end, part
        self.done = False
        self.reply: Any = None
        self.size = 0  # bytes that it keeps until its result is taken


class _Worker:
    """A process, its pipe and its task."""

    def __init__(self, make_work: Callable[[], Work], timeout: float) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        arguments = (theirs, make_work, timeout)
        self.process = _Context().Process(target=serve, args=arguments, daemon=True)
        with theirs, _interrupts_blocked(), _one_thread_each():
            self.process.start()
        self.ready = False
        self.task: _Task | None = None

    def takes(self, task: _Task) -> bool:
        """Gives it a task, if it is idle."""
        if not self.ready or self.task is not None:
            return False
        try:
            self.connection.send(task.argument)
        except OSError:  # it has ended, as the next wait will see
            return False
        self.task = task
        return True

    def end(self) -> int | None:
        """Waits for its end; its exit code."""
        self.connection.close()
        self.process.join(1.0)
        self.process.kill()
        self.process.join()
        return self.process.exitcode


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """What is started inside computes products with one thread, unless the user says otherwise.

    There is a process for every CPU already; more threads would only wait for each other.
    """
    names = {"OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"} - {*os.environ}
    os.environ |= dict.fromkeys(names, "1")
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """What is started inside never sees a Ctrl-C; this process sees it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Popen(popen_spawn_posix.Popen):
    """Starts a process that does not run the user's script again, of which workers need nothing."""

    _alone = threading.Lock()

    def __init__(self, process_obj: Any) -> None:
        with self._alone:
            script = sys.modules["__main__"]
            sys.modules["__main__"] = types.ModuleType("__main__")
            try:
                super().__init__(process_obj)
            finally:
                sys.modules["__main__"] = script


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> _Popen:
        return _Popen(process_obj)


class _Context(SpawnContext):
    Process = _Process
