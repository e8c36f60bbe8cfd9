"""The total of the rewards, tasks with their own verifier, and grades that are missing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest

from r1jax.data.templates import render_completion
from r1jax.rewards.combine import MEASURED, RewardConfig, Scores, VerifyFunction, summarize, totals_and_mask
from r1jax.rewards.grading import Models, check_grading, open_grading
from r1jax.types import Example, Score, Status

EXAMPLE = Example(id="1", question="compute 7 + 5 - 3 ?", answer="9", task="chain_sum")
GYM = dataclasses.replace(EXAMPLE, task="reasoning_gym/chain_sum")
RIGHT = render_completion("seven plus five is 十二", "9")
WRONG = render_completion("seven plus five is 十二", "8")


def at_once(verify: Callable[[Example, str], Score]) -> VerifyFunction:
    """A verifier that has its score when it is started."""

    def start(example: Example, answer: str) -> Callable[[], Score]:
        score = verify(example, answer)
        return lambda: score

    return start


def score_completion(
    completion: str, example: Example, config: RewardConfig, verify: Callable[[Example, str], Score] | None = None
) -> Scores:
    with open_grading(config, None if verify is None else at_once(verify)) as grading:
        batch = grading.begin()
        batch.add(0, completion, [], example)
        (scores,) = batch.scores()
        return scores


def verify_number(example: Example, answer: str) -> Score:
    """Like many of reasoning-gym's verifiers: part of the credit if the right answer is in there somewhere."""
    if answer == example.answer:
        return Score(1.0)
    return Score(len(example.answer) / len(answer) if example.answer in answer else 0.01)


@pytest.mark.parametrize(
    ("config", "completion", "total"),
    [
        (RewardConfig(), RIGHT, 2.0),  # accuracy and format with the same weight, as in the paper
        (RewardConfig(), WRONG, 1.0),
        (RewardConfig(), "<answer> 9 </answer>", 1.0),
        (RewardConfig(), "9", 0.0),
        (RewardConfig(), "", 0.0),
        (RewardConfig(format=0.5), RIGHT, 1.5),
        (RewardConfig(accuracy=0.0), WRONG, 1.0),
        (RewardConfig(language=1.0), RIGHT, 2.0 + 4 / 6),
        (RewardConfig(language=0.6), WRONG, 1.0 + 0.6 * 4 / 6),
    ],
)
def test_total_is_the_weighted_sum(config: RewardConfig, completion: str, total: float) -> None:
    scores = score_completion(completion, EXAMPLE, config)
    assert scores.total == pytest.approx(total)
    assert scores.graded
    assert set(scores.parts) == {*MEASURED, "accuracy"}


def test_rewards_of_weight_0_are_measured() -> None:
    parts = score_completion(RIGHT, EXAMPLE, RewardConfig()).parts
    assert parts["language"].value == pytest.approx(4 / 6)


def test_exact_comparison_grades_words_that_math_cannot() -> None:
    example = dataclasses.replace(EXAMPLE, answer="knight , knave")
    completion = render_completion("if the first lies", "knight , knave")
    assert score_completion(completion, example, RewardConfig(comparison="exact")).total == 2.0
    assert score_completion(completion, example, RewardConfig(comparison="math")).total is None


def test_an_ungradable_answer_has_no_total_instead_of_a_zero() -> None:
    example = dataclasses.replace(EXAMPLE, answer="?")
    scores = score_completion(RIGHT, example, RewardConfig())
    assert scores.total is None
    assert not scores.graded
    assert scores.parts["accuracy"].status is Status.UNGRADABLE
    assert scores.parts["format"] == Score(1.0)


def test_what_has_no_weight_cannot_make_a_completion_ungradable() -> None:
    assert score_completion(RIGHT, dataclasses.replace(EXAMPLE, answer="?"), RewardConfig(accuracy=0.0)).total == 1.0
    unknown = dataclasses.replace(EXAMPLE, language="xx")
    assert score_completion(RIGHT, unknown, RewardConfig()).total == 2.0
    assert score_completion(RIGHT, unknown, RewardConfig(language=1.0)).total is None


