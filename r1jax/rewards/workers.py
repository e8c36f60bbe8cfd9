"""A pool of worker processes for work that may hang, crash or eat memory: grading what a model wrote.

Each worker is a fresh interpreter: no fork, since the caller has threads and perhaps an accelerator, and not
multiprocessing's spawn, which imports the caller's main module and JAX with it. One pipe each way; one item at a time.
An item that takes longer than the limit has its worker killed (SIGKILL, so no signal handler and no thread is needed)
and replaced; a worker that dies is replaced as well. What became of an item is said in its `Outcome`, never guessed.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import importlib
import json
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, BinaryIO

START_SECONDS = 120.0  # for a worker to say that it is ready, on a busy machine
STARTS = 3  # attempts to start a worker for an item
MEMORY_BYTES = 2 << 30  # address space of a worker
_HEADER = 8  # bytes of a message's length

_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); import r1jax.rewards.workers as w; w.serve(*sys.argv[2:])"
)


class Ending(enum.Enum):
    """What became of an item."""

    DONE = "done"
    FAILED = "failed"  # the function raised
    CRASHED = "crashed"  # the worker died
    TIMED_OUT = "timed_out"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`value` is what the function returned, if `ending` is DONE; `reason` says what happened otherwise."""

    ending: Ending
    value: Any = None
    reason: str = ""


class WorkerError(RuntimeError):
    """A worker could not be started, or the pool is closed."""


class _Closed(Exception):
    """The other end of a pipe is gone."""


class _Late(Exception):
    """Nothing came in time."""


def _send(file: BinaryIO, message: Any) -> None:
    data = json.dumps(message).encode()
    data = len(data).to_bytes(_HEADER, "big") + data
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        raise _Closed from error


def _read(file: BinaryIO, size: int, until: float | None) -> bytes:
    data = b""
    while len(data) < size:
        if until is not None:
            left = until - time.monotonic()
            if left <= 0 or not select.select([file], [], [], left)[0]:
                raise _Late
        piece = os.read(file.fileno(), size - len(data))
        if not piece:
            raise _Closed
        data += piece
    return data


def _receive(file: BinaryIO, until: float | None = None) -> Any:
    size = int.from_bytes(_read(file, _HEADER, until), "big")
    return json.loads(_read(file, size, until))


# In the worker --------------------------------------------------------------------------------------------------------


def serve(module: str, name: str, seconds: str, memory: str) -> None:
    """The loop of a worker: items from standard input, answers to standard output. Ends when the pool goes away."""
    for ignored in (signal.SIGINT, signal.SIGTERM):  # meant for the run, which ends the pool itself
        signal.signal(ignored, signal.SIG_IGN)
    reader, writer = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # whatever prints must not disturb the messages
    try:
        home = importlib.import_module(module)
        function = getattr(home, name)
        getattr(home, "prepare_worker", lambda: None)()
    except (ImportError, AttributeError, SyntaxError) as error:
        _send(writer, {"ready": False, "reason": f"{type(error).__name__}: {error}"})
        return
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a grader writes no files
    _send(writer, {"ready": True})
    while True:
        try:
            arguments = _receive(reader)
        except _Closed:
            return
        # Should the pool be killed while this hangs, the processor time ends it.
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + float(seconds)) + 3, most))
        _send(writer, _answer(function, arguments))


def _answer(function: Callable[..., Any], arguments: list[Any]) -> dict[str, Any]:
    try:
        return {"value": function(*arguments)}
    except Exception as error:  # noqa: BLE001  (told to the pool, which counts it)
        return {"failed": f"{type(error).__name__}: {error}"[:300]}


# In the caller --------------------------------------------------------------------------------------------------------


