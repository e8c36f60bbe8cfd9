"""One page per run: what was run, before against after RL, the curves, and samples with each reward.

`write_report` reads the stage folders of a workdir (config.json, metrics.jsonl, samples.jsonl, summary.json) and writes
`report.html`, which needs no other file and no network, and the same figures as `plots/<stage>_<figure>.png`. The
summary of an evaluation uses the names of `estimators.summarize`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from r1jax.evaluation import estimators, page, sections
from r1jax.evaluation.records import StageRecord, find_stages, random_samples, series

SAMPLES_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Measured:
    """The figures of one evaluation and what to call it."""

    label: str
    figures: Mapping[str, Any]
    record: StageRecord


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of the before/after table: how to write one evaluation's figure and the change between two."""

    label: str
    show: Callable[[Mapping[str, Any]], str]
    change: Callable[[Mapping[str, Any], Mapping[str, Any]], str] = lambda before, after: ""


def _share(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda figures: sections.percent(figures.get(key))


def _points(key: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], str]:
    def change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
        if before.get(key) is None or after.get(key) is None:
            return ""
        return f"{100 * (after[key] - before[key]):+.1f} points"

    return change


def _pass_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    pairs = [(figures.get("pass_at_1"), figures.get("pass_at_1_se")) for figures in (before, after)]
    if any(value is None for pair in pairs for value in pair):
        return _points("pass_at_1")(before, after)
    change, error = estimators.difference(pairs[0], pairs[1])  # type: ignore[arg-type]
    return f"{100 * change:+.1f} points <small>± {100 * error:.1f}</small>"


def _factor(key: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], str]:
    def change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
        return f"× {after[key] / before[key]:.2f}" if before.get(key) and after.get(key) is not None else ""

    return change


def _length(figures: Mapping[str, Any]) -> str:
    shown, error = sections.number(figures.get("length_mean")), figures.get("length_mean_se")
    return shown if error is None else f"{shown} <small>± {error:.1f}</small>"


def _ungradable(figures: Mapping[str, Any]) -> str:
    if figures.get("ungradable") is None:
        return "–"
    total = (figures.get("problems") or 0) * (figures.get("k") or 0)
    return f"{figures['ungradable']:,}" + (f" <small>of {total:,}</small>" if total else "")


def _protocol(figures: Mapping[str, Any]) -> str:
    parts = [f"{figures['problems']:,} problems × {figures.get('k')}"] if figures.get("problems") else []
    parts += [f"{name} {figures[key]:g}" for key, name in (("temperature", "T"), ("top_p", "top-p")) if key in figures]
    return "<small>" + (", ".join(parts) or "–") + "</small>"


LINES = (
    Line("pass@1 <small>± standard error over problems</small>", sections.share, _pass_change),
    Line("cons@k <small>majority vote, [95 % bootstrap interval]</small>", sections.consensus, _points("cons_at_k")),
    Line("Mean response length <small>tokens</small>", _length, _factor("length_mean")),
    Line("Well-formed responses", _share("format"), _points("format")),
    Line("Words in the prompt's language", _share("language"), _points("language")),
    Line(
        "Reflection words per response",
        lambda figures: sections.number(figures.get("reflection_words"), 2),
        _factor("reflection_words"),
    ),
    Line("Cut by the length limit", _share("truncation_rate"), _points("truncation_rate")),
    Line("Ungradable responses", _ungradable),
    Line("Protocol", _protocol),
)


def evaluations(stages: Sequence[StageRecord]) -> list[Measured]:
    """The evaluations of a run in order: those of evaluate stages, else the first and last inside an RL stage."""
    first_rl = next((i for i, stage in enumerate(stages) if stage.kind == "rl"), None)
    found = []
    for index, stage in enumerate(stages):
        if stage.summary.get("pass_at_1") is None or stage.kind != "evaluate":
            continue
        when = "" if first_rl is None else "before RL" if index < first_rl else "after RL"
        found.append(Measured(f"{when} <small>{page.text(stage.name)}</small>", stage.summary, stage))
    if found or first_rl is None:
        return found
    stage = stages[first_rl]
    rows = [row for row in stage.rows if "eval/pass_at_1" in row]
    for row in rows[:1] + rows[1:][-1:]:
        figures = {key.removeprefix("eval/"): value for key, value in row.items() if key.startswith("eval/")}
        # Samples per question of the evaluations inside an RL stage: as many as in training.
        figures |= {"k": k} if (k := stage.config.get("group_size")) else {}
        found.append(Measured(f"step {row['step']:,} <small>evaluation inside RL</small>", figures, stage))
    return found


