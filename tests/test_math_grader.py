r"""The grader with its processes: exact where numbers decide, three kinds of grade, hung and killed workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from r1jax.rewards import workers
from r1jax.rewards.combine import RewardConfig, summarize
from r1jax.rewards.grading import open_grading
from r1jax.rewards.mathematics.math_grader import MathGrader
from r1jax.types import Example, Score, Status

HANGS = r"\sum_{n=1}^{999999999} \sin(n^n)"  # math-verify never ends on it


def example(gold: str, question: str = "", **metadata: object) -> Example:
    return Example(id="1", question=question, answer=gold, task="math", metadata=metadata)


def formed(answer: str) -> str:
    return f"<think> a </think> <answer> {answer} </answer>"


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader(workers=2, seconds=30) as opened:
        yield opened


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("9", "9.0", True),
        ("9", "9 or 10", False),
        ("9", r"\boxed{9} \boxed{", False),
        ("9", r"\boxed{8 \boxed{9}}", False),
        ("9", "９", True),
        ("3 8", "3, 8", True),
        ("3 8", "3 and 8", False),
        ("3 8", "x", False),
        ("0.5", r"50\%", True),
        ("50", r"50\%", False),
        ("x = 5", "y = 5", False),
        (r"so \boxed{x^2}", r"it is \boxed{x \cdot x}", True),
        (r"\{1, 2\}", r"\{2, 1\}", True),
        (r"#### \sqrt{8}", r"2\sqrt{2}", True),
        (r"\$18", "18", True),
        ("B", "(B)", True),
    ],
)
def test_right_and_wrong(grader: MathGrader, gold: str, answer: str, right: bool) -> None:
    score = grader(formed(answer), example(gold))
    assert (score.value, score.status) == (float(right), Status.GRADED)
    assert bool(score.reason) is not right


def test_numbers_never_reach_a_process(grader: MathGrader) -> None:
    before = sum(grader.counts.values())
    assert grader(formed("9"), example("9")) == Score(1.0)
    assert grader("no answer", example("9")) == Score(0.0, reason="no single final answer")
    assert grader(formed("8"), example("9")) == Score(0.0, reason="another answer")
    assert grader(formed(r"\boxed{}"), example("9")) == Score(0.0, reason="the answer is not one value")
    assert sum(grader.counts.values()) == before


@pytest.mark.parametrize("text", ["", formed("x"), formed("no idea"), formed(r"\boxed{")])
def test_a_reference_that_nobody_understands_is_ungradable_whatever_is_said(grader: MathGrader, text: str) -> None:
    score = grader(text, example("no idea"))
    assert (score.value, score.status) == (0.0, Status.UNGRADABLE)
    assert "is not understood" in score.reason


def test_without_a_final_answer_nothing_is_right(grader: MathGrader) -> None:
    for text in ("", "x", "<answer> x", "<answer></answer>", "<answer> x </answer> <answer> y </answer>"):
        assert grader(text, example("x^2")) == Score(0.0, reason="no single final answer")
    assert grader(formed(r"\boxed{x^2} \boxed{"), example("x^2")) == Score(0.0, reason="the answer is not one value")


def test_a_question_can_allow_any_order(grader: MathGrader) -> None:
    assert grader(formed("x, 1"), example("1, x", any_order=True)).value == 1.0
    assert grader(formed("x, 1"), example("1, x")).value == 0.0


def test_a_verifier_that_hangs_and_one_that_is_killed_give_no_grade_and_the_rest_goes_on() -> None:
    config = RewardConfig(comparison="expressions", grading_seconds=1.0, grading_workers=1)
    hangs, fine = example(HANGS), example("x^2")
    with open_grading(config) as grading:
        grader = grading.mathematics
        assert grader is not None
        texts = [formed("x x"), formed("1"), formed("2"), formed("x^2"), formed("x")]
        asked = [fine, hangs, hangs, fine, fine]
        assert grader(formed("x"), fine).value == 0.0  # the process has started
        batch = grading.begin()
        for i, (text, one) in enumerate(zip(texts, asked, strict=True)):
            batch.add(i, text, [], one)
        while grader.counts["replaced"] < 1:
            time.sleep(0.01)
        deadline = time.monotonic() + 20
        while grader.pool._workers[0].ready is False and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(grader.pool.process_ids()[0], signal.SIGKILL)
        scores = batch.scores()
    accuracies = [score.parts["accuracy"] for score in scores]
    assert accuracies[1] == Score(0.0, Status.TIMED_OUT, "more than 1 s")
    assert accuracies[2].status is Status.UNGRADABLE
    assert accuracies[2].reason == "the grading process died with exit status -9"
    assert [a.value for a in accuracies] == [1.0, 0.0, 0.0, 1.0, 0.0]
    metrics = summarize(scores)
    assert (metrics["right/accuracy"], metrics["wrong/accuracy"]) == (2, 1)
    assert (metrics["timed_out/accuracy"], metrics["ungradable/accuracy"], metrics["ungradable"]) == (1, 1, 2)
    assert grader.counts["replaced"] == 3  # the reference that hangs was asked about once more, with a plain answer


def test_an_answer_that_takes_too_long_is_wrong_where_its_reference_is_graded_in_time() -> None:
    hangs = formed(HANGS)
    reference = example(r"\sum_{n=1}^{10} n")
    with MathGrader(workers=1, seconds=1.0) as grader:
        assert grader(formed("55"), reference).value == 1.0
        assert grader(hangs, reference) == Score(0.0, reason="the answer takes too long to compare: more than 1 s")
        score = grader.submit(hangs, reference)
        time.sleep(0.2)
        while not grader.pool._workers[0].ready:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(grader.pool.process_ids()[0], signal.SIGKILL)
        assert score.result().reason == "the answer takes too long to compare: more than 1 s"  # asked once more
        assert grader(formed("2"), example(HANGS)).status is Status.TIMED_OUT


def test_a_grader_that_is_closed_leaves_no_score_unset() -> None:
    with MathGrader(workers=1, seconds=1.0) as grader:
        scores = [grader.submit(formed(HANGS), example(r"\sum_{n=1}^{10} n")) for _ in range(3)]
    assert all(score.done() for score in scores)


def test_a_sum_of_long_fractions_is_refused_at_once(grader: MathGrader) -> None:
    answer = "+".join(f"(\\frac{{{n}}}{{{n + 2}}})^{{19999}}" for n in range(7, 31))
    assert "fractions too long" in grader(formed(answer), example("5")).reason


def test_only_the_comparison_that_needs_processes_opens_some() -> None:
    with open_grading(RewardConfig()) as grading:
        assert grading.mathematics is None
    for fields, message in (({"grading_seconds": 0.0}, "grading_seconds"), ({"grading_workers": 0}, "grading_workers")):
        with pytest.raises(ValueError, match=message):
            RewardConfig(comparison="expressions", **fields)  # type: ignore[arg-type]


def test_an_answer_whose_process_somebody_else_ended_is_graded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that broke is no fault of the answer; an answer that ends its process every time is wrong."""
    with MathGrader(workers=1, seconds=30) as grader:
        asked: list[str] = []
        original = workers.WorkerPool._run_at

        def killed(self: workers.WorkerPool, place: int, arguments: list[str]) -> workers.Outcome:
            asked.append(arguments[1])
            if (arguments[1] == "x + 0 + y" and asked.count("x + 0 + y") == 1) or arguments[1] == "x + y + y":
                return workers.Outcome(workers.Ending.CRASHED, reason="the grading process died with exit status -9")
            return original(self, place, arguments)

        monkeypatch.setattr(workers.WorkerPool, "_run_at", killed)
        assert grader(formed("x + 0 + y"), example("x+y")) == Score(1.0)
        assert asked == ["x + 0 + y", "1", "x + 0 + y"]
        wrong = grader(formed("x + y + y"), example("x+y"))
        assert wrong.graded
        assert wrong.value == 0.0
        assert "too much to compare" in wrong.reason
