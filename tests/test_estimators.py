"""Estimates worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from r1jax.evaluation import estimators


def test_pass_at_1_is_the_mean_of_problem_means_with_the_error_over_problems() -> None:
    correct = [[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]]  # problem means 3/4, 0, 1/2
    mean, error = estimators.pass_at_1(correct)
    assert mean == pytest.approx(5 / 12)
    # Deviations 1/3, -5/12, 1/12: squares 16/144, 25/144, 1/144; variance (n - 1) 42/288, over n = 3.
    assert error == pytest.approx(math.sqrt(42 / 288 / 3))


def test_pass_at_1_is_not_pass_at_k_over_k() -> None:
    correct = [[1, 1, 1, 1], [0, 0, 0, 0]]  # pass@4 = 1/2, and a quarter of that would be 1/8
    assert estimators.pass_at_1(correct)[0] == 0.5


def test_ungraded_samples_count_neither_as_right_nor_as_wrong() -> None:
    correct = [[1, 0, 0, 0], [1, 1, 0, 0]]
    graded = [[1, 1, 0, 0], [1, 1, 1, 1]]  # first problem: 1 of 2 graded
    assert estimators.pass_at_1(correct, graded)[0] == pytest.approx((1 / 2 + 1 / 2) / 2)
    graded = [[0, 0, 0, 0], [1, 1, 1, 1]]  # first problem drops out, so no error can be given
    mean, error = estimators.pass_at_1(correct, graded)
    assert mean == 0.5
    assert math.isnan(error)


def test_pass_at_1_without_a_graded_sample_is_undefined() -> None:
    assert all(math.isnan(value) for value in estimators.pass_at_1([[1, 1]], [[0, 0]]))


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"mask has shape \(1, 2\), values have \(1, 3\)"):
        estimators.pass_at_1([[1, 1, 1]], [[1, 1]])
    with pytest.raises(ValueError, match=r"\[problems, samples\]"):
        estimators.pass_at_1([1, 0])
    with pytest.raises(ValueError, match="answers of 1 problems, right ones of 2"):
        estimators.cons_at_k([["1"]], [{"1"}, {"2"}])


@pytest.mark.parametrize(
    ("answers", "credit"),
    [
        (["7", "7", "3"], 1.0),
        (["3", "3", "7"], 0.0),
        (["7", "3"], 1 / 2),  # a tie shares the credit
        (["7", "7", "3", "3", "5", "5"], 1 / 3),
        (["3", "3", "5", "5", "7"], 0.0),  # tied, but not with the reference
        ([None, None, None, "7"], 1.0),  # no answer is no vote
        ([None, None], 0.0),
        ([], 0.0),
    ],
)
def test_majority_vote(answers: list[str | None], credit: float) -> None:
    assert estimators.majority_credit(answers, {"7"}) == pytest.approx(credit)


def test_cons_at_k_averages_over_problems_with_a_reference() -> None:
    answers = [["1", "1", "2"], ["1", "2", "2"], ["4", None, None], ["9", "9", "9"]]
    consensus = estimators.cons_at_k(answers, [{"1"}, {"1"}, {"4"}, None])
    assert consensus.mean == pytest.approx(2 / 3)
    assert consensus.problems == 3
    assert 0 <= consensus.low <= consensus.mean <= consensus.high <= 1


def test_bootstrap_interval_of_many_problems_is_the_normal_one() -> None:
    values = np.repeat([0.0, 1.0], 200)  # standard error sqrt(1/4 / 400) = 0.025
    low, high = estimators.bootstrap_interval(values, seed=0)
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)
    assert (low, high) == estimators.bootstrap_interval(values, seed=0)
    assert estimators.bootstrap_interval([1.0, 1.0], seed=0) == (1.0, 1.0)


def test_table_by_difficulty_is_in_ascending_order() -> None:
    table = estimators.by_group(
        correct=[[1, 1], [1, 0], [0, 0]],
        graded=np.ones((3, 2)),
        answers=[["1", "1"], ["1", "2"], ["0", "0"]],
        right=[{"1"}, {"1"}, {"1"}],
        groups=[10, 9, 10],
    )
    assert list(table) == [9, 10]
    assert table[9]["pass_at_1"] == 0.5
    assert table[9]["cons_at_k"] == 0.5
    assert table[10] == {"problems": 2, "pass_at_1": 0.5, "pass_at_1_se": 0.5, "cons_at_k": 0.5}


def test_difference_of_two_estimates() -> None:
    change, error = estimators.difference((0.1, 0.03), (0.6, 0.04))
    assert change == pytest.approx(0.5)
    assert error == pytest.approx(0.05)


def evaluation(**changes: object) -> estimators.Evaluation:
    fields: dict[str, object] = {
        "correct": np.array([[1, 0], [1, 1]], dtype=bool),
        "graded": np.array([[1, 1], [1, 0]], dtype=bool),
        "answers": [["5", "6"], ["8", "8"]],
        "right": [{"5"}, {"8"}],
        "lengths": np.array([[10, 20], [30, 40]]),
        "finished": np.array([[1, 1], [1, 0]], dtype=bool),
        "format": np.array([[1.0, 0.0], [1.0, 1.0]]),
        "language": np.array([[0.5, np.nan], [1.0, 0.0]]),
        "reflection": np.array([[0, 3], [0, 1]]),
        "groups": [3, 4],
    }
    return estimators.Evaluation(**(fields | changes))  # type: ignore[arg-type]


def test_summary_of_an_evaluation() -> None:
    figures = estimators.summarize(evaluation())
    assert figures["pass_at_1"] == pytest.approx((1 / 2 + 1) / 2)
    assert figures["cons_at_k"] == pytest.approx((1 / 2 + 1) / 2)
    assert (figures["problems"], figures["k"], figures["ungradable"]) == (2, 2, 1)
    assert (figures["length_mean"], figures["length_max"]) == (25.0, 40)
    assert figures["length_std"] == pytest.approx(math.sqrt(125))
    assert figures["truncation_rate"] == 0.25
    assert figures["format"] == 0.75
    assert figures["language"] == pytest.approx((0.5 + 0.5) / 2)  # the response without words is left out
    assert figures["reflection_words"] == 1.0
    assert figures["by_group"]["3"]["pass_at_1"] == 0.5


def test_summary_is_valid_json_even_where_undefined() -> None:
    figures = estimators.summarize(evaluation(language=np.full((2, 2), np.nan), graded=np.zeros((2, 2), dtype=bool)))
    assert figures["language"] is None
    assert figures["pass_at_1"] is None
    json.dumps(figures, allow_nan=False)


def test_summary_names_the_array_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"evaluation\.lengths has shape \(1, 2\), correct has \(2, 2\)"):
        estimators.summarize(evaluation(lengths=np.array([[1, 2]])))
