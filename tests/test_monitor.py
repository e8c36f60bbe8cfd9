"""The monitor of preference rewards on runs whose course is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from r1jax.evaluation import monitor, plots
from r1jax.evaluation.records import series

STEPS = 60


def preference_run(accuracy: np.ndarray, seed: int = 0, noise: float = 0.02) -> list[dict[str, Any]]:
    """A late phase with preference rewards from step 20 on that rise all the time."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for step in range(STEPS):
        rows.append({"step": step, "loss": 0.1})  # of the update, as RL logs it
        right = float(accuracy[step] + noise * rng.normal())
        if step < 20:
            rows.append({"step": step, "accuracy": right})
            continue
        rows.append(
            {
                "step": step,
                "accuracy": 0.1,  # over all domains: not to be read
                "other/accuracy": right,
                "helpful/accuracy": 0.6 + 0.02 * rng.normal(),
                "helpful/helpfulness": -1 + (step - 20) / 15 + 0.1 * rng.normal(),
                "harmless/safety": 0.7 + 0.005 * rng.normal(),
                "harmless/accuracy": 0.9,
            }
        )
    return rows


def test_reward_hacking_is_flagged_where_it_happens() -> None:
    accuracy = np.full(STEPS, 0.8)
    accuracy[45:] = np.linspace(0.8, 0.4, 15)
    found = monitor.hacking(preference_run(accuracy))
    assert [(one.preference, one.rule) for one in found] == [("helpful/helpfulness", "reasoning/accuracy")]
    assert found[0].steps[0] <= 45 < 55 <= found[0].steps[1]
    assert found[0].accuracies[1] < 0.5
    assert found[0].rewards[1] - found[0].rewards[0] > 0.5
    text = monitor.sentence(found[0])
    assert "helpful/helpfulness rose from" in text
    assert "reasoning/accuracy fell from 8" in text


@pytest.mark.parametrize("seed", range(20))
def test_a_good_run_is_not_flagged(seed: int) -> None:
    rising = np.linspace(0.6, 0.85, STEPS)
    assert monitor.hacking(preference_run(rising, seed)) == []
    # Batches of few questions scatter by more than the stated drop.
    assert monitor.hacking(preference_run(np.full(STEPS, 0.7), seed, noise=0.1)) == []


def test_a_fall_that_is_stated_to_be_small_enough_is_not_flagged() -> None:
    rows = preference_run(np.concatenate([np.full(30, 0.8), np.full(30, 0.65)]), noise=0.005)
    assert monitor.hacking(rows, drop=0.1)
    assert monitor.hacking(rows, drop=0.2) == []


def test_without_a_rise_of_the_preference_reward_a_fall_is_not_hacking() -> None:
    rows = preference_run(np.linspace(0.9, 0.3, STEPS))
    for row in rows:
        row.pop("helpful/helpfulness", None)
    assert monitor.hacking(rows) == []  # safety stays where it is


def test_a_divergence_by_hand() -> None:
    rows = [{"step": s, "helpful/helpfulness": float(s), "reasoning/accuracy": 1.0 - 0.1 * s} for s in range(10)]
    one = monitor.divergence(
        "h",
        series(rows, "helpful/helpfulness"),
        "r",
        series(rows, "reasoning/accuracy"),  # type: ignore[arg-type]
    )
    assert one is not None
    # Running means over 5 steps; the ends are over 3: steps 0 to 2, and 7 to 9.
    assert one.steps == (0, 9)
    assert one.rewards == pytest.approx((1.0, 8.0))
    assert one.accuracies == pytest.approx((0.9, 0.2))
    assert one.fall == pytest.approx(0.7)
    assert one.error == pytest.approx(0.1 / 2**0.5 * (2 / 5) ** 0.5)


def test_reasoning_is_read_on_across_the_change_of_phases() -> None:
    line = monitor.rule_accuracies(preference_run(np.full(STEPS, 0.8), noise=0.0))["reasoning/accuracy"]
    assert len(line.steps) == STEPS
    assert line.values == pytest.approx(0.8)


def test_the_figure_needs_a_preference_reward() -> None:
    assert monitor.monitor_figure([{"step": 0, "accuracy": 0.3}]) is None
    figure = monitor.monitor_figure(preference_run(np.full(STEPS, 0.8)))
    assert figure is not None
    assert {line.get_label() for axes in figure.axes for line in axes.lines if line.get_label()[0] != "_"} == {
        "reasoning/accuracy",
        "helpful/accuracy",
        "harmless/accuracy",
        "helpful/helpfulness",
        "harmless/safety",
    }
    assert plots.png(figure).startswith(b"\x89PNG")


def test_every_rule_graded_domain_is_watched() -> None:
    rows = [
        {
            "step": s,
            "math/accuracy": 0.9 - 0.01 * s,
            "code/accuracy": 0.5,
            "general/helpfulness": 0.1 * s,
            "accuracy": 0.6,
        }
        for s in range(40)
    ]
    assert set(monitor.rule_accuracies(rows)) == {"math/accuracy", "code/accuracy"}
    assert [one.rule for one in monitor.hacking(rows)] == ["math/accuracy"]
