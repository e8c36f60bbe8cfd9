"""The figures of a report, drawn with matplotlib's Agg canvas (no display, no global state).

Accuracy and response length over RL steps are drawn in the manner of figures 2 and 3 of the R1 paper (v1); all other
metrics are small panels of one style. A metric that was not logged is not drawn.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from r1jax.evaluation.records import Row, Series, layer_series, series

# One color per meaning in every figure.
BLUE = "#2166ac"  # the mean of a metric, pass@1
RED = "#c8443a"  # majority vote, maxima
TEAL = "#14807a"  # response length
GRAY = "#a3abb5"  # training batches, raw values behind a running mean
INK = "#1f2933"
MUTED = "#66717e"
RULE = "#e3e7ec"
LINE_COLORS = (BLUE, RED, TEAL)
SECTIONS = ("#2166ac", "#e0a030", "#14807a", "#7b8794")
MAX_SECTIONS = len(SECTIONS)

WIDE = (5.6, 3.5)  # inches
SMALL = (4.4, 2.75)
DPI = 170
SMOOTH_FROM = 120  # points from which a running mean is drawn over the raw values
# Fields of a row's "time" that are not seconds of a part of the step.
NOT_SECTIONS = ("compilations", "step", "elapsed", "unix", "matrix_product_rate")


@dataclasses.dataclass(frozen=True)
class Panel:
    """One small figure: `lines` are (metric, label); scale is 'free', 'zero', 'share', 'percent', 'log' or 'layers'."""

    name: str  # of the PNG
    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    scale: str = "free"


RL_PANELS = (
    Panel("reward", "Reward", "mean per response", (("reward", "reward"),)),
    Panel("format", "Well-formed responses", "share of responses", (("format", "format"),), "share"),
    Panel("language", "Language consistency", "share of words", (("language", "language"),), "share"),
    Panel("reflection", "Reflection words", "per response", (("reflection_words", "words"),), "zero"),
    Panel("kl", "KL to the reference (k3)", "nats per token", (("kl_ref", "KL"),), "zero"),
    Panel("entropy", "Entropy of the policy", "nats per token", (("entropy", "entropy"),), "zero"),
    Panel(
        "clip",
        "Clipped tokens",
        "share of tokens",
        (("clip_low", "low"), ("clip_high", "high")),
        "percent",
    ),
    Panel("ratio", "Largest probability ratio", "new / old policy", (("ratio_max", "max"),)),
    Panel("truncation", "Cut by the length limit", "share of responses", (("truncation_rate", "cut"),), "percent"),
    Panel("ungradable", "Ungradable responses", "count per step", (("ungradable", "ungradable"),), "zero"),
    Panel(
        "zero_variance", "Groups without variance", "share of groups", (("zero_variance_groups", "groups"),), "percent"
    ),
    Panel(
        "logprob_gap",
        "Log-prob gap, sampler to trainer",
        "nats, absolute",
        (("logprob_gap_mean", "mean"), ("logprob_gap_max", "max")),
        "log",
    ),
    Panel(
        "expert_difference",
        "Other experts than the sampler's",
        "share of tokens",
        (("expert_difference", "different"),),
        "percent",
    ),
    Panel(
        "expert_load",
        "Expert load, max / mean",
        "1 is even",
        (("expert_load_max_over_mean", "load"),),
        "layers",
    ),
    Panel("grad_norm", "Gradient norm", "before clipping", (("grad_norm", "norm"),), "zero"),
    Panel("learning_rate", "Learning rate", "", (("learning_rate", "rate"),), "zero"),
)

PRETRAIN_PANELS = (
    Panel("loss", "Next-token loss", "nats per token", (("loss", "training"), ("eval/loss", "held out"))),
    Panel("mtp_loss", "Second-token (MTP) loss", "nats per token", (("mtp_loss", "loss"),)),
    Panel(
        "mtp_acceptance",
        "Second token accepted",
        "share of tokens",
        (("mtp_acceptance", "greedy"), ("mtp_acceptance_sampled", "sampled")),
        "share",
    ),
    Panel(
        "expert_load",
        "Expert load, max / mean",
        "1 is even",
        (("expert_load_max_over_mean", "load"),),
        "layers",
    ),
    Panel("grad_norm", "Gradient norm", "before clipping", (("grad_norm", "norm"),), "zero"),
    Panel("learning_rate", "Learning rate", "", (("learning_rate", "rate"),), "zero"),
)

REWARD_MODEL_PANELS = (
    Panel("loss", "Preference loss", "nats per pair or label", (("loss", "loss"),)),
    Panel("accuracy", "Training batches judged right", "share", (("accuracy", "accuracy"),), "share"),
    Panel("difference", "Reward of the preferred response", "above the other's", (("difference", "difference"),)),
    Panel("p_safe", "Safe responses", "share", (("p_safe", "by the model"), ("safe", "by the labels")), "share"),
    Panel("grad_norm", "Gradient norm", "before clipping", (("grad_norm", "norm"),), "zero"),
    Panel("learning_rate", "Learning rate", "", (("learning_rate", "rate"),), "zero"),
)

PANELS = {
    "rl": RL_PANELS,
    "pretrain": PRETRAIN_PANELS,
    "sft": PRETRAIN_PANELS,
    "reward_model": REWARD_MODEL_PANELS,
}


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centered mean over `width` points [n]; at the ends over those that exist."""
    half = width // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def canvas(size: tuple[float, float], title: str, unit: str, *, legend: bool) -> tuple[Figure, Axes]:
    """An empty figure over steps, with room for a legend below the title if there is to be one."""
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold", pad=24 if legend else 8)
    axes.set_xlabel("step", fontsize=8.5, color=MUTED)
    axes.set_ylabel(unit, fontsize=8.5, color=MUTED)
    axes.tick_params(which="both", labelsize=8.5, colors=MUTED, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c4cbd3")
    return figure, axes


def add_legend(axes: Axes, columns: int = 4, size: float = 8.5, handles: Sequence[Artist] | None = None) -> None:
    """Above the axes and below the title, where it can cover no line; of all labelled lines if not of `handles`."""
    legend = axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=size,
        labelcolor=INK,
        borderaxespad=0.2,
        handlelength=1.3,
        handletextpad=0.5,
        columnspacing=1.2,
    )
    legend.set_in_layout(False)  # its room is the pad of the title; it must not squeeze the axes


