"""How good a reward model is on held-out data: accuracy, calibration, and what it makes of length. Plain numpy.

Pairs or responses of one prompt are not independent, so the prompt is the unit of every standard error. Axis letters:
N pairs or responses, G prompts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike, NDArray

from r1jax.evaluation.plots import BLUE, GRAY, INK, MUTED, RED, RULE

Floats = NDArray[np.float64]


def clustered_mean(values: ArrayLike, groups: Sequence[Hashable]) -> tuple[float, float]:
    """Mean over N values, and its standard error where values of one group may depend on each other.

    The error is the root of the sum over groups of (sum of the group's deviations from the mean)^2, over N, with the
    factor sqrt(G / (G - 1)): with one value in each group this is the sample standard deviation over sqrt(N). The mean
    of nothing is nan, and so is the error with fewer than two groups.
    """
    x = np.asarray(values, np.float64)
    if len(x) != len(groups):
        raise ValueError(f"{len(x)} values and {len(groups)} groups")
    if not len(x):
        return math.nan, math.nan
    mean = float(x.mean())
    sums: dict[Hashable, float] = {}
    for value, group in zip(x.tolist(), groups, strict=True):
        sums[group] = sums.get(group, 0.0) + value - mean
    if len(sums) < 2:
        return mean, math.nan
    correction = len(sums) / (len(sums) - 1)
    return mean, math.sqrt(correction * sum(total**2 for total in sums.values())) / len(x)


def credit(ahead: ArrayLike) -> Floats:
    """1 where a number is above 0, 0 below, one half at 0: a tie is decided by a coin."""
    return 0.5 * (1.0 + np.sign(np.asarray(ahead, np.float64)))


def sigmoid(x: ArrayLike) -> Floats:
    """1 / (1 + e^-x) in double precision, without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(x, np.float64)))


def plain(value: float) -> float | None:
    """nan has no place in JSON: an undefined number is null."""
    return None if math.isnan(value) else float(value)


# Calibration ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Bin:
    """Predictions in [low, high), the last bin with its upper end."""

    low: float
    high: float
    count: int
    predicted: float  # mean probability; nan in an empty bin, as the next two
    observed: float  # share of what was predicted that came true
    error: float  # standard error of that share; nan also with fewer than two prompts


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Reliability by bins, and the expected calibration error: mean over predictions of |observed - predicted|."""

    bins: tuple[Bin, ...]
    ece: float


def calibrate(
    probabilities: ArrayLike, outcomes: ArrayLike, groups: Sequence[Hashable], low: float = 0.0, bins: int = 10
) -> Calibration:
    """Predicted probabilities against what came true, in `bins` bins of one width between `low` and 1.

    Args:
      probabilities: [N] in [low, 1].
      outcomes: [N] 1 where the predicted thing is so, 0 where not, between for a tie.
      groups: [N] the prompt of each.
      low: where the first bin begins.
      bins: their number.

    Raises:
      ValueError: there is nothing, or a probability is outside [low, 1] or nan.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(outcomes, np.float64)
    if not len(p) or not ((p >= low) & (p <= 1)).all():
        raise ValueError(f"{len(p)} probabilities, of which all must lie in [{low}, 1]")
    place = np.minimum(((p - low) / (1 - low) * bins).astype(int), bins - 1)
    edges = np.linspace(low, 1, bins + 1)
    rows, ece = [], 0.0
    for index in range(bins):
        members = np.flatnonzero(place == index)
        observed, error = clustered_mean(y[members], [groups[i] for i in members.tolist()])
        predicted = float(p[members].mean()) if len(members) else math.nan
        rows.append(Bin(float(edges[index]), float(edges[index + 1]), len(members), predicted, observed, error))
        if len(members):
            ece += len(members) / len(p) * abs(observed - predicted)
    return Calibration(tuple(rows), ece)


def calibrate_pairs(differences: ArrayLike, groups: Sequence[Hashable], bins: int = 5) -> Calibration:
    """Calibration of a pairwise model from reward(chosen) - reward(rejected) [N].

    Which response stands first in a pair says nothing, so each pair is turned to the response that the model prefers:
    its P(better) is sigmoid(|difference|), from 1/2 to 1, and it came true where that is the chosen one.
    """
    d = np.asarray(differences, np.float64)
    return calibrate(sigmoid(np.abs(d)), credit(d), groups, 0.5, bins)


# Length ---------------------------------------------------------------------------------------------------------------


def correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's; nan where either does not vary."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else math.nan


def ranks(values: ArrayLike) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def area_under_curve(scores: ArrayLike, positive: ArrayLike) -> float:
    """Share of pairs of a positive and another item in which the positive one has the higher score, ties half; nan
    without items of both kinds."""
    mask = np.asarray(positive, bool)
    count, others = int(mask.sum()), int((~mask).sum())
    if not count or not others:
        return math.nan
    return float(ranks(scores)[mask].sum() - count * (count + 1) / 2) / (count * others)


