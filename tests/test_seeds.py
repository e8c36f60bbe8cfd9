"""Intervals over seeds against tables and hand-worked cases."""

from __future__ import annotations

import math

import pytest

from r1jax.evaluation.seeds import over_seeds, paired_difference, student_quantile, student_within

# Two-sided quantiles as printed in tables of Student's distribution.
TABLE = {
    (0.95, 1): 12.706, (0.95, 2): 4.303, (0.95, 3): 3.182, (0.95, 4): 2.776, (0.95, 9): 2.262, (0.95, 30): 2.042,
    (0.90, 7): 1.895, (0.99, 2): 9.925, (0.99, 120): 2.617,
}  # fmt: skip


@pytest.mark.parametrize(("case", "quantile"), TABLE.items(), ids=str)
def test_student_quantiles_are_those_of_the_tables(case: tuple[float, int], quantile: float) -> None:
    assert student_quantile(*case) == pytest.approx(quantile, abs=5e-4)


def test_the_shares_within_have_their_closed_forms() -> None:
    for t in (0.3, 1.0, 5.0):
        assert student_within(t, 1) == pytest.approx(2 / math.pi * math.atan(t))  # Cauchy
        assert student_within(t, 2) == pytest.approx(t / math.sqrt(2 + t * t))
        angle = math.atan(t / math.sqrt(3))
        assert student_within(t, 3) == pytest.approx(2 / math.pi * (angle + math.sin(angle) * math.cos(angle)))
    assert student_within(1.959964, 10_000) == pytest.approx(0.95, abs=1e-4), "nearly normal"
    with pytest.raises(ValueError, match="degrees: 0; at least 1"):
        student_within(1.0, 0)
    with pytest.raises(ValueError, match=r"level: 1\.0; between 0 and 1"):
        student_quantile(1.0, 2)


def test_mean_error_and_interval_by_hand() -> None:
    found = over_seeds([0.4, 0.5, 0.9])  # mean .6; deviations -.2, -.1, .3: squares .14, variance .07
    assert found.seeds == 3
    assert found.mean == pytest.approx(0.6)
    assert found.error == pytest.approx(math.sqrt(0.07 / 3))  # .15275
    assert (found.low, found.high) == pytest.approx((0.6 - 4.30265 * 0.152753, 0.6 + 4.30265 * 0.152753), abs=1e-5)


def test_too_few_seeds_have_no_interval() -> None:
    one = over_seeds([0.3])
    assert (one.mean, one.seeds) == (0.3, 1)
    assert all(map(math.isnan, (one.error, one.low, one.high)))
    assert math.isnan(over_seeds([]).mean)


def test_a_difference_is_taken_within_each_seed() -> None:
    """Seeds differ by .3 and .5, arms by .1 and .2: the difference does not see the seeds."""
    found = paired_difference({0: 0.5, 1: 0.9, 3: 0.1}, {0: 0.4, 1: 0.7, 2: 0.0})
    assert found.seeds == 2
    assert found.mean == pytest.approx(0.15)
    assert found.error == pytest.approx(0.05)  # s = .1 / sqrt(2), over sqrt(2)
    assert found.high - found.mean == pytest.approx(12.7062 * 0.05, abs=1e-5)
