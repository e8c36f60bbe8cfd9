"""Estimates worked out by hand."""

from __future__ import annotations

import fractions
import itertools
import json
import math
import statistics

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


@pytest.mark.parametrize(
    "scores", [(1, 1, 1, 0), (1, 1 / 2, 0, 0), (1 / 3, 1, 0, 1 / 2), (1, 0, 0, 0), (1 / 2, 1 / 2, 1 / 2, 1)]
)
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_bootstrap_interval_is_that_of_all_resamples(scores: tuple[float, ...], level: float) -> None:
    """Four problems have 4^4 resamples: their means, each counted once, are what random draws estimate."""
    means = sorted(sum(chosen) / 4 for chosen in itertools.product(scores, repeat=4))
    assert len(means) == 256

    def quantile(share: float) -> float:
        """The smallest mean that at least this share of all resamples does not exceed."""
        return next(mean for i, mean in enumerate(means, start=1) if i >= share * len(means))

    low, high = estimators.bootstrap_interval(scores, seed=0, draws=20_000, level=level)
    assert low == pytest.approx(quantile((1 - level) / 2))
    assert high == pytest.approx(quantile((1 + level) / 2))


def test_random_tables_agree_with_exact_arithmetic() -> None:
    rng = np.random.default_rng(0)
    for problems, k in ((2, 1), (5, 3), (30, 8)):
        correct, graded = rng.random((problems, k)) < 0.4, rng.random((problems, k)) < 0.7
        rows = [
            fractions.Fraction(sum(int(c) for c, g in zip(row, known, strict=True) if g), sum(map(int, known)))
            for row, known in zip(correct, graded, strict=True)
            if any(known)
        ]
        mean, error = estimators.pass_at_1(correct, graded)
        assert mean == pytest.approx(float(statistics.mean(rows)))
        # The error of a mean of n independent numbers: sqrt(sum (x - mean)^2 / (n - 1) / n).
        assert error == pytest.approx(math.sqrt(statistics.variance(rows) / len(rows)))


def test_shared_credit_of_ties_is_the_mean_over_winners_drawn_at_random() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        votes = [str(v) for v in rng.integers(0, 4, 6)]
        counts = {vote: votes.count(vote) for vote in votes}
        winners = [vote for vote in counts if counts[vote] == max(counts.values())]
        drawn = [vote in ("0", "2") for vote in rng.choice(winners, 4000)]
        assert estimators.majority_credit(votes, {"0", "2"}) == pytest.approx(np.mean(drawn), abs=0.04)


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
        "single_language": np.array([[0.0, 0.0], [1.0, 0.0]]),
        "readable_summary": np.array([[1.0, 0.0], [1.0, 1.0]]),
        "safe": np.array([[1.0, 0.0], [np.nan, np.nan]]),
        "reflection": np.array([[0, 3], [0, 1]]),
        "compared": np.array([True, True]),
        "rewards": {"accuracy": np.array([[1.0, 0.0], [1.0, np.nan]])},
        "domains": ["", ""],
        "groups": ["sum, 10 steps", "sum, 9 steps"],
    }
    return estimators.Evaluation(**(fields | changes))  # type: ignore[arg-type]


def test_summary_of_an_evaluation() -> None:
    figures = estimators.summarize(evaluation())
    assert figures["pass_at_1"] == pytest.approx((1 / 2 + 1) / 2)
    assert figures["pass_at_1_se"] == pytest.approx(1 / 4)  # of two numbers half their distance
    assert figures["cons_at_k"] == pytest.approx((1 / 2 + 1) / 2)
    assert (figures["problems"], figures["k"], figures["ungradable"]) == (2, 2, 1)
    assert (figures["length_mean"], figures["length_mean_se"], figures["length_max"]) == (25.0, 10.0, 40)
    assert figures["length_std"] == pytest.approx(math.sqrt(125))
    assert (figures["truncation_rate"], figures["truncation_rate_se"]) == (0.25, 0.25)
    assert (figures["format"], figures["format_se"]) == (0.75, 0.25)
    assert figures["language"] == pytest.approx((0.5 + 0.5) / 2)  # the response without words is left out
    assert (figures["single_language"], figures["single_language_se"]) == (0.25, 0.25)
    assert (figures["readable_summary"], figures["readable_summary_se"]) == (0.75, 0.25)
    assert figures["safe"] == 0.5  # of the problem that calls something unsafe
    assert figures["reflection_words"] == 1.0
    assert figures["rewards"] == {"accuracy": {"mean": 0.75, "mean_se": 0.25}}
    assert list(figures["by_group"]) == ["sum, 9 steps", "sum, 10 steps"]
    assert figures["by_group"]["sum, 10 steps"]["pass_at_1"] == 0.5
    assert figures["by_domain"]["reasoning"] == {n: f for n, f in figures.items() if not n.startswith("by_")}


def test_figures_of_a_domain_are_those_of_its_problems_alone() -> None:
    """General requests have no right answers: they have every figure but those of votes, and no part in those."""
    nothing = np.zeros((1, 2))
    figures = estimators.summarize(
        evaluation(
            domains=["reasoning", "helpful"],
            compared=np.array([True, False]),
            graded=np.array([[1, 1], [0, 0]], dtype=bool),
            right=[{"5"}, None],
            rewards={"helpfulness": np.concatenate([nothing + np.nan, nothing + 2.5])},
            groups=[None, None],
        )
    )
    reasoning, helpful = figures["by_domain"]["reasoning"], figures["by_domain"]["helpful"]
    assert figures["pass_at_1"] == reasoning["pass_at_1"] == 0.5
    assert figures["cons_at_k"] == reasoning["cons_at_k"] == 0.5
    assert [helpful[n] for n in ("pass_at_1", "pass_at_1_se", "cons_at_k", "cons_at_k_low")] == [None] * 4
    assert (helpful["problems"], helpful["length_mean"], helpful["ungradable"]) == (1, 35.0, 0)
    assert helpful["rewards"]["helpfulness"] == {"mean": 2.5, "mean_se": None}
    assert reasoning["rewards"]["helpfulness"] == {"mean": None, "mean_se": None}
    assert "by_group" not in figures


def test_summary_is_valid_json_even_where_undefined() -> None:
    figures = estimators.summarize(evaluation(language=np.full((2, 2), np.nan), graded=np.zeros((2, 2), dtype=bool)))
    assert figures["language"] is None
    assert figures["pass_at_1"] is None
    json.dumps(figures, allow_nan=False)


def test_summary_names_the_array_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"evaluation\.lengths has shape \(1, 2\), correct has \(2, 2\)"):
        estimators.summarize(evaluation(lengths=np.array([[1, 2]])))
    with pytest.raises(ValueError, match=r"evaluation\.rewards\[safety\] has shape \(2, 1\), correct has \(2, 2\)"):
        estimators.summarize(evaluation(rewards={"safety": np.zeros((2, 1))}))
    with pytest.raises(ValueError, match=r"evaluation\.domains is of 1 problems, correct of 2"):
        estimators.summarize(evaluation(domains=[""]))
