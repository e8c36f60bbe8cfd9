"""The page of an experiment: what is claimed, what the seeds say of it, a table with intervals, curves with a band."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from r1jax.evaluation import page, plots
from r1jax.evaluation.experiments import (
    SHARE,
    Claim,
    Curve,
    Experiment,
    Metric,
    Results,
    Trend,
    pairs,
    read_curves,
    read_results,
)
from r1jax.evaluation.monitor import DROP
from r1jax.evaluation.records import Series, StageRecord
from r1jax.evaluation.seeds import OverSeeds, over_seeds, paired_difference
from r1jax.evaluation.stage_sections import monitors

METHOD = (
    "Mean over seeds ± its standard error, [95 % interval by Student's t over seeds], and each seed's value. A "
    "difference is taken within each seed, over the seeds that both arms have. Nothing is corrected for looking at "
    "several figures."
)
DRAWN = (
    "Line: mean over the seeds, of which there are as many as the legend says; band or bar: ± one standard error over "
    "seeds; pale lines: the seeds. Below: dots are seeds, squares their means with the 95 % interval."
)
TREND_COLUMNS = 3  # of a legend


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a claim is seen here."""

    word: str
    text: str  # with the numbers


def verdict(experiment: Experiment, results: Results, claim: Claim) -> Verdict:
    """Compares a claim with the paired difference of its two arms."""
    metric = next(metric for metric in experiment.metrics if metric.label == claim.metric)
    values = results.values[claim.metric]
    found = paired_difference(values[claim.arm], values[claim.than])
    if found.seeds == 0:
        return Verdict("not known", "No seed has both arms.")
    numbers = f"{claim.metric}, {claim.arm} − {claim.than}: {' '.join(difference_text(found, metric))}."
    if found.seeds == 1:
        return Verdict("one seed", f"{numbers} Without a second seed there is no interval, so nothing can be said.")
    beyond = found.low > 0 or found.high < 0
    if claim.direction == "equal":
        if beyond:
            return Verdict("differs", f"{numbers} The interval does not hold 0.")
        return Verdict(
            "no difference seen", f"{numbers} The interval holds 0, which does not show that they are equal."
        )
    word = "agrees" if found.mean > 0 else "differs" if found.mean < 0 else "no difference"
    if beyond:
        return Verdict(word, f"{numbers} The direction {'is' if found.mean > 0 else 'is NOT'} the claimed one.")
    return Verdict(f"{word}, not beyond chance", f"{numbers} The interval holds 0.")


def value_text(value: float, metric: Metric) -> str:
    """A figure in its unit."""
    if math.isnan(value):
        return "–"
    return f"{100 * value:.1f} %" if metric.unit == SHARE else f"{value:.4g}"


def summary_text(found: OverSeeds, metric: Metric) -> tuple[str, str]:
    """Mean ± standard error, and the interval."""
    if found.seeds < 2:
        return value_text(found.mean, metric), ""
    if metric.unit == SHARE:
        return f"{100 * found.mean:.1f} ± {100 * found.error:.1f} %", f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"
    return f"{found.mean:.4g} ± {found.error:.2g}", f"[{found.low:.4g}, {found.high:.4g}]"


def difference_text(found: OverSeeds, metric: Metric) -> tuple[str, str]:
    """A paired difference, in points where the figure is a share; its interval, and over how many seeds."""
    if found.seeds == 0:
        return "–", ""
    scale, unit = (100, " points") if metric.unit == SHARE else (1, f" {metric.unit}".rstrip())
    if found.seeds == 1:
        return f"{scale * found.mean:+.3g}{unit}", "1 seed"
    interval = f"[{scale * found.low:+.3g}, {scale * found.high:+.3g}]"
    return f"{scale * found.mean:+.3g} ± {scale * found.error:.2g}{unit}", f"{interval}, {found.seeds} seeds"


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text: a figure, and what stands below it in small."""

    head: tuple[str, ...]
    rows: tuple[tuple[tuple[str, str], ...], ...]

    def html(self) -> str:
        """For the page."""
        rows = [[f"{page.text(a)}<br><small>{page.text(b)}</small>" for a, b in row] for row in self.rows]
        return page.table([page.text(cell) for cell in self.head], rows)

    def markdown(self) -> str:
        """For a README."""
        lines = [list(self.head), ["---"] * len(self.head)]
        lines += [[f"{a} {b}".rstrip() for a, b in row] for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def make_table(experiment: Experiment, results: Results) -> Table:
    """A row for every metric: each arm, and every other arm's difference from the first."""
    first, *others = experiment.arms
    head = ("", *experiment.arms, *(f"{arm} − {first}" for arm in others))
    rows = []
    for metric in experiment.metrics:
        values = results.values[metric.label]
        cells = [(metric.label, "" if metric.unit == SHARE else metric.unit)]
        for arm in experiment.arms:
            each = ", ".join(f"{seed}: {value_text(value, metric)}" for seed, value in sorted(values[arm].items()))
            mean, interval = summary_text(over_seeds(list(values[arm].values())), metric)
            cells.append((mean, "; ".join(part for part in (interval, each) if part)))
        cells += [difference_text(paired_difference(values[arm], values[first]), metric) for arm in others]
        rows.append(tuple(cells))
    return Table(head, tuple(rows))


