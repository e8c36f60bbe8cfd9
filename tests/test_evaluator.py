"""What an evaluation reads off graded answers: a majority of votes is judged as the grader judges its members."""

from __future__ import annotations

import dataclasses

import numpy as np

from r1jax.data import world
from r1jax.data.sources import SourceConfig, make_source
from r1jax.evaluation.estimators import summarize
from r1jax.evaluation.evaluator import evaluation_of
from r1jax.rewards.combine import RewardConfig
from r1jax.rewards.grading import open_grading
from r1jax.rollout import GradedRollout, grade
from r1jax.types import Example, Rollout, Score, Status


def completion(answer: str) -> str:
    return f"<think> so </think> <answer> {answer} </answer>"


def graded_answers(answers: list[list[str]], examples: list[Example]) -> GradedRollout:
    return graded_texts([completion(answer) for row in answers for answer in row], examples, RewardConfig())


def graded_texts(texts: list[str], examples: list[Example], rewards: RewardConfig) -> GradedRollout:
    count = len(texts)
    rollout = Rollout(
        prompt_tokens=np.ones((count, 2), np.int32),
        prompt_lengths=np.full(count, 2, np.int32),
        response_tokens=np.ones((count, 4), np.int32),
        response_lengths=np.full(count, 4, np.int32),
        sampler_logprobs=np.zeros((count, 4), np.float32),
        finished=np.ones(count, bool),
    )
    with open_grading(rewards) as grading:
        return grade(rollout, tuple(texts), examples, grading)


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


ENGLISH, CHINESE = Example("e", "?", "9", "sum"), Example("z", "?", "9", "sum", language="zh")


def shares(example: Example, *texts: str, pattern: str = "summary") -> tuple[list[float], list[float]]:
    """Single language and readable summary of completions of one question."""
    graded = graded_texts(list(texts), [example], RewardConfig(pattern=pattern))
    evaluation = evaluation_of([graded], RewardConfig(pattern=pattern))
    return evaluation.single_language[0].tolist(), evaluation.readable_summary[0].tolist()


def test_a_thought_is_in_one_language_if_nearly_all_of_its_words_are() -> None:
    words = "so the sum of both is found "  # seven words
    single, _ = shares(
        ENGLISH,
        f"<think> {words * 3} 得 </think> so <answer> 9 </answer>",  # 21 of 22 words: 0.954
        f"<think> {words * 2} 得 </think> so <answer> 9 </answer>",  # 14 of 15: 0.933
        f"<think> {words} </think> 所以 <answer> 9 </answer>",  # the summary is not the thought
        "<think> 4 + 5 = 9 </think> so <answer> 9 </answer>",  # no word is in no language
        f"<think> {words} <answer> 9 </answer>",  # not well-formed: all of it is looked at
    )
    assert single == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert shares(CHINESE, f"<think> {words} </think> x", "<think> 先算和再相加 </think> x")[0] == [0.0, 1.0]


def test_a_summary_is_readable_if_it_has_words_of_the_language() -> None:
    _, readable = shares(
        ENGLISH,
        "<think> so </think> the result is <answer> 9 </answer>",
        "<think> so </think> <answer> 9 </answer>",  # R1-Zero's form: an answer and no word
        "<think> so </think> result <answer> 9 </answer>",  # one word
        "<think> so </think> 结果是 <answer> 9 </answer>",
        "<think> so </think> the 结 result is <answer> 9 </answer>",  # 3 of 4 words
        "<think> the result is 9",  # no closed thought
        "<think> so </think> take <answer> the cat </answer>",  # an answer in words is part of what is read
    )
    assert readable == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert shares(CHINESE, "<think> so </think> 结果是 <answer> 9 </answer>")[1] == [1.0]


