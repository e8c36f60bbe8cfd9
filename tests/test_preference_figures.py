"""Figures of reward models: accuracy with its error, calibration and length bias, by hand and against scipy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats

from r1jax.evaluation import held_out_rewards as held
from r1jax.evaluation import preference_figures as figures


def test_clustered_mean_by_hand_and_its_two_limits():
    values = np.random.default_rng(0).normal(size=12)
    mean, error = figures.clustered_mean(values, range(12))
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(scipy.stats.sem(values))
    # Each value four times under one prompt is no more evidence than once.
    assert figures.clustered_mean(np.repeat(values, 4), [g for g in range(12) for _ in range(4)])[1] == pytest.approx(
        error
    )
    # Prompt a: 1, 1; prompt b: 0. Mean 2/3; deviations summed by prompt 2/3 and -2/3; sqrt(2 * 8/9) / 3.
    assert figures.clustered_mean([1, 1, 0], "aab") == pytest.approx((2 / 3, 4 / 9))
    assert math.isnan(figures.clustered_mean([1, 0], "aa")[1])
    assert math.isnan(figures.clustered_mean([], [])[0])


def test_clustered_error_agrees_with_a_bootstrap_over_prompts():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(200), 5)
    values = rng.normal(size=200)[groups] + rng.normal(size=1000)
    draws = [values.reshape(200, 5)[rng.integers(0, 200, 200)].mean() for _ in range(2000)]
    assert figures.clustered_mean(values, groups.tolist())[1] == pytest.approx(np.std(draws), rel=0.06)


def test_calibration_by_hand():
    found = figures.calibrate([0.05, 0.15, 0.1, 0.8, 1.0], [0, 1, 0, 1, 1], "abcde", bins=5)
    low, high = found.bins[0], found.bins[4]
    assert [b.count for b in found.bins] == [3, 0, 0, 0, 2]
    assert (low.predicted, low.observed) == pytest.approx((0.1, 1 / 3))
    assert (high.predicted, high.observed) == pytest.approx((0.9, 1.0))
    assert found.ece == pytest.approx(3 / 5 * (1 / 3 - 0.1) + 2 / 5 * 0.1)
    assert math.isnan(found.bins[1].observed)
    assert json.loads(json.dumps(figures.plain_calibration(found)))["bins"][1]["observed"] is None
    with pytest.raises(ValueError, match=r"2 probabilities, of which all must lie in \[0.5, 1\]"):
        figures.calibrate([0.4, 0.9], [1, 1], "ab", low=0.5)


def test_pairs_are_turned_to_what_the_model_prefers():
    # log(3): P = 3/4, right; -log(3): P = 3/4 for the wrong one; 0: a coin.
    found = figures.calibrate_pairs([math.log(3), -math.log(3), 0.0], "abc", bins=2)
    assert [(b.count, b.predicted, b.observed) for b in found.bins] == [
        (1, pytest.approx(0.5), 0.5),
        (2, pytest.approx(0.75), 0.5),
    ]
    assert found.ece == pytest.approx(2 / 3 * 0.25)


def test_a_calibrated_model_is_found_calibrated_and_an_overconfident_one_not():
    rng = np.random.default_rng(2)
    d = rng.normal(scale=2, size=20_000)
    chosen_is_a = rng.random(d.size) < figures.sigmoid(d)
    differences = np.where(chosen_is_a, d, -d)
    groups = list(range(d.size))
    assert figures.calibrate_pairs(differences, groups).ece < 0.015
    assert figures.calibrate_pairs(3 * differences, groups).ece > 0.1


def test_correlations_and_auc_against_scipy():
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 6, 80).astype(float), rng.normal(size=80)
    y += x
    assert figures.correlation(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    np.testing.assert_array_equal(figures.ranks(x), scipy.stats.rankdata(x))
    bias = figures.length_bias(y, x)
    assert bias["spearman"] == pytest.approx(scipy.stats.spearmanr(y, x).statistic)
    positive = rng.random(80) < 0.3
    u = scipy.stats.mannwhitneyu(x[positive], x[~positive]).statistic
    assert figures.area_under_curve(x, positive) == pytest.approx(u / (positive.sum() * (~positive).sum()))
    assert figures.length_bias([1, 1], [2, 3]) == {"pearson": None, "spearman": None}
    assert math.isnan(figures.area_under_curve([1, 2], [True, True]))


def test_length_preference_by_hand():
    # The judge prefers the longer in pairs 0 and 1, the shorter in 2 and 3; pair 4 has one length.
    found = figures.length_preference([1, -1, -1, 2, 5], [9, 9, 4, 4, 7], [4, 4, 9, 9, 7], "abcde")
    assert (found["pairs"], found["of_one_length"]) == (5, 1)
    assert found["longer_by_judge"] == 0.5
    assert found["longer_by_model"] == 0.5  # pairs 0 and 2
    assert found["accuracy_longer_better"] == 0.5
    assert found["accuracy_longer_worse"] == 0.5
    counter = figures.length_preference([5, 5, -5, -5], [9, 9, 4, 4], [4, 4, 9, 9], "abcd")  # reward = length
    assert (counter["longer_by_model"], counter["longer_by_judge"]) == (1, 0.5)
    assert (counter["accuracy_longer_better"], counter["accuracy_longer_worse"]) == (1, 0)


def test_units_with_an_empty_response_are_told_apart():
    lengths = np.array([[3, 4], [5, 0], [0, 2], [6, 6]])
    rewards = np.array([[1.0, 0.0], [2.0, -1.0], [0.0, 1.0], [0.0, 1.0]])
    seen, empty = held.split_empty(held.HeldOut(rewards, lengths, np.ones(4, bool), list("abcd")))
    assert (seen.prompts, empty.prompts) == (["a", "d"], ["b", "c"])
    assert held.figures_of(seen)["held_out"]["accuracy"] == 0.5
    assert held.empty_figures(empty) == {"units": 2, "accuracy": 0.5}
    assert held.empty_figures(held.split_empty(seen)[1]) == {"units": 0, "accuracy": None}


def test_figures_and_plots_of_held_out_data(tmp_path):
    rng = np.random.default_rng(4)
    lengths = rng.integers(1, 60, (40, 2))
    pairs = held.HeldOut(
        rng.normal(size=(40, 2)) + [0.7, 0], lengths, np.ones(40, bool), [str(i // 2) for i in range(40)]
    )
    told = held.figures_of(pairs)
    d = pairs.rewards[:, 0] - pairs.rewards[:, 1]
    assert told["held_out"]["accuracy"] == np.mean(d > 0)
    assert told["held_out"]["loss"] == pytest.approx(np.mean(np.log1p(np.exp(-d))))
    assert told["rewards"] == pytest.approx({"mean": pairs.rewards.mean(), "std": pairs.rewards.std()})
    assert told["length_bias"]["pairs"] == 40
    safe = rng.random(40) < 0.7
    labelled = held.HeldOut(rng.normal(size=(40, 1)), lengths[:, :1], safe, [str(i) for i in range(40)])
    told = held.figures_of(labelled)
    assert told["held_out"]["accuracy"] == np.mean((labelled.rewards[:, 0] > 0) == safe)
    assert told["held_out"]["base_accuracy"] == max(safe.mean(), 1 - safe.mean())
    for name, one in (("pairs", pairs), ("labelled", labelled)):
        (tmp_path / name).mkdir()
        held.write_plots(tmp_path / name, one)
        assert sorted(file.name for file in (tmp_path / name).iterdir()) == [
            "calibration.json",
            "calibration.png",
            "length_bias.png",
        ]
        assert json.loads((tmp_path / name / "calibration.json").read_text())["ece"] == held.calibration_of(one).ece
