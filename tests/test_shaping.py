"""Shaping rewards, worked by hand."""

from __future__ import annotations

import pytest

from r1jax.rewards.shaping import repetition_share, tag_count_reward


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