def _colors(arms: Sequence[str]) -> list[str]:
    if len(arms) <= len(plots.LINE_COLORS):
        return list(plots.LINE_COLORS[: len(arms)])
    return [mpl.colors.to_hex(shade) for shade in mpl.colormaps["viridis"](np.linspace(0.1, 0.85, len(arms)))]


def metric_figure(metric: Metric, values: Mapping[str, Mapping[int, float]]) -> Figure:
    """Every arm's seeds as dots, their mean and its 95 % interval."""
    figure, axes = plots.canvas(plots.SMALL, metric.label, "" if metric.unit == SHARE else metric.unit, legend=False)
    for place, (arm, color) in enumerate(zip(values, _colors(list(values)), strict=True)):
        each = list(values[arm].values())
        found = over_seeds(each)
        axes.plot([place] * len(each), each, linestyle="none", marker="o", markersize=4, color=color, alpha=0.45)
        if found.seeds > 1:
            axes.errorbar(place + 0.12, found.mean, found.mean - found.low, color=color, marker="s", capsize=3)
    axes.set_xticks(range(len(values)), list(values))
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.set_xlabel("")
    _percent_axis(axes, metric.unit)
    return figure


def curve_figure(curve: Curve, lines: Mapping[str, Mapping[int, Series]]) -> Figure | None:
    """A metric over steps: each arm's mean over the seeds, at the steps that all of them logged, with its error."""
    if not any(lines.values()):
        return None
    figure, axes = plots.canvas(plots.WIDE, curve.label, "" if curve.unit == SHARE else curve.unit, legend=True)
    for (arm, seeds), color in zip(lines.items(), _colors(list(lines)), strict=True):
        for line in seeds.values():
            axes.plot(line.steps, line.values, color=color, linewidth=0.7, alpha=0.25)
        if not seeds:
            continue
        steps, table = common_steps(list(seeds.values()))
        mean = table.mean(axis=0)
        axes.plot(steps, mean, color=color, linewidth=2.0, label=f"{arm} ({len(seeds)})")
        if len(seeds) > 1:
            error = table.std(axis=0, ddof=1) / math.sqrt(len(seeds))
            axes.fill_between(steps, mean - error, mean + error, color=color, alpha=0.18, linewidth=0)
    _percent_axis(axes, curve.unit)
    plots.add_legend(axes)
    return figure


def trend_figure(trend: Trend, experiment: Experiment, results: Results) -> Figure:
    """Means over seeds, with their errors, over the arms."""
    figure, axes = plots.canvas(plots.WIDE, trend.label, "", legend=True)
    arms = list(experiment.arms)
    for (name, label), color in zip(trend.lines.items(), _colors(list(trend.lines)), strict=True):
        found = [over_seeds(list(results.values[label][arm].values())) for arm in arms]
        means = [one.mean for one in found]
        errors = [one.error if one.seeds > 1 else 0.0 for one in found]  # one seed has none
        axes.errorbar(range(len(arms)), means, errors, color=color, marker="o", markersize=4, capsize=2, label=name)
    axes.set_xticks(range(len(arms)), arms)
    axes.set_xlabel(trend.quantity)
    _percent_axis(axes, next(metric.unit for metric in experiment.metrics if metric.label in trend.lines.values()))
    plots.add_legend(axes, columns=TREND_COLUMNS)
    pad = 12 + 12 * -(-len(trend.lines) // TREND_COLUMNS)  # for each line of the legend
    axes.set_title(trend.label, loc="left", fontsize=10.5, color=plots.INK, fontweight="bold", pad=pad)
    return figure


def common_steps(lines: Sequence[Series]) -> tuple[np.ndarray, np.ndarray]:
    """The steps [n] that all series have, and their values [series, n] there."""
    steps = lines[0].steps
    for line in lines[1:]:
        steps = np.intersect1d(steps, line.steps)
    return steps, np.stack([line.values[np.searchsorted(line.steps, steps)] for line in lines])


def _percent_axis(axes: mpl.axes.Axes, unit: str) -> None:
    if unit == SHARE:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))


