"""Processor time of steps, and how it grows with what they are made for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import rich.table

Step = Callable[[], Any]


def least_seconds(steps: Mapping[int, Step], repeats: int) -> dict[int, float]:
    """The smallest processor time of each in seconds, after one call that compiles.

    The steps change from run to run, so that all meet the same disturbances; other processes on the machine lengthen
    processor time little. Pinned to one core, it is the time of one thread.
    """
    for step in steps.values():
        jax.block_until_ready(step())
    least = dict.fromkeys(steps, float("inf"))
    for _ in range(repeats):
        for size, step in steps.items():
            start = time.process_time()
            jax.block_until_ready(step())
            least[size] = min(least[size], time.process_time() - start)
    return least


def exponent(seconds: Mapping[int, float]) -> float:
    """Slope of log time over log size, by least squares."""
    sizes, times = np.array(list(seconds)), np.array(list(seconds.values()))
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def growth_table(what: str, title: str, seconds: Mapping[int, float]) -> rich.table.Table:
    """Sizes, milliseconds, and times over the smallest size; the fitted exponent in the title."""
    fitted = f", exponent {exponent(seconds):.3f}" if len(seconds) > 1 else ""
    table = rich.table.Table(what, "ms", "over the fewest", title=title + fitted)
    first = seconds[min(seconds)]
    for size, value in seconds.items():
        table.add_row(str(size), f"{1000 * value:.1f}", f"{value / first:.2f}")
    return table
