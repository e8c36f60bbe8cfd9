"""What an evaluation reads off graded answers: a majority of votes is judged as the grader judges its members."""

from __future__ import annotations

import dataclasses

import numpy as np

from r1jax.evaluation.estimators import summarize
from r1jax.evaluation.evaluator import evaluation_of
from r1jax.rewards.combine import RewardConfig
from r1jax.rewards.grading import open_grading
from r1jax.rollout import GradedRollout, grade
from r1jax.types import Example, Rollout, Score, Status


def completion(answer: str) -> str:
    return f"<think> so </think> <answer> {answer} </answer>"


def graded_answers(answers: list[list[str]], examples: list[Example]) -> GradedRollout:
    texts = tuple(completion(answer) for row in answers for answer in row)
    count = len(texts)
    rollout = Rollout(
        prompt_tokens=np.ones((count, 2), np.int32),
        prompt_lengths=np.full(count, 2, np.int32),
        response_tokens=np.ones((count, 4), np.int32),
        response_lengths=np.full(count, 4, np.int32),
        sampler_logprobs=np.zeros((count, 4), np.float32),
        finished=np.ones(count, bool),
    )
    with open_grading(RewardConfig()) as grading:
        return grade(rollout, texts, examples, grading)


def test_right_answers_in_any_writing_and_order_are_one_vote() -> None:
    pair = Example("p", "?", "3 8", "pair_search", metadata={"any_order": True})
    graded = graded_answers([["8, 3", "3 8", "8 3", "1 2", "1 2"]], [pair])
    evaluation = evaluation_of([graded])
    assert evaluation.correct.tolist() == [[True, True, True, False, False]]
    assert len(set(evaluation.answers[0][:3])) == 1  # three votes for the right pair against two for a wrong one
    assert summarize(evaluation)["cons_at_k"] == 1.0


def test_wrong_answers_of_one_value_are_one_vote() -> None:
    pair = Example("p", "?", "3 8", "pair_search", metadata={"any_order": True})
    evaluation = evaluation_of([graded_answers([["2 1", "1, 2", "3 8"]], [pair])])
    assert summarize(evaluation)["cons_at_k"] == 0.0
    plain = Example("q", "?", "1/2", "sum")
    evaluation = evaluation_of([graded_answers([["0.5", "1/2", "2", "2.0", "2"]], [plain])])
    assert evaluation.correct[0].tolist() == [True, True, False, False, False]
    assert summarize(evaluation)["cons_at_k"] == 0.0


def test_a_solution_with_its_answer_at_the_end_is_a_usable_reference() -> None:
    gsm8k = Example("g", "?", "3 + 4 = 7\n#### 7", "gsm8k")
    assert summarize(evaluation_of([graded_answers([["7", "7", "8"]], [gsm8k])]))["cons_at_k"] == 1.0


def test_a_vote_written_in_ways_that_the_grader_tells_apart_is_judged_by_most_of_them() -> None:
    graded = graded_answers([["50", "50", "50", r"50\%"]], [Example("q", "?", "50", "sum")])
    scores = [
        dataclasses.replace(s, parts={**s.parts, "accuracy": Score(float(i == 3))}) for i, s in enumerate(graded.scores)
    ]
    evaluation = evaluation_of([dataclasses.replace(graded, scores=tuple(scores))])
    assert len(set(evaluation.answers[0])) == 1  # one vote, for the votes' key leaves the percent sign out
    assert summarize(evaluation)["pass_at_1"] == 0.25
    assert summarize(evaluation)["cons_at_k"] == 0.0


def test_an_answer_without_a_grade_does_not_raise_the_figure_of_all() -> None:
    graded = graded_answers([["2", "2", "3", "3"]], [Example("q", "?", "2", "sum")])
    lost = Score(0.0, Status.TIMED_OUT)
    scores = [
        dataclasses.replace(s, parts={**s.parts, "accuracy": lost}) if i > 1 else s for i, s in enumerate(graded.scores)
    ]
    figures = summarize(evaluation_of([dataclasses.replace(graded, scores=tuple(scores))]))
    assert (figures["pass_at_1"], figures["pass_at_1_ungraded_wrong"], figures["ungradable"]) == (1.0, 0.5, 2)


def test_a_problem_without_a_usable_reference_has_no_majority() -> None:
    unusable = Example("u", "?", "a proof", "free")
    usable = Example("q", "?", "2", "sum")
    evaluation = evaluation_of([graded_answers([["2", "2"], ["2", "3"]], [unusable, usable])])
    assert evaluation.right[0] is None
    assert evaluation.right[1] == {"2"}
    assert summarize(evaluation)["cons_at_k"] == 0.5  # the tie of "2" and "3"
