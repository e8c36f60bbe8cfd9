"""Test-time scaling: accuracy over the length of the chain of thought, as an evaluation's budgets leave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from r1jax.evaluation.plots import BLUE, INK, MUTED, RED, RULE, WIDE


def budget_curve(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """pass@1 (with one standard error) and cons@k over mean thinking tokens; None where nothing is right or wrong.

    rows: `budgets` of an evaluation's summary; each point is named by its budget, the one without is hollow.
    """
    told = [row for row in rows if row["pass_at_1"] is not None]
    if not told:
        return None
    figure = Figure(figsize=WIDE, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
    axes = figure.add_subplot()
    _style(axes)
    x = [row["thinking_tokens"] for row in told]
    axes.plot(x, [row["cons_at_k"] for row in told], color=RED, linewidth=1.6, label=f"cons@{told[0]['k']}")
    errors = [row["pass_at_1_se"] or 0.0 for row in told]
    passed = [row["pass_at_1"] for row in told]
    axes.errorbar(x, passed, yerr=errors, color=BLUE, linewidth=2.0, capsize=2.5, label="pass@1 ± standard error")
    for row in told:
        free = row["budget"] is None
        spot = (row["thinking_tokens"], row["pass_at_1"])
        axes.plot(*spot, marker="o", markersize=5, color=BLUE, markerfacecolor="white" if free else BLUE)
        name = "no budget" if free else f"{row['budget']:,}"
        axes.annotate(name, spot, (0, -13), textcoords="offset points", ha="center", fontsize=7.5, color=MUTED)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")
    return figure


def _style(axes: Axes) -> None:
    axes.set_title("Accuracy by thinking budget", loc="left", fontsize=10.5, color=INK, fontweight="bold", pad=8)
    axes.set_xlabel("thinking tokens per response, mean", fontsize=8.5, color=MUTED)
    axes.set_ylabel("share right", fontsize=8.5, color=MUTED)
    axes.tick_params(which="both", labelsize=8.5, colors=MUTED, length=0)
    axes.set_ylim(-0.04, 1.02)
    axes.set_xlim(left=0)
    axes.margins(x=0.08)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
