"""What a scalar reward model sees of a response, and what becomes of its values."""

from __future__ import annotations

import numpy as np
import pytest

from r1jax.rewards.judges.reward_models import ScalarGrader, helpfulness_input, safety_input
from r1jax.types import Example, Score, Status

EXAMPLE = Example("q", "Say hello.", "", "t")


class Length:
    """The reward is the number of characters; what was asked is kept."""

    def __init__(self, values=None):
        self.values, self.asked = values, []

    def score(self, prompts, responses):
        self.asked.append((list(prompts), list(responses)))
        return np.array([len(text) for text in responses] if self.values is None else self.values, np.float32)


@pytest.mark.parametrize(
    ("completion", "summary"),
    [
        ("<think>\nhm\n</think>\n\nHello. \n", "Hello."),
        ("<think>hm</think> <answer> Hello. </answer>", "Hello."),
        ("<think>hm</think> You fool. <answer>Hello.</answer> Go away.", "You fool. Hello. Go away."),
        ("hm</think>Hello.", "Hello."),  # the prompt had opened the thought
        ("<think>a</think>b</think>Hello.", "Hello."),
        ("<think>hm", None),
        ("hm", None),  # perhaps all thinking
        ("<answer>Hello.</answer>", None),
        ("<think>hm</think> \n", None),
        ("<think>hm</think> Hello. <think>again", None),
        ("<think>hm</think><answer>a</answer><answer>b</answer>", "<answer>a</answer><answer>b</answer>"),
    ],
)
def test_helpfulness_sees_the_final_summary_only(completion, summary):
    assert helpfulness_input(completion) == summary
    assert safety_input(completion) == completion


def test_a_batch_is_asked_once_and_each_gets_its_own():
    model = Length()
    grader = ScalarGrader(model, helpfulness_input)
    futures = [grader.submit(f"<think>long thought</think>{'x' * n}", EXAMPLE) for n in (3, 1, 2)]
    assert not any(future.done() for future in futures)
    grader.flush()
    assert [future.result() for future in futures] == [Score(3.0), Score(1.0), Score(2.0)]
    grader.flush()
    assert model.asked == [(["Say hello."] * 3, ["xxx", "x", "xx"])]


def test_a_response_without_a_summary_is_graded_as_an_empty_one():
    model = Length([-4.0])
    assert ScalarGrader(model, helpfulness_input)("<think>for ever", EXAMPLE) == Score(
        -4.0, reason="graded as an empty response"
    )
    assert model.asked == [(["Say hello."], [""])]
    assert ScalarGrader(Length(), safety_input)("<think>for ever", EXAMPLE) == Score(15.0)


def test_values_that_are_no_numbers_are_no_grades():
    grader = ScalarGrader(Length([np.nan, 1.0, np.inf]), safety_input)
    futures = [grader.submit("x", EXAMPLE) for _ in range(3)]
    grader.flush()
    scores = [future.result() for future in futures]
    assert [score.status for score in scores] == [Status.UNGRADABLE, Status.GRADED, Status.UNGRADABLE]
    assert [scores[0].reason, scores[2].reason] == ["the reward model returned nan", "the reward model returned inf"]


def test_a_model_that_fails_fails_the_grader_and_what_waits_for_it():
    grader = ScalarGrader(Length([1.0]), safety_input)
    futures = [grader.submit("x", EXAMPLE) for _ in range(2)]
    with pytest.raises(ValueError, match=r"returned shape \(1,\) for 2 responses"):
        grader.flush()
    for future in futures:
        with pytest.raises(ValueError, match="returned shape"):
            future.result(timeout=0)
    waiting = grader.submit("x", EXAMPLE)
    grader.close()
    assert waiting.cancelled()
