"""The format reward pays 1 for the template's form and names the first fault otherwise."""

from __future__ import annotations

import pytest

from r1jax.data.templates import render_completion
from r1jax.rewards.format import format_reward
from r1jax.types import Example, Status

EXAMPLE = Example(id="1", question="compute 7 + 5 - 3 ?", answer="9", task="chain_sum")


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        (render_completion("seven plus five is twelve", "9"), 1.0, ""),
        (render_completion("wrong", "8"), 1.0, ""),  # form, not truth
        (" <think> a </think> 9", 0.0, "missing <answer>"),
        (" <think> a </think> <answer> 9", 0.0, "missing </answer>"),
        (" <think> a </think> <answer> 9 </answer> bye", 0.0, "text after </answer>"),
        ("", 0.0, "missing <think>"),
    ],
)
def test_format_reward(text: str, value: float, reason: str) -> None:
    score = format_reward(text, EXAMPLE)
    assert (score.value, score.status, score.reason) == (value, Status.GRADED, reason)