def test_a_refusal_in_any_words_is_safe_and_other_requests_have_no_such_figure() -> None:
    harm = world.make_examples(1, "rl", 0, {"kinds": {"harm": 1.0}})[0]
    texts = [f"<think> so </think> {reply}" for reply in ("sory , no .", f"use {harm.metadata['unsafe'][0]} .")]
    asked = [harm, ENGLISH, dataclasses.replace(ENGLISH, id="f", metadata={"unsafe": True})]  # somebody's own column
    rewards = RewardConfig(pattern="summary", comparison="instruction")
    safe = evaluation_of([graded_texts(texts * 3, asked, rewards)], rewards).safe
    np.testing.assert_array_equal(safe, [[1.0, 0.0], [np.nan, np.nan], [np.nan, np.nan]])


def test_votes_and_thoughts_of_released_models_are_read_in_their_form() -> None:
    text = "4 and 5 make this </think> The result is \\boxed{9}."  # the prompt has opened the thought
    graded = graded_texts([text, text.replace("9", "8"), text], [ENGLISH], RewardConfig(pattern="boxed"))
    evaluation = evaluation_of([graded], RewardConfig(pattern="boxed"))
    assert evaluation.answers == [["9", "8", "9"]]
    assert (evaluation.correct.tolist(), evaluation.right) == ([[True, False, True]], [{"9"}])
    assert (evaluation.format.tolist(), evaluation.readable_summary.tolist()) == ([[1.0] * 3], [[1.0] * 3])


def test_a_domain_with_a_form_of_its_own_is_read_in_it() -> None:
    rewards = RewardConfig(pattern="boxed", domains={"": {}, "words": {"comparison": "exact", "pattern": "reply"}})
    examples = [ENGLISH, Example("w", "?", "red rice", "words", domain="words")]
    texts = ["so </think> it is \\boxed{9}", "so </think> red rice"]
    evaluation = evaluation_of([graded_texts(texts, examples, rewards)], rewards)
    assert (evaluation.answers, evaluation.correct.tolist()) == ([["9"], ["text:red rice"]], [[True], [True]])


def test_general_requests_are_not_compared_and_difficulties_are_named_as_their_source_does() -> None:
    mixed = RewardConfig(domains={"": {}, "helpful": {"comparison": "none", "accuracy": 0.0}})
    examples = [
        Example("a", "?", "9", "math_500", metadata={"level": "Level 5"}),
        Example("b", "?", "9", "math_500", metadata={"level": 5}),
        Example("c", "?", "", "poems", domain="helpful"),
        Example("d", "?", "9", "sum", metadata={"steps": 3}),
        Example("e", "?", "9", "programs", metadata={"difficulty": "hard"}),
    ]
    evaluation = evaluation_of([graded_texts([completion("9")] * 5, examples, mixed)])
    assert evaluation.compared.tolist() == [True, True, False, True, True]
    assert evaluation.groups == ["math_500, level 5", "math_500, level 5", "poems", "sum, 3 steps", "programs, hard"]
    figures = summarize(evaluation)
    assert (figures["pass_at_1"], figures["ungradable"]) == (1.0, 0)
    assert figures["by_domain"]["helpful"]["cons_at_k"] is None
    assert figures["by_group"]["math_500, level 5"]["problems"] == 2
    assert evaluation_of([graded_texts([completion("9")], [examples[2]], mixed)]).groups == [None]


def test_replies_that_a_rule_judges_are_no_votes() -> None:
    """Two good replies in different words are both right, and no majority."""
    (request,) = make_source(SourceConfig(kind="world", size=1, params={"domains": {"helpful": 1.0}}))
    rewards = RewardConfig(pattern="summary", domains={"": {}, "helpful": {"comparison": "instruction"}})
    texts = [f"<think> so </think> {request.answer}", "<think> so </think> I sing a song."]
    evaluation = evaluation_of([graded_texts(texts, [request], rewards)], rewards)
    figures = summarize(evaluation)["by_domain"]["helpful"]
    assert (figures["pass_at_1"], figures["cons_at_k"]) == (0.5, None)
    assert 0.5 <= figures["rewards"]["accuracy"]["mean"] < 1  # the rule's mean value is helpfulness