def _draw(axes: Axes, line: Series, color: str, label: str, *, width: float = 1.8, markers: bool = True) -> None:
    """A line; of many points the raw values in a pale tone and a running mean over 1/40 of them."""
    n = len(line.steps)
    if n >= SMOOTH_FROM:
        axes.plot(line.steps, line.values, color=color, linewidth=0.7, alpha=0.25)
        axes.plot(line.steps, running_mean(line.values, max(3, n // 40)), color=color, linewidth=width, label=label)
        return
    marker = "o" if markers and n <= 40 else None
    axes.plot(line.steps, line.values, color=color, linewidth=width, marker=marker, markersize=3.2, label=label)


def _change(line: Series) -> str:
    """First and last value of a share, in percent."""
    return f"{100 * line.first:.1f} → {100 * line.last:.1f} %"


def accuracy_figure(rows: Sequence[Row], k: int | None = None) -> Figure | None:
    """Held-out pass@1 (with one standard error) and cons@k over RL steps, and the training batches' accuracy."""
    passed, error = series(rows, "eval/pass_at_1"), series(rows, "eval/pass_at_1_se")
    consensus, training = series(rows, "eval/cons_at_k"), series(rows, "accuracy")
    if passed is None and training is None:
        return None
    figure, axes = canvas(WIDE, "Accuracy during RL", "share of responses right", legend=True)
    if training is not None:
        color, width = (GRAY, 1.1) if passed is not None else (BLUE, 1.8)
        _draw(axes, training, color, "training", width=width, markers=False)
    if consensus is not None:
        label = f"cons@{k if k else 'k'}  {_change(consensus)}"
        _draw(axes, consensus, RED, label, width=2.0)
    if passed is not None:
        label = f"pass@1  {_change(passed)}"
        _draw(axes, passed, BLUE, label, width=2.2)
        if error is not None and np.array_equal(error.steps, passed.steps):
            low, high = passed.values - error.values, passed.values + error.values
            axes.fill_between(passed.steps, low, high, color=BLUE, alpha=0.18, linewidth=0)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    add_legend(axes)
    return figure


def length_figure(rows: Sequence[Row]) -> Figure | None:
    """Mean response length over RL steps with a band of one standard deviation over the batch's responses."""
    mean, std = series(rows, "length_mean"), series(rows, "length_std")
    held_out, limit = series(rows, "eval/length_mean"), series(rows, "length_limit")
    if mean is None and held_out is None:
        return None
    figure, axes = canvas(WIDE, "Mean response length during RL", "tokens per response", legend=True)
    if mean is not None:
        if std is not None and np.array_equal(std.steps, mean.steps):
            low, high = np.maximum(mean.values - std.values, 0), mean.values + std.values
            axes.fill_between(mean.steps, low, high, color=TEAL, alpha=0.15, linewidth=0, label="± 1 std of responses")
        _draw(axes, mean, TEAL, f"training  {mean.first:,.0f} → {mean.last:,.0f} tokens", width=2.0, markers=False)
    if held_out is not None:
        axes.plot(
            held_out.steps,
            held_out.values,
            linestyle="none" if mean is not None else "-",
            marker="o",
            markersize=4.5,
            color=INK,
            label="held out",
        )
    if limit is not None:
        axes.step(
            limit.steps, limit.values, where="post", color=RED, linewidth=1.2, linestyle=(0, (4, 3)), label="limit"
        )
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    add_legend(axes)
    return figure


def _scale_axis(axes: Axes, scale: str, values: np.ndarray) -> None:
    if scale == "share":
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    elif scale == "percent":
        axes.set_ylim(0, 1.1 * float(values.max()))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    elif scale == "log" and values.min() > 0:
        axes.set_yscale("log")
    elif scale in ("zero", "log"):
        axes.set_ylim(0, 1.1 * float(values.max()) or 1.0)
    elif scale == "layers":
        axes.set_ylim(0.9, max(1.08 * float(values.max()), 1.5))
        axes.axhline(1.0, color="#c4cbd3", linewidth=1, zorder=0)
    if scale in ("zero", "free") and 0 < np.abs(values).max() < 1e-2:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
        axes.yaxis.get_offset_text().set(fontsize=8, color=MUTED)


def _panel_lines(panel: Panel, rows: Sequence[Row]) -> dict[str, tuple[Series, str]]:
    """label -> (series, color) of a panel's metrics that were logged."""
    if panel.scale == "layers":
        layers = layer_series(rows, panel.lines[0][0])
        shades = mpl.colormaps["viridis"](np.linspace(0.1, 0.8, max(len(layers), 2)))
        colors = [mpl.colors.to_hex(shade) for shade in shades] if len(layers) > 1 else [BLUE]
        return {label: (line, color) for (label, line), color in zip(layers.items(), colors, strict=False)}
    found = [(label, series(rows, name), color) for (name, label), color in zip(panel.lines, LINE_COLORS, strict=False)]
    return {label: (line, color) for label, line, color in found if line is not None}


def always_zero(kind: str, rows: Sequence[Row]) -> list[str]:
    """Titles of the panels whose metric was logged and always zero: a sentence says more than a flat line."""
    titles = []
    for panel in PANELS.get(kind, ()):
        lines = _panel_lines(panel, rows)
        if (
            lines
            and panel.scale in ("zero", "percent", "log")
            and not any(line.values.any() for line, _ in lines.values())
        ):
            titles.append(panel.title)
    return titles


def panel_figure(panel: Panel, rows: Sequence[Row]) -> Figure | None:
    """One metric (or a few) over steps; None where none was logged."""
    lines = _panel_lines(panel, rows)
    if not lines:
        return None
    # More layers than a legend can hold: the shade says how deep a layer is, and the first and last are named.
    named = set(lines) if len(lines) <= 4 else {next(iter(lines)), next(reversed(lines))}
    figure, axes = canvas(SMALL, panel.title, panel.unit, legend=len(lines) > 1)
    for label, (line, color) in lines.items():
        _draw(axes, line, color, label if label in named else f"_{label}", width=1.7)
    _scale_axis(axes, panel.scale, np.concatenate([line.values for line, _ in lines.values()]))
    if len(lines) > 1:
        add_legend(axes)
    return figure


def time_sections(rows: Sequence[Row]) -> dict[str, Series]:
    """Seconds of each part of a step over steps, the longest part first; rates and totals are left out."""
    names = {name for row in rows for name in row.get("time", {})}
    parts = {
        name: series(rows, f"time/{name}") for name in names if name not in NOT_SECTIONS and "per_second" not in name
    }
    found = {name: line for name, line in parts.items() if line is not None}
    return dict(sorted(found.items(), key=lambda item: -float(item[1].values.sum())))


def _main_parts(steps: np.ndarray, sections: Mapping[str, Series]) -> dict[str, np.ndarray]:
    """Seconds [steps] of the longest parts; what does not fit into one row of the legend is summed as 'other'."""
    shown = MAX_SECTIONS if len(sections) <= MAX_SECTIONS else MAX_SECTIONS - 1
    parts: dict[str, np.ndarray] = {}
    for index, (name, line) in enumerate(sections.items()):
        values = np.zeros(len(steps))
        values[np.searchsorted(steps, line.steps)] = line.values
        label = name.replace("_", " ") if index < shown else "other"
        parts[label] = parts.get(label, 0.0) + values
    return parts


def time_figure(rows: Sequence[Row]) -> Figure | None:
    """Wall time of a step, stacked by its parts; a part that a step does not have counts as 0 s there."""
    sections = time_sections(rows)
    if not sections:
        return None
    steps = np.unique(np.concatenate([line.steps for line in sections.values()]))
    parts = _main_parts(steps, sections)
    stack = np.stack(list(parts.values()))
    if len(steps) >= SMOOTH_FROM:
        stack = np.stack([running_mean(values, len(steps) // 40) for values in stack])
    figure, axes = canvas(SMALL, "Wall time of a rollout", "seconds per part", legend=True)
    axes.stackplot(
        steps, stack, labels=list(parts), colors=SECTIONS, step="mid" if len(steps) < 60 else None, linewidth=0
    )
    # The first step compiles; it may stand out of the picture so that the others can be read.
    totals = stack.sum(axis=0)
    axes.set_ylim(0, 1.25 * float(np.quantile(totals, 0.95)) if len(steps) > 20 else 1.05 * float(totals.max()))
    axes.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
    add_legend(axes, columns=5)
    return figure


def rate_figure(rows: Sequence[Row]) -> Figure | None:
    """Tokens per second: every wall-clock field that is a rate."""
    names = sorted({name for row in rows for name in row.get("time", {}) if "per_second" in name})
    if not names:
        return None
    panel = Panel(
        "rate",
        "Throughput",
        "tokens per second",
        tuple((f"time/{name}", name.replace("_tokens_per_second", "").replace("_", " ")) for name in names[:3]),
        "zero",
    )
    return panel_figure(panel, rows)


def stage_figures(kind: str, rows: Sequence[Row], k: int | None = None) -> Mapping[str, Figure]:
    """All figures that the rows of a stage allow, by name: the wide ones first, then panels, then timing."""
    figures: dict[str, Figure | None] = {}
    if kind == "rl":
        figures["accuracy"] = accuracy_figure(rows, k)
        figures["length"] = length_figure(rows)
    flat = always_zero(kind, rows)
    for panel in (panel for panel in PANELS.get(kind, ()) if panel.title not in flat):
        figures[panel.name] = panel_figure(panel, rows)
    figures["time"] = time_figure(rows)
    figures["rate"] = rate_figure(rows)
    return {name: figure for name, figure in figures.items() if figure is not None}
