"""The end of one of several processes ends the others, who say which it was.

Each process tells the others over jax's coordination service that it lives, where it stands, and why it ends if it can.
One that lives and does not come to where the others wait for it is named every STUCK_SECONDS; that ends nobody, as its
work may only be long.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
from jax._src import distributed

PEER_LOST = 70  # exit status of a process that ended because another one did (EX_SOFTWARE)
STUCK_SECONDS = 600.0  # of waiting for a process, until it is named, and until it is named again
KEYS = "r1jax"
_STATUS = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")


def client() -> Any:
    """The client of jax's coordination service; the public interface has no other way to a barrier on the host."""
    return distributed.global_state.client


@contextlib.contextmanager
def waiting_at(place: str) -> Iterator[None]:
    """Around a wait for all processes, which come to the same places in the same order."""
    watchdog = Watchdog.of_this_process
    if watchdog is not None:
        watchdog.stands = Standing(watchdog.stands.number + 1, place, time.monotonic())
    try:
        yield
    finally:
        if watchdog is not None:
            watchdog.stands = dataclasses.replace(watchdog.stands, since=None)


@dataclasses.dataclass(frozen=True)
class Standing:
    """The last place that a process has come to, where all wait for each other."""

    number: int = 0  # of such places so far
    place: str = "the start"
    since: float | None = None  # time.monotonic() when it began to wait there; None: it has gone on

    def sign(self) -> str:
        """What the other processes read."""
        return f"{self.number} {self.place}"

    @classmethod
    def read(cls, sign: str) -> Standing:
        """Of another process."""
        number, _, place = sign.partition(" ")
        return cls(int(number), place)


def describe_late(stands: Standing, others: Mapping[int, Standing], seconds: float) -> str:
    """Which processes have not come to where this one has waited for so long; empty if all have."""
    late = {index: other for index, other in sorted(others.items()) if other.number < stands.number}
    if not late:
        return ""
    first, behind = next(iter(late.items()))
    who = f"process {first} has" if len(late) == 1 else f"{len(late)} processes, the first of them {first}, have"
    time_ = f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
    return f'{who} not reached "{stands.place}" for {time_}; process {first} was last at "{behind.place}"'


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
        self.stands = Standing()
        self._told = (0, 0)  # number of a place, and how often the late ones were named there
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
                sign = f"{beat} {self.stands.sign()}"
                client().key_value_set(f"{KEYS}/alive/{self.index}", sign, allow_overwrite=True)
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

            self._name_late({index: sign.partition(" ")[2] for index, (sign, _) in heard.items() if sign})

    def _name_late(self, signs: Mapping[int, str]) -> None:
        """signs: of each process that has given one."""
        stands = self.stands  # the main thread goes on meanwhile
        if stands.since is None:
            return
        seconds = time.monotonic() - stands.since
        times = self._told[1] if self._told[0] == stands.number else 0
        if seconds < (times + 1) * STUCK_SECONDS:
            return
        others = {index: Standing.read(sign) for index, sign in signs.items() if index != self.index}
        said = describe_late(stands, others, seconds)
        waiting = [index for index, other in others.items() if other.number >= stands.number]
        if said and self.index < min(waiting, default=self.count):  # one of those that wait speaks for all
            _say(said)
        self._told = (stands.number, times + 1)

    def _end(self, message: str, status: int) -> NoReturn:
        """Of this process, whatever its main thread does; what was saved is kept."""
        _say(f"{message}. What was saved is kept: run the same command to go on")
        os._exit(status)