@dataclasses.dataclass(frozen=True)
class Report:
    """What was written, and the same as text."""

    path: Path
    markdown: str


def write_experiment_report(experiment: Experiment, out: Path, stale: Sequence[str] = ()) -> Report:
    """Writes `report.html` and `plots/*.png` into the folder of an experiment's runs.

    Args:
      experiment: what is looked at.
      out: the folder with the runs, `<arm>/seed<N>` each.
      stale: in words, runs that were made by another configuration than the experiment now has.

    Raises:
      ConfigError: a metric is not in a summary.
    """
    results = read_results(experiment, out)
    table = make_table(experiment, results)
    claims = [(claim, verdict(experiment, results, claim)) for claim in experiment.claims]
    warnings = [f"missing: {text}" for text in results.absent] + [f"made by another config: {text}" for text in stale]
    figures = {f"curve{i}": curve_figure(c, read_curves(experiment, out, c)) for i, c in enumerate(experiment.curves)}
    figures |= {f"trend{i}": trend_figure(trend, experiment, results) for i, trend in enumerate(experiment.trends)}
    figures |= {f"metric{i}": metric_figure(m, results.values[m.label]) for i, m in enumerate(experiment.metrics)}
    folder = out / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {name: plots.png(figure) for name, figure in figures.items() if figure is not None}
    for name, data in drawn.items():
        (folder / f"{name}.png").write_bytes(data)
    path = out / "report.html"
    body = _body(experiment, table, claims, warnings, drawn) + _monitors(experiment, out)
    path.write_text(page.document(experiment.title, body), encoding="utf-8")
    return Report(path, _markdown(experiment, table, claims, warnings))


def _body(
    experiment: Experiment,
    table: Table,
    claims: Sequence[tuple[Claim, Verdict]],
    warnings: Sequence[str],
    drawn: Mapping[str, bytes],
) -> str:
    told = [
        f'<p><b>The paper:</b> {page.text(claim.text)} <span class="muted">{page.text(claim.source)}</span><br>'
        f"<b>Here: {page.text(found.word)}.</b> {page.text(found.text)}</p>"
        for claim, found in claims
    ]
    curves = "".join(page.picture(data, name) for name, data in drawn.items() if name.startswith(("curve", "trend")))
    dots = "".join(page.picture(data, name) for name, data in drawn.items() if name.startswith("metric"))
    arms = [[page.text(name), f"<code>{page.text(_arm_text(experiment, name))}</code>"] for name in experiment.arms]
    parts = [
        f'<p class="muted">r1jax experiment, seeds {", ".join(map(str, experiment.seeds))}</p>',
        f"<h1>{page.text(experiment.title)}</h1><p>{page.text(experiment.question)}</p>",
        *(f'<p><span class="chip warn">{page.text(text)}</span></p>' for text in warnings),
        *told,
        f'<h2>Figures</h2>{table.html()}<p class="muted">{METHOD}</p>',
        f'<h2>Curves and seeds</h2><div class="wide">{curves}</div><p class="muted">{DRAWN}</p>',
        f'<div class="small">{dots}</div>',
        f"<h2>Arms</h2>{page.table(['arm', 'fields that differ'], arms)}",
    ]
    return "\n".join(part for part in parts if part)


def _monitors(experiment: Experiment, out: Path) -> str:
    """Every run's preference rewards beside what rules grade."""
    if not experiment.monitored:
        return ""
    runs = [
        StageRecord(f"{arm}, seed {seed}", experiment.folder(out, arm, seed) / experiment.monitored.format(arm=arm))
        for arm, seed in pairs(experiment)
    ]
    return monitors(runs, DROP)


def _arm_text(experiment: Experiment, name: str) -> str:
    arm = experiment.arms[name]
    if arm.run:
        return f"in the runs of {arm.run}"
    config = f"{experiment.config.name}:{arm.argument or experiment.argument}"
    return "; ".join([config, *(f"{field} = {value!r}" for field, value in arm.fields.items())])


def _markdown(
    experiment: Experiment, table: Table, claims: Sequence[tuple[Claim, Verdict]], warnings: Sequence[str]
) -> str:
    told = [f"- {claim.source}: {claim.text} Here: **{found.word}**. {found.text}" for claim, found in claims]
    lines = [f"# {experiment.title}", experiment.question, "\n".join(told), table.markdown(), METHOD]
    return "\n\n".join(line for line in [*lines, "\n".join(f"- {text}" for text in warnings)] if line)