class _Worker:
    """One worker process and its pipes."""

    def __init__(self, arguments: list[str]) -> None:
        environment = os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
        )
        self.ready = False

    def starts(self) -> bool:
        """Waits until the worker is ready; False if it died before. WorkerError if it says why it cannot work."""
        if not self.ready:
            try:
                said = _receive(self.output, time.monotonic() + START_SECONDS)
            except (_Closed, _Late):
                return False
            if not said["ready"]:
                raise WorkerError(f"a grading process did not start: {said['reason']}")
            self.ready = True
        return self.process.poll() is None

    @property
    def output(self) -> BinaryIO:
        assert self.process.stdout is not None
        return self.process.stdout  # type: ignore[return-value]

    def ask(self, arguments: list[Any], seconds: float) -> Any:
        assert self.process.stdin is not None
        _send(self.process.stdin, arguments)  # type: ignore[arg-type]
        return _receive(self.output, time.monotonic() + seconds)

    def end(self) -> int:
        """Kills the process if it still lives and returns its exit status."""
        self.process.kill()
        status = self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.output.close()
        return status


class WorkerPool:
    """`size` processes that call `function` of a module on JSON arguments, each call for at most `timeout_seconds`.

    Use as a context manager, or call `close`. `submit` may be called from any thread. The time limit is wall time and
    does not include the start of a worker. Which worker takes an item makes no difference to the outcome.
    """

    def __init__(
        self, function: Callable[..., Any], size: int, timeout_seconds: float, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        """`function` must be found by name in its module, which must not import more than the worker should.

        If that module has a function `prepare_worker`, a worker calls it once before its first item.
        """
        if size < 1 or not timeout_seconds > 0:
            raise ValueError(f"a pool of {size} workers with {timeout_seconds} s for each item")
        if "." in function.__qualname__:
            raise ValueError(f"{function.__qualname__} is not a function of a module")
        self.timeout_seconds = timeout_seconds
        self.counts: collections.Counter[str] = collections.Counter()  # endings, and "replaced" workers
        self._arguments = [function.__module__, function.__name__, str(timeout_seconds), str(memory_bytes)]
        self._lock = threading.Lock()
        self._closed = False
        self._workers = [_Worker(self._arguments) for _ in range(size)]
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()  # places in _workers
        for place in range(size):
            self._idle.put(place)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="grading")

    def submit(self, *arguments: Any) -> Future[Outcome]:
        """Starts a call as soon as a worker is free."""
        if self._closed:
            raise WorkerError("the pool is closed")
        return self._threads.submit(self._run, list(arguments))

    def map(self, items: Iterable[tuple[Any, ...]]) -> list[Outcome]:
        """The outcomes of calls with each of `items`, in order."""
        return [future.result() for future in [self.submit(*item) for item in items]]

    def process_ids(self) -> list[int]:
        """The processes at this moment, for whoever watches them."""
        with self._lock:
            return [worker.process.pid for worker in self._workers]

    def _run(self, arguments: list[Any]) -> Outcome:
        place = self._idle.get()
        try:
            outcome = self._run_at(place, arguments)
        finally:
            self._idle.put(place)
        with self._lock:
            self.counts[outcome.ending.value] += 1
        return outcome

    def _run_at(self, place: int, arguments: list[Any]) -> Outcome:
        for _ in range(STARTS):
            if self._workers[place].starts():
                break
            self._replace(place)  # it died between two items or while starting: no item was lost
        else:
            raise WorkerError(f"a grading process died {STARTS} times while starting")
        try:
            said = self._workers[place].ask(arguments, self.timeout_seconds)
        except _Late:
            self._replace(place)
            return Outcome(Ending.TIMED_OUT, reason=f"more than {self.timeout_seconds:g} s")
        except _Closed:
            status = self._replace(place)
            return Outcome(Ending.CRASHED, reason=f"the grading process died with exit status {status}")
        if "failed" in said:
            return Outcome(Ending.FAILED, reason=said["failed"])
        return Outcome(Ending.DONE, said["value"])

    def _replace(self, place: int) -> int:
        """Kills the worker at a place and starts another there; the exit status of the old one."""
        status = self._workers[place].end()
        new = _Worker(self._arguments)
        with self._lock:
            self._workers[place] = new
            self.counts["replaced"] += 1
        return status

    def close(self) -> None:
        """Drops what has not begun, waits for what has, and ends the workers."""
        if self._closed:
            return
        self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.end()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
