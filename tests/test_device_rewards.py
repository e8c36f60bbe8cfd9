"""A run that reads its rewards off the tokens gets the grades of one that reads the text."""

from __future__ import annotations

import dataclasses

import pytest

from r1jax.data.tokenizer import ByteTokenizer
from r1jax.rewards.combine import RewardConfig, Scores
from r1jax.rewards.device_rewards import ROWS, DeviceRewards
from r1jax.rewards.grading import open_grading
from r1jax.types import Example, Status
from tools.compare_rewards import leaves_open, make_completions

TOKENIZER = ByteTokenizer()
GIVEN = [
    (c.text, TOKENIZER.encode(c.text), c.example)
    for c in make_completions(3 * ROWS // 2, seed=5)
    if c.text is not None and not leaves_open(c.text)
]
WIDTH = max(len(tokens) for _, tokens, _ in GIVEN)
CONFIG = RewardConfig(comparison="exact", language=0.5)


def scores_of(given: list[tuple[str, list[int], Example]], config: RewardConfig) -> tuple[Scores, ...]:
    device = DeviceRewards(TOKENIZER.token_bytes, TOKENIZER.vocab_size, WIDTH)
    with open_grading(config, device=device) as grading:
        batch = grading.begin()
        for i, one in enumerate(given):
            batch.add(i, *one)
        return batch.scores()


def test_grades_and_reasons_are_those_of_the_text() -> None:
    assert len(GIVEN) > ROWS  # more than one call, the last one not full
    on_text = scores_of(GIVEN, CONFIG)
    on_tokens = scores_of(GIVEN, dataclasses.replace(CONFIG, on_device=True))
    for a, b in zip(on_text, on_tokens, strict=True):
        assert set(a.parts) == set(b.parts)
        assert a.parts["format"] == b.parts["format"]
        assert a.parts["accuracy"].value == b.parts["accuracy"].value
        assert a.parts["language"].value == pytest.approx(b.parts["language"].value, abs=1e-6)
        assert a.total == pytest.approx(b.total, abs=1e-6)
    values = [score.parts["accuracy"].value for score in on_tokens]
    assert 0.2 < sum(values) / len(values) < 0.8


def test_what_no_token_can_decide_the_text_does() -> None:
    text, tokens, example = next(one for one in GIVEN if one[0].count("<answer>") == 1)
    unstatable = dataclasses.replace(example, answer="</think>")
    other = dataclasses.replace(example, language="xx")
    config = dataclasses.replace(CONFIG, on_device=True)
    one, two = scores_of([(text, tokens, unstatable), (text, tokens, other)], config)
    assert one.parts["accuracy"].status is Status.UNGRADABLE
    assert one.total is None
    assert two.parts["language"].status is Status.UNGRADABLE
    assert "xx" in two.parts["language"].reason


def test_the_tables_must_be_there() -> None:
    with (
        pytest.raises(ValueError, match="on_device needs the tables of a tokenizer"),
        open_grading(RewardConfig(on_device=True)),
    ):
        pass