@pytest.mark.parametrize("task", ["reasoning_gym", "reasoning_gym/chain_sum"])
def test_a_task_with_its_own_verifier_is_graded_by_it(task: str) -> None:
    example = dataclasses.replace(EXAMPLE, task=task, answer="not a number")
    assert score_completion(RIGHT, example, RewardConfig(), lambda _, answer: Score(float(answer == "9"))).total == 2.0
    assert score_completion(WRONG, example, RewardConfig(), lambda _, answer: Score(float(answer == "9"))).total == 1.0


def test_other_tasks_do_not_use_the_verifier() -> None:
    assert score_completion(RIGHT, EXAMPLE, RewardConfig(), lambda *_: Score(0.0)).total == 2.0


def test_listing_answers_earns_no_partial_credit_unless_asked_for() -> None:
    listing = render_completion("any of these", "7 8 9")
    assert score_completion(listing, GYM, RewardConfig(), verify_number).total == 1.0
    assert score_completion(listing, GYM, RewardConfig(partial_credit=True), verify_number).total == pytest.approx(1.2)
    assert score_completion(WRONG, GYM, RewardConfig(), verify_number).parts["accuracy"].value == 0.0
    assert score_completion(RIGHT, GYM, RewardConfig(), verify_number).parts["accuracy"].value == 1.0


def test_the_verifier_sees_the_single_final_answer_or_nothing() -> None:
    seen: list[str] = []

    def verify(example: Example, answer: str) -> Score:
        seen.append(answer)
        return Score(1.0)

    for text in ("", "9", "<answer> 9", "<answer></answer>", "<answer> 8 </answer> <answer> 9 </answer>"):
        assert score_completion(text, GYM, RewardConfig(), verify).total == 0.0
    assert not seen
    assert score_completion(RIGHT, GYM, RewardConfig(), verify).total == 2.0
    assert seen == ["9"]


@pytest.mark.parametrize("score", [Score(0.0, Status.TIMED_OUT), Score(1.0, Status.UNGRADABLE), Score(math.nan)])
def test_a_verifier_without_a_grade_gives_no_total(score: Score) -> None:
    scores = score_completion(RIGHT, GYM, RewardConfig(), lambda *_: score)
    assert scores.total is None


def test_a_missing_verifier_is_an_error_and_a_failing_one_is_heard() -> None:
    with pytest.raises(
        ValueError, match="task 'reasoning_gym/chain_sum' is graded by its own verifier, but none was given"
    ):
        score_completion(RIGHT, GYM, RewardConfig())

    def broken(example: Example, answer: str) -> Score:
        raise ZeroDivisionError("in the verifier")

    with pytest.raises(ZeroDivisionError, match="in the verifier"):
        score_completion(RIGHT, GYM, RewardConfig(), broken)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"comparison": "fuzzy"},
            "comparison must be one of .*'expressions', 'instruction', 'judge', 'math', 'none'.*",
        ),
        ({"accuracy": math.inf}, "the weight of accuracy must be a finite number, got inf"),
        ({"accuracy": 0.0, "format": 0.0}, "every reward has weight 0"),
        ({"lint": 0.5}, "lint is of programs: it needs the comparison 'code', not 'math'"),
        ({"comparison": "none"}, "accuracy needs a comparison"),
        ({"comparison": "judge"}, "comparison 'judge' and the field judge need each other"),
        ({"repetition_n": 0}, "repetition_n: 0; at least 1"),
        ({"domains": {"code": {"comparison": "cod"}}}, r"domains\.code: comparison must be one of .* got 'cod'"),
        ({"domains": {"code": {"pattern": "box"}}}, r"domains\.code: pattern: 'box' is not one of .*'reply'"),
        ({"on_device": True, "domains": {"code": {"pattern": "reply"}}}, "on_device: reads .* not of 'reply'"),
        ({"domains": {"code": {"accuracy": "1"}}}, r"domains\.code: the weight of accuracy must be .* got '1'"),
        ({"domains": {"code": {"weight": 1.0}}}, r"domains\.code: unknown fields \['weight'\]; allowed: \['accuracy'"),
    ],
)
def test_bad_configurations_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardConfig(**fields)  # type: ignore[arg-type]