def length_bias(rewards: ArrayLike, lengths: ArrayLike) -> dict[str, float | None]:
    """Correlation of reward and length over responses [N]: `pearson`, and `spearman` of their ranks. None: undefined.

    A correlation is no proof of a bias: longer responses may be better ones. `length_preference` has the judge beside
    it.
    """
    return {
        "pearson": plain(correlation(rewards, lengths)),
        "spearman": plain(correlation(ranks(rewards), ranks(lengths))),
    }


def length_preference(
    differences: ArrayLike, chosen_lengths: ArrayLike, rejected_lengths: ArrayLike, groups: Sequence[Hashable]
) -> dict[str, Any]:
    """What length does in pairs [N], among those whose responses differ in length.

    `longer_by_judge`, `longer_by_model`: share in which the longer response is preferred. `accuracy_longer_better`,
    `accuracy_longer_worse`: the model's accuracy where the judge prefers the longer, and where it prefers the shorter
    response: a model that only counts tokens has 1 and 0. Each with `_se`; None: undefined.
    """
    d = np.asarray(differences, np.float64)
    gap = np.asarray(chosen_lengths, np.float64) - np.asarray(rejected_lengths, np.float64)
    by_judge, by_model, right = credit(gap), credit(np.sign(gap) * d), credit(d)
    parts = {
        "longer_by_judge": (by_judge, gap != 0),
        "longer_by_model": (by_model, gap != 0),
        "accuracy_longer_better": (right, gap > 0),
        "accuracy_longer_worse": (right, gap < 0),
    }
    figures: dict[str, Any] = {"pairs": len(d), "of_one_length": int(np.sum(gap == 0))}
    for name, (values, kept) in parts.items():
        places = np.flatnonzero(kept).tolist()
        mean, error = clustered_mean(values[places], [groups[i] for i in places])
        figures |= {name: plain(mean), f"{name}_se": plain(error)}
    return figures


def plain_calibration(calibration: Calibration) -> dict[str, Any]:
    """As JSON holds it: nan is null."""
    rows = [
        {name: plain(value) if isinstance(value, float) else value for name, value in dataclasses.asdict(b).items()}
        for b in calibration.bins
    ]
    return {"ece": calibration.ece, "bins": rows}


# Figures --------------------------------------------------------------------------------------------------------------


def _axes(title: str, x: str, y: str, size: tuple[float, float], pad: float = 8) -> tuple[Figure, Axes]:
    """Empty axes; `pad` [points] is the room between them and the title."""
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold", pad=pad)
    axes.set_xlabel(x, fontsize=8.5, color=MUTED)
    axes.set_ylabel(y, fontsize=8.5, color=MUTED)
    axes.tick_params(which="both", labelsize=8.5, colors=MUTED, length=0)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c4cbd3")
    return figure, axes


def calibration_figure(calibration: Calibration, title: str, event: str) -> Figure:
    """Observed share over predicted probability, with one standard error and each bin's count; `event`: of what."""
    figure, axes = _axes(title, f"predicted P({event})", "observed share", (4.4, 3.9))
    low = calibration.bins[0].low
    axes.plot([low, 1], [low, 1], color=GRAY, linewidth=1.2, linestyle=(0, (4, 3)), label="calibrated")
    rows = [b for b in calibration.bins if b.count]
    axes.errorbar(
        [b.predicted for b in rows],
        [b.observed for b in rows],
        yerr=[0.0 if math.isnan(b.error) else b.error for b in rows],
        color=BLUE,
        linewidth=1.8,
        marker="o",
        markersize=4.5,
        capsize=2.5,
        label=f"held out, ECE {calibration.ece:.3f}",
    )
    axes.set_xlim(low - 0.03, 1.03)
    axes.set_ylim(-0.08, 1.03)
    for b in rows:  # below all points, where no line runs
        axes.annotate(str(b.count), (b.predicted, -0.06), ha="center", fontsize=7.5, color=MUTED)
    axes.legend(loc="upper left", frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def length_figure(rewards: ArrayLike, lengths: ArrayLike, good: ArrayLike, names: tuple[str, str]) -> Figure:
    """Reward over length of each response [N], in two colors: `good` ones (bool) and the others, called `names`."""
    x, y, mask = np.asarray(lengths), np.asarray(rewards), np.asarray(good, bool)
    bias = length_bias(y, x)
    told = ", ".join(f"{name} {value:.2f}" for name, value in bias.items() if value is not None) or "undefined"
    figure, axes = _axes(f"Reward and length: {told}", "tokens of the response", "reward", (4.9, 3.5), pad=24)
    for chosen, color, name in ((mask, BLUE, names[0]), (~mask, RED, names[1])):
        axes.scatter(x[chosen], y[chosen], s=10, alpha=0.55, linewidths=0, color=color, label=name)
    axes.legend(  # between title and axes, where it covers no point
        loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=2, frameon=False, fontsize=8.5, labelcolor=INK
    ).set_in_layout(False)
    return figure
