"""Shaping rewards, worked by hand."""

from __future__ import annotations

import pytest

from r1jax.rewards.shaping import overlong_penalty, repetition_share, tag_count_reward


@pytest.mark.parametrize(
    ("length", "penalty"), [(0, 0.0), (16384, 0.0), (16385, -1 / 4096), (18432, -0.5), (20480, -1.0), (20481, -1.0)]
)
def test_dapo_numbers(length: int, penalty: float) -> None:
    assert overlong_penalty(length, 20480, 4096) == penalty


def test_without_a_cache_only_what_is_over_the_limit_is_punished() -> None:
    assert [overlong_penalty(n, 10, 0) for n in (10, 11)] == [0.0, -1.0]


@pytest.mark.parametrize(("limit", "cache"), [(0, 0), (10, 11), (10, -1)])
def test_limits_that_do_not_fit_are_refused(limit: int, cache: int) -> None:
    with pytest.raises(ValueError, match=rf"limit {limit} must be positive, and cache {cache}"):
        overlong_penalty(5, limit, cache)


def test_repetition_by_hand() -> None:
    # 2-grams of a b a b a: ab ba ab ba -> 2 distinct of 4.
    assert repetition_share("ababa", 2) == 0.5
    assert repetition_share([1, 2, 3, 4], 2) == 0.0
    assert repetition_share([7] * 101, 2) == 0.99
    assert repetition_share([1, 1], 3) == 0.0
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        repetition_share([1], 0)


def test_tags_count_a_quarter_each_and_only_once() -> None:
    assert tag_count_reward("<think> a </think> <answer> 3 </answer>") == 1.0
    assert tag_count_reward("<think> a </think> 3") == 0.5
    assert tag_count_reward("<think> <think> a </think>") == 0.25
    assert tag_count_reward("") == 0.0
