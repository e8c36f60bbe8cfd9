"""A run that is asked to stop (SIGTERM, or Ctrl-C) saves at the next safe point and ends.

With several processes a signal to any of them, such as the notice of a preemption, stops all at the same point.
"""

from __future__ import annotations

import signal
import types
from typing import Any

from r1jax.processes import agree

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """The run was asked to stop and everything is saved; the same command goes on."""


class Interruption:
    """While open, a first SIGTERM or SIGINT is only noted for `requested`; a second one acts as usual."""

    def __init__(self) -> None:
        self._signal: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether to stop: asked by all processes at the same points, and answered the same in all of them."""
        return agree(self._signal is not None)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        for known, handler in self._previous.items():
            signal.signal(known, handler)

    def pass_on(self) -> None:
        """At the end of a stage: a signal that came too late to stop it stops what would come after it."""
        if self.requested():
            raise Interrupted(f"stopped by {self._who()} as the stage ended; run the same command to go on")

    def stop(self, where: str) -> None:
        """Raises Interrupted, saying where the run stands."""
        raise Interrupted(f"stopped by {self._who()} at {where}; everything is saved, run the same command to go on")

    def _who(self) -> str:
        return self._signal or "a signal to another process"
