"""What a few seeds say: means with Student's t intervals, and differences between arms that share their seeds.

A run's own error (over problems) says how well that run was measured; only other seeds say how far another run of the
same setting would come out elsewhere. With n seeds the interval is mean ± t(n - 1) s / sqrt(n); at three seeds t is
4.30, so intervals are wide, and honestly so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class OverSeeds:
    """Mean over seeds; error and interval are nan with fewer than two of them, the mean without any."""

    mean: float
    error: float  # standard error: s / sqrt(n), s with n - 1
    low: float
    high: float
    seeds: int


def student_within(t: float, degrees: int) -> float:
    """P(|T| <= t) of Student's distribution with whole degrees of freedom (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    if degrees < 1:
        raise ValueError(f"degrees: {degrees}; at least 1")
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2 == 1
    term, total = (cosine, cosine if degrees > 1 else 0.0) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, degrees, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def student_quantile(level: float, degrees: int) -> float:
    """The t within which a share `level` of Student's distribution lies; 4.303 for .95 and 2 degrees of freedom."""
    if not 0 < level < 1:
        raise ValueError(f"level: {level}; between 0 and 1")
    low, high = 0.0, 1.0
    while student_within(high, degrees) < level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_within(middle, degrees) < level else (low, middle)
    return high


def over_seeds(values: Sequence[float], level: float = LEVEL) -> OverSeeds:
    """Mean of one value per seed, with its standard error and t interval."""
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        return OverSeeds(math.nan, math.nan, math.nan, math.nan, 0)
    mean = float(x.mean())
    if x.size == 1:
        return OverSeeds(mean, math.nan, math.nan, math.nan, 1)
    error = float(x.std(ddof=1) / math.sqrt(x.size))
    half = student_quantile(level, x.size - 1) * error
    return OverSeeds(mean, error, mean - half, mean + half, int(x.size))


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], level: float = LEVEL) -> OverSeeds:
    """a - b over the seeds that both have: what a seed does to both arms alike cancels."""
    return over_seeds([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())], level)
