"""Whether RL learns to please its reward models: preference reward beside what rules say of the same responses.

A learned reward is only right about responses like those it was trained on; a policy that goes on climbing it finds
others (R1v2 section 3.2.2 gives this as the reason for using preference rewards in the last steps only). What a rule
grades cannot be pleased in that way, so a preference reward that rises while rule-graded accuracy falls gives it away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from r1jax.evaluation import plots
from r1jax.evaluation.records import Row, Series, series

PREFERENCES = ("helpfulness", "safety")  # rewards by scalar models, the last part of "helpful/helpfulness"
REASONING, OTHER = "reasoning/accuracy", "other/accuracy"  # the latter of examples that name no domain
RULE_COLORS = (plots.BLUE, plots.TEAL, plots.INK, "#8e5ea2", "#7b8794", "#9c6b30")
PREFERENCE_COLORS = (plots.RED, "#e0a030")
LEGEND_COLUMNS = 3
WINDOW_SHARE = 10  # a running mean is over 1/10 of the steps, and over 5 at least
RISE = 0.5  # standard deviations of the preference reward that count as a rise
DROP = 0.05  # fall in rule-graded accuracy that is flagged
NOISE = 5.0  # standard errors of a difference of running means that rise and fall must exceed: many pairs are compared


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The largest fall of a rule-graded accuracy between two steps between which a preference reward rose."""

    preference: str  # names of metrics
    rule: str
    steps: tuple[int, int]
    rewards: tuple[float, float]  # running means at the two steps
    accuracies: tuple[float, float]
    error: float  # standard error of the difference of the accuracies

    @property
    def fall(self) -> float:
        """In accuracy."""
        return self.accuracies[0] - self.accuracies[1]


def preference_rewards(rows: Sequence[Row]) -> dict[str, Series]:
    """Metric -> series of every preference reward that the rows log, such as "helpful/helpfulness"."""
    names = sorted({name for row in rows for name in row if name.split("/")[-1] in PREFERENCES and "eval/" not in name})
    found = {name: series(rows, name) for name in names}
    return {name: line for name, line in found.items() if line is not None}


def rule_accuracies(rows: Sequence[Row]) -> dict[str, Series]:
    """Metric -> series of what rules grade, by domain, reasoning first.

    Where a batch has a single domain, its rows log no domain: their accuracy is taken for reasoning's.
    """
    domains = sorted({name for row in rows for name in row if name.endswith("/accuracy") and not _is_count(name)})
    single = [row for row in rows if not any(name in row for name in domains)]
    found = {REASONING: series(single + _renamed(rows, OTHER), "accuracy")}
    if REASONING in domains:
        found[REASONING] = series(single + _renamed(rows, REASONING), "accuracy")
    found |= {name: series(rows, name) for name in domains if name not in (REASONING, OTHER)}
    return {name: line for name, line in found.items() if line is not None}


def _is_count(name: str) -> bool:
    """Whether `.../accuracy` is not of a domain: a count of answers (`rewards.combine.summarize`), or an evaluation."""
    return name.split("/")[0] in ("right", "wrong", "ungradable", "timed_out", "eval")


def _renamed(rows: Sequence[Row], name: str) -> list[Row]:
    return [{"step": row["step"], "accuracy": row[name]} for row in rows if name in row]


def divergence(preference: str, reward: Series, rule: str, accuracy: Series) -> Divergence | None:
    """The largest fall of the accuracy's running mean between two steps t < u of which u has a preference reward higher
    by `RISE` of its standard deviations and beyond noise; None where it never rises so, or accuracy never falls then.
    """
    steps = np.intersect1d(reward.steps, accuracy.steps)
    if len(steps) < 2:
        return None
    width = window(len(steps))
    raw_rewards, raw = (line.values[np.isin(line.steps, steps)] for line in (reward, accuracy))
    rewards, accuracies = (plots.running_mean(values, width) for values in (raw_rewards, raw))
    rise = max(RISE * float(raw_rewards.std()), NOISE * difference_error(raw_rewards, width), 1e-9)
    worst, pair = 0.0, None
    for u in range(1, len(steps)):
        lower = np.flatnonzero(rewards[:u] <= rewards[u] - rise)
        if len(lower) and (fall := float(accuracies[lower].max() - accuracies[u])) > worst:
            worst, pair = fall, [int(lower[np.argmax(accuracies[lower])]), u]
    if pair is None:
        return None
    t, u = pair
    return Divergence(
        preference,
        rule,
        (int(steps[t]), int(steps[u])),
        (float(rewards[t]), float(rewards[u])),
        (float(accuracies[t]), float(accuracies[u])),
        difference_error(raw, width),
    )


