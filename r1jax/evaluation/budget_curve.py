"""Test-time scaling: accuracy over the length of the chain of thought, as an evaluation's budgets leave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from r1jax.evaluation.plots import BLUE, INK, MUTED, RED, RULE, WIDE

NEAR = 0.06  # of the axis: a budget's name closer to the one before it would cover it


def budget_curve(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """pass@1 (with one standard error) and cons@k over mean thinking tokens; None where nothing is right or wrong.

    rows: `budgets` of an evaluation's summary. Points are named by their budget; the one without is hollow.
    """
    told = [row for row in rows if row["pass_at_1"] is not None]
    if not told:
        return None
    figure = Figure(figsize=WIDE, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
    axes = figure.add_subplot()
    x, passed = ([row[name] for row in told] for name in ("thinking_tokens", "pass_at_1"))
    voted = [row for row in told if row["cons_at_k"] is not None]
    if voted:
        votes = [row["cons_at_k"] for row in voted]
        axes.plot(
            [row["thinking_tokens"] for row in voted], votes, color=RED, linewidth=1.6, label=f"cons@{told[0]['k']}"
        )
    errors = [row["pass_at_1_se"] or 0.0 for row in told]
    low, high = ([value + sign * e for value, e in zip(passed, errors, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(x, passed, color=BLUE, linewidth=2.0, label="pass@1 ± standard error")
    named = -1.0
    for row in told:
        free, spot = row["budget"] is None, (row["thinking_tokens"], row["pass_at_1"])
        axes.plot(*spot, marker="o", markersize=5, color=BLUE, markerfacecolor="white" if free else BLUE)
        if not free and spot[0] - named < NEAR * max(x):
            continue
        name, place, side = ("no budget", (7, -3), "left") if free else (f"{row['budget']:,}", (-4, 5), "right")
        named = named if free else spot[0]
        axes.annotate(name, spot, place, textcoords="offset points", ha=side, fontsize=8, color=INK)
    _style(axes, max(x), 1.15 * max(max(high), *(row["cons_at_k"] or 0.0 for row in told)))
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")
    return figure


def _style(axes: Axes, right: float, top: float) -> None:
    """right, top: of what is drawn."""
    axes.set_title("Accuracy by thinking budget", loc="left", fontsize=10.5, color=INK, fontweight="bold", pad=8)
    axes.set_xlabel("thinking tokens per response, mean; numbers in the figure are budgets", fontsize=8.5, color=MUTED)
    axes.set_ylabel("share right", fontsize=8.5, color=MUTED)
    axes.tick_params(which="both", labelsize=8.5, colors=MUTED, length=0)
    top = min(max(top, 0.1), 1.0)
    axes.set_ylim(-0.08 * top, 1.08 * top)  # room for a name below a point at 0
    axes.set_xlim(0, 1.16 * right)  # room for a name behind the last point
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