def test_ungraded_completions_are_masked_and_counted() -> None:
    ungradable = dataclasses.replace(EXAMPLE, answer="?")
    config = RewardConfig()
    batch = [
        score_completion(RIGHT, EXAMPLE, config),
        score_completion(WRONG, EXAMPLE, config),
        score_completion(RIGHT, ungradable, config),
        score_completion(RIGHT, GYM, config, lambda *_: Score(0.0, Status.TIMED_OUT)),
        score_completion("9", EXAMPLE, config),
    ]
    totals, mask = totals_and_mask(batch)
    np.testing.assert_array_equal(mask, [True, True, False, False, True])
    np.testing.assert_array_equal(totals, np.array([2, 1, np.nan, np.nan, 0], np.float32))
    metrics = summarize(batch)
    assert metrics["reward"] == 1.0  # of 2, 1 and 0
    assert metrics["accuracy"] == pytest.approx(1 / 3)  # of 1, 0 and 0
    assert metrics["format"] == pytest.approx(4 / 5)
    assert metrics["ungradable/accuracy"] == 1
    assert metrics["timed_out/accuracy"] == 1
    assert metrics["ungradable/format"] == 0
    assert metrics["ungradable"] == 2


def test_a_batch_without_a_grade_has_no_mean() -> None:
    metrics = summarize([Scores(None, dict.fromkeys(("accuracy", *MEASURED), Score(0.0, Status.UNGRADABLE)))])
    assert "reward" not in metrics
    assert metrics["ungradable/accuracy"] == 1


SCENARIOS = RewardConfig(
    language=1.0,
    domains={
        "math": {},
        "helpful": {"comparison": "none", "accuracy": 0.0, "helpfulness": 1.0},
        "harmless": {"comparison": "none", "accuracy": 0.0, "safety": 1.0},
    },
)


class Constant:
    """A reward model that gives every response the same, once it is asked for all of them."""

    def __init__(self, value: float) -> None:
        self.value, self.waiting, self.flushes = value, [], 0  # type: ignore[var-annotated]

    def submit(self, completion: str, example: Example) -> Future[Score]:
        self.waiting.append(Future())
        return self.waiting[-1]

    def flush(self) -> None:
        self.flushes += 1
        for future in self.waiting:
            future.set_result(Score(self.value))
        self.waiting = []


def test_every_domain_gets_its_own_mix() -> None:
    """R1 (Nature version) eq. 8 to 10: rules for reasoning, one reward model and the format for general prompts, the
    language for both."""
    helpful, harmless = (dataclasses.replace(EXAMPLE, domain=name, answer="") for name in ("helpful", "harmless"))
    models = Models(scalar={"helpfulness": Constant(0.25), "safety": Constant(-3.0)})
    with open_grading(SCENARIOS, models=models) as grading:
        batch = grading.begin()
        for i, example in enumerate((dataclasses.replace(EXAMPLE, domain="math"), helpful, harmless)):
            batch.add(i, RIGHT, [], example)
        reasoning, general, safe = batch.scores()
    assert reasoning.total == pytest.approx(1 + 1 + 4 / 6)
    assert general.total == pytest.approx(0.25 + 1 + 4 / 6)
    assert safe.total == pytest.approx(-3 + 1 + 4 / 6)
    assert set(general.parts) == {"helpfulness", "format", "language"}
    assert [models.scalar[name].flushes for name in models.scalar] == [1, 1]  # type: ignore[attr-defined]
    metrics = summarize([reasoning, general, safe], ["math", "helpful", "harmless"])
    assert metrics["helpful/reward"] == pytest.approx(0.25 + 1 + 4 / 6)
    assert metrics["helpfulness"] == 0.25
    assert metrics["right/accuracy"] == 1
    assert "harmless/accuracy" not in metrics


