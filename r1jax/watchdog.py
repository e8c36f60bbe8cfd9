"""The end of one of several processes ends the others, who say which it was.

Each process tells the others that it lives over jax's coordination service, and why it ends if it can.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from jax._src import distributed

PEER_LOST = 70  # exit status of a process that ended because another one did (EX_SOFTWARE)
KEYS = "r1jax"
_STATUS = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")


def client() -> Any:
    """The client of jax's coordination service; the public interface has no other way to a barrier on the host."""
    return distributed.global_state.client


def leave(message: str, status: int) -> NoReturn:
    """Ends this process with `status` and tells the others why, so that none of them waits for it."""
    watchdog = Watchdog.of_this_process
    assert watchdog is not None
    watchdog.stop()
    _say(message)
    with contextlib.suppress(Exception):  # whoever cannot be told is gone, or will miss the heartbeats
        client().key_value_set(f"{KEYS}/ended/{watchdog.index}", f"{status} {message}")
        time.sleep(2 * watchdog.interval + 1 if watchdog.index == 0 else 0)  # process 0 keeps what the others read
    os._exit(status)  # jax's own shutdown would wait for processes that are gone


def await_verdict(error: BaseException) -> None:
    """After an operation that all processes take part in has failed: the watchdog ends this process, naming the one
    that is gone. Returns if it was an error of another kind, or all are there."""
    watchdog = Watchdog.of_this_process
    if watchdog is None or not _is_broken_connection(error):
        return
    watchdog.patience = min(watchdog.patience, 4 * watchdog.interval)
    reason = str(error).strip().splitlines()[0][:200]
    _say(f"lost the connection to another process ({reason}); looking which one has ended")
    time.sleep(watchdog.patience + 3 * watchdog.interval)


def _is_broken_connection(error: BaseException | None) -> bool:
    """Whether a status of the runtime, rather than this program, stands at the root of an error."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) or _STATUS.match(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say(message: str) -> None:
    """Every process's errors go to its own stderr, under its number."""
    process = Watchdog.of_this_process
    print(f"process {process.index if process else 0}: {message}", file=sys.stderr, flush=True)


class Watchdog:
    """A thread that tells the others that this process lives, and ends it when another one does not, or has said why.

    It goes on while the main thread compiles, computes, or waits in an operation of all that will never end.
    """

    of_this_process: Watchdog | None = None

    def __init__(self, index: int, count: int, patience: float) -> None:
        """patience: seconds without a sign of life after which a process counts as dead."""
        self.index, self.count, self.patience = index, count, patience
        self.interval = min(2.0, patience / 5)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watches no longer; the signs of life go out on the main thread's behalf no more either."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        heard = {other: ("", time.monotonic()) for other in range(self.count)}  # last sign, and when it was new
        beat = 0
        while not self._stopped.wait(self.interval):
            beat += 1
            try:
                client().key_value_set(f"{KEYS}/alive/{self.index}", str(beat), allow_overwrite=True)
                ended = client().key_value_dir_get(f"{KEYS}/ended/")
                signs = dict(client().key_value_dir_get(f"{KEYS}/alive/"))
            except (ValueError, RuntimeError):  # the service runs in process 0
                self._end("process 0, which coordinates the run, has ended", PEER_LOST)
            for key, text in ended:
                status, _, message = text.partition(" ")
                self._end(f"ends because process {key.rpartition('/')[2]} has ended: {message}", int(status))
            now = time.monotonic()
            for other, (last, since) in heard.items():
                sign = signs.get(f"{KEYS}/alive/{other}", "")
                if sign != last:
                    heard[other] = sign, now
                elif now - since > self.patience:
                    silence = f"has given no sign of life for {now - since:.0f} s"
                    self._end(f"ends because process {other} {silence}", PEER_LOST)

    def _end(self, message: str, status: int) -> NoReturn:
        """Of this process, whatever its main thread does; what was saved is kept."""
        _say(f"{message}. What was saved is kept: run the same command to go on")
        os._exit(status)