def _cards(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    shown = (
        ("pass@1", "pass_at_1", sections.percent),
        (f"cons@{after.get('k', 'k')}", "cons_at_k", sections.percent),
        ("response length, tokens", "length_mean", sections.number),
        ("well-formed", "format", sections.percent),
        ("reflection words", "reflection_words", lambda value: sections.number(value, 2)),
    )
    cards = [
        f'<div class="card"><div class="name">{name}</div><div class="value">{form(after[key])}</div>'
        f'<div class="was">before RL {form(before.get(key))}</div></div>'
        for name, key, form in shown
        if after.get(key) is not None
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _group_row(group: str, tables: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """One difficulty: its pass@1 and cons@k in each evaluation."""
    problems = max(table[group]["problems"] for table in tables if group in table)
    cells = [f"{page.text(group)} <small>{problems:,} problems</small>"]
    for table in tables:
        row = table.get(group)
        cells.append(
            "–" if row is None else f"{sections.share(row)} <small>cons {sections.percent(row['cons_at_k'])}</small>"
        )
    return cells


def _comparison(measured: Sequence[Measured]) -> str:
    """The headline table, and pass@1 by difficulty where it was measured."""
    if not measured:
        return ""
    two = len(measured) >= 2
    before, after = measured[0].figures, measured[-1].figures
    head = ["", *(item.label for item in measured), *(["change"] if two else [])]
    rows = [
        [line.label, *(line.show(item.figures) for item in measured), *([line.change(before, after)] if two else [])]
        for line in LINES
    ]
    parts = ["<h2>Before and after RL</h2>" if two else "<h2>Evaluation</h2>", page.table(head, rows)]
    tables = [item.figures.get("by_group") or {} for item in measured]
    groups = list(dict.fromkeys(group for table in tables for group in table))
    if groups:
        cells = [_group_row(group, tables) for group in groups]
        parts += ["<h3>pass@1 by difficulty</h3>", page.table(["", *(item.label for item in measured)], cells)]
    return "\n".join(parts)


def _stage_table(stages: Sequence[StageRecord]) -> str:
    rows = []
    for stage in stages:
        steps = f"{stage.rows[-1]['step']:,}" if stage.rows and stage.kind != "evaluate" else "–"
        seconds = sections.stage_seconds(stage)
        notes = []
        name = {"pretrain": "loss", "rl": "reward"}.get(stage.kind, "")
        line = series(stage.rows, name)
        if line is not None:
            notes.append(f"{name} {line.first:.3f} → {line.last:.3f}")
        if stage.summary.get("pass_at_1") is not None:
            notes.append(f"pass@1 {sections.share(stage.summary)}")
        duration = "–" if seconds is None else sections.duration(seconds)
        rows.append([page.text(stage.name), page.text(stage.kind), steps, duration, "; ".join(notes)])
    total = sum(seconds for stage in stages if (seconds := sections.stage_seconds(stage)) is not None)
    rows.append(["all", "", "", sections.duration(total), ""])
    return page.table(["stage", "kind", "updates", "wall time", "result"], rows)


def _samples(measured: Sequence[Measured], stages: Sequence[StageRecord], seed: int) -> str:
    """Random samples of the first and the last evaluation, and of the beginning and end of each RL stage."""
    records = {item.record.folder: item for item in measured if item.record.kind == "evaluate"}
    chosen = list(records.values())
    parts = []
    for item in chosen[:1] + chosen[1:][-1:]:
        rows = random_samples(item.record, SAMPLES_SHOWN, seed)
        if rows:
            parts.append(f"<h3>{item.label}</h3>" + "".join(map(sections.sample, rows)))
    for stage in stages:
        if stage.kind != "rl":
            continue
        steps = [row["step"] for row in stage.samples()]
        for step in dict.fromkeys((min(steps), max(steps)) if steps else ()):
            rows = random_samples(stage, 5, seed, where=lambda row, step=step: row["step"] == step)  # type: ignore[misc]
            title = f"{stage.name}, step {step:,}: {len(rows)} of the training batch"
            parts.append(page.folded(title, "".join(map(sections.sample, rows))))
    if not parts:
        return ""
    note = '<p class="muted">Drawn at random with a fixed seed, not chosen. Each reward stands beside its response.</p>'
    return "<h2>Samples</h2>" + note + "\n".join(parts)


def write_report(workdir: Path | str, stages: Sequence[str] | None = None, *, title: str = "", seed: int = 0) -> Path:
    """Writes `report.html` and `plots/*.png` into a run's workdir and returns the page's path.

    Args:
        workdir: a pipeline's folder with one folder per stage, or the folder of one stage.
        stages: the stages' folder names in the order they ran (default: natural order of the names).
        title: heading of the page; by default the run's name.
        seed: of the choice of samples.

    Raises:
        ValueError: no stage has written anything yet, or a file is malformed (file and line named).
    """
    root = Path(workdir)
    records = find_stages(root, stages)
    if not records:
        raise ValueError(f"{root}: no stage folder with metrics.jsonl or summary.json to report on")
    measured = evaluations(records)
    folder = root / "plots"
    folder.mkdir(exist_ok=True)
    curves = []
    for record in records:
        if record.kind == "evaluate":
            continue
        drawn = sections.draw_figures(record, folder)
        # RL is what the run is about; what came before it stands below.
        if drawn:
            html = f"<h2>{sections.stage_title(record)}</h2>{sections.pictures(record, drawn)}"
            curves.append((record.kind != "rl", html + sections.zero_note(record)))
    heading = title or f"r1jax: {root.resolve().name}"
    both = len(measured) >= 2
    body = [
        f'<p class="muted">r1jax run report</p><h1>{page.text(heading)}</h1>',
        _cards(measured[0].figures, measured[-1].figures) if both else "",
        "<h2>What was run</h2>",
        _stage_table(records),
        _comparison(measured),
        *(curve for _, curve in sorted(curves, key=lambda pair: pair[0])),
        f'<p class="muted">{sections.NOTES}</p>' if curves else "",
        _samples(measured, records, seed),
        "<h2>Configuration</h2>" + sections.configurations(root, records),
    ]
    path = root / "report.html"
    path.write_text(page.document(heading, "\n".join(part for part in body if part)), encoding="utf-8")
    return path