def test_a_domain_can_have_a_form_of_its_own() -> None:
    """Nobody puts a program into a box: without a form of their own, programs would all be wrong where answers are."""
    programs = {"comparison": "exact", "pattern": "reply"}
    config = RewardConfig(pattern="boxed", domains={"math": {}, "code": programs})
    number = dataclasses.replace(EXAMPLE, domain="math")
    program = dataclasses.replace(EXAMPLE, domain="code", answer="print(7)")
    texts = (f"so </think> it is \\boxed{{{EXAMPLE.answer}}}", "so </think> print(7)", "so </think> \\boxed{print(7)}")
    with open_grading(config) as grading:
        batch = grading.begin()
        for i, (text, example) in enumerate(zip(texts, (number, program, program), strict=True)):
            batch.add(i, text, [], example)
        scores = batch.scores()
    assert [score.parts["accuracy"].value for score in scores] == [1, 1, 0]
    assert [score.parts["format"].value for score in scores] == [1, 1, 1]


def test_models_that_the_weights_ask_for_must_be_there() -> None:
    with pytest.raises(ValueError, match="models that were not given: helpfulness, safety"), open_grading(SCENARIOS):
        pass


def test_a_domain_that_the_config_does_not_know_is_refused_before_the_start() -> None:
    with pytest.raises(ValueError, match=r"domain: 'maths' is not one of \['harmless', 'helpful', 'math'\]"):
        check_grading(SCENARIOS, [dataclasses.replace(EXAMPLE, domain="maths")])
    with pytest.raises(ValueError, match="example '1': domain: '' is not one of"):
        check_grading(SCENARIOS, [EXAMPLE])
    check_grading(RewardConfig(), [dataclasses.replace(EXAMPLE, domain="maths")])  # one mix for all


@pytest.mark.parametrize(
    ("comparison", "answer", "allowed"),
    [
        ("math", "banana", False),
        ("math", "3/4", True),
        ("exact", "</answer>", False),
        ("exact", "banana", True),
        ("expressions", r"\frac{1}{", False),
        ("expressions", "x^2 + 1", True),
    ],
)
def test_a_reference_that_nothing_can_be_compared_with_is_refused(comparison: str, answer: str, allowed: bool) -> None:
    example, config = dataclasses.replace(EXAMPLE, answer=answer), RewardConfig(comparison=comparison)
    if allowed:
        check_grading(config, [EXAMPLE, example])
    else:
        with pytest.raises(ValueError, match=f"example '1': comparison '{comparison}': "):
            check_grading(config, [EXAMPLE, example])


def test_an_example_without_an_answer_needs_a_domain_without_one() -> None:
    with pytest.raises(ValueError, match="example '1': no reference, and the comparison 'math' needs one"):
        check_grading(RewardConfig(), [dataclasses.replace(EXAMPLE, answer=" ")])
    check_grading(SCENARIOS, [dataclasses.replace(EXAMPLE, answer="", domain="helpful")])


def test_shaping_rewards_count_where_they_weigh_something() -> None:
    tokens = [1, 2, 1, 2, 1, 2]  # of five pairs two are distinct
    config = RewardConfig(accuracy=0.0, format=0.0, tag_count=1.0, repetition=-0.5, repetition_n=2)
    with open_grading(config) as grading:
        batch = grading.begin()
        batch.add(0, "<think> so </think> <answer> 9", tokens, EXAMPLE)
        (scores,) = batch.scores()
    assert scores.parts["tag_count"] == Score(0.75)
    assert scores.parts["repetition"].value == pytest.approx(0.6)
    assert scores.total == pytest.approx(0.75 - 0.3)


def test_the_same_answer_to_the_same_example_is_graded_once() -> None:
    asked: list[str] = []

    def verify(example: Example, answer: str) -> Score:
        asked.append(answer)
        return Score(float(answer == example.answer))

    other = dataclasses.replace(GYM, id="2", answer="8")
    with open_grading(RewardConfig(), at_once(verify)) as grading:
        batch = grading.begin()
        for i, (text, example) in enumerate([(RIGHT, GYM), (WRONG, GYM), (RIGHT, GYM), (WRONG, other)]):
            batch.add(3 - i, text, [], example)  # in any order
        totals = [score.total for score in batch.scores()]
    assert totals == [2.0, 2.0, 1.0, 2.0]
    assert asked == ["9", "8", "8"]