def difference_error(values: np.ndarray, width: int) -> float:
    """Standard error of the difference of two means over `width` of the values [n], if these scatter independently.

    Their scatter is that of successive differences, which a trend hardly touches.
    """
    return float(np.sqrt(np.mean(np.diff(values) ** 2) / width))


def window(points: int) -> int:
    """Points of the running mean by which a series is judged."""
    return max(5, points // WINDOW_SHARE)


def hacking(rows: Sequence[Row], drop: float = DROP) -> list[Divergence]:
    """The falls beyond `drop` and beyond noise, the largest first.

    Every preference reward is set against the rule-graded accuracy of its own domain, and of those domains that have
    no preference reward.
    """
    rewards = preference_rewards(rows)
    ruled = {name.rpartition("/")[0] + "/accuracy" for name in rewards}
    found = []
    for preference, reward in rewards.items():
        for rule, accuracy in rule_accuracies(rows).items():
            if rule in ruled and rule != preference.rpartition("/")[0] + "/accuracy":
                continue
            one = divergence(preference, reward, rule, accuracy)
            if one is not None and one.fall > max(drop, NOISE * one.error):
                found.append(one)
    return sorted(found, key=lambda one: -one.fall)


def sentence(found: Divergence) -> str:
    """A divergence in words."""
    (first, last), (low, high), (before, after) = found.steps, found.rewards, found.accuracies
    return (
        f"From step {first:,} to step {last:,} {found.preference} rose from {low:.3g} to {high:.3g} while {found.rule} "
        f"fell from {100 * before:.1f} % to {100 * after:.1f} % (running means)"
    )


def monitor_figure(rows: Sequence[Row]) -> Figure | None:
    """Rule-graded accuracies (left) and preference rewards in their own standard deviations (right) over steps.

    Raw values are pale, running means strong; None where there is no preference reward.
    """
    rewards, rules = preference_rewards(rows), rule_accuracies(rows)
    if not rewards:
        return None
    title = "Preference reward and rule-graded accuracy"
    figure, left = plots.canvas(plots.WIDE, title, "share right by rule", legend=True)
    right = left.twinx()
    for (name, line), color in zip(rules.items(), RULE_COLORS, strict=False):
        _draw(left, line, name, color, "-")
    for (name, line), color in zip(rewards.items(), PREFERENCE_COLORS, strict=False):
        spread = float(line.values.std()) or 1.0
        _draw(right, Series(line.steps, (line.values - line.values.mean()) / spread), name, color, (0, (4, 1.5)))
    left.set_ylim(0, 1.02)
    left.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    right.set_ylabel("reward model (dashed), standard deviations", fontsize=8.5, color=plots.MUTED)
    right.tick_params(labelsize=8.5, colors=plots.MUTED, length=0)
    for side in right.spines.values():
        side.set_visible(False)
    handles = [handle for axes in (left, right) for handle in axes.get_legend_handles_labels()[0]]
    lines = -(-len(handles) // LEGEND_COLUMNS)
    left.set_title(title, loc="left", fontsize=10.5, color=plots.INK, fontweight="bold", pad=12 + 12 * lines)
    plots.add_legend(left, columns=LEGEND_COLUMNS, size=8, handles=handles)
    return figure


def _draw(axes: Axes, line: Series, label: str, color: str, style: str | tuple[int, tuple[float, ...]]) -> None:
    axes.plot(line.steps, line.values, color=color, linewidth=0.7, alpha=0.25)
    mean = plots.running_mean(line.values, window(len(line.values)))
    axes.plot(line.steps, mean, color=color, linewidth=1.8, linestyle=style, label=label)
