"""One page for a run of the whole recipe: the paper's tables with this run's numbers, and what the stages left.

`write_pipeline_report` reads the steps' folders as `report.write_report` does, and writes `report.html` and `plots/`.
A step that is not done is shown as missing, so that the page of half a run can be read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from r1jax.evaluation import page, sections
from r1jax.evaluation.expectations import Expectation, sentence, verdict
from r1jax.evaluation.monitor import DROP
from r1jax.evaluation.records import StageRecord, find_stages
from r1jax.evaluation.stage_sections import (
    budget_figures,
    cost_table,
    data_cards,
    monitors,
    reward_models,
    shared_samples,
)
from r1jax.evaluation.stage_tables import (
    Column,
    StudentRow,
    Trained,
    distillation_table,
    paper_students,
    reasoning,
    stage_table,
)

# What is shown of each stage; its other figures are folded.
OPEN_FIGURES = {
    "rl": ("accuracy", "length", "reward", "format", "language"),
    "pretrain": ("loss",),
    "sft": ("loss",),
    "reward_model": ("accuracy",),
}


@dataclasses.dataclass(frozen=True)
class StageColumn:
    """A column of the stage table."""

    label: str  # "Zero", "Dev1", "Dev2", "Dev3", "R1": under these names the paper's numbers stand below
    step: str  # an evaluate step

    def __post_init__(self) -> None:
        if not self.label or not self.step:
            raise ValueError("label and step: none of them may be empty")


@dataclasses.dataclass(frozen=True)
class Student:
    """A line of the distillation table: evaluate steps, and the steps that trained."""

    label: str
    base: str  # evaluation of the student before
    distilled: str  # evaluation after fine-tuning on the teacher's samples
    distilled_by: str  # the sft step
    rl: str = ""  # evaluation after RL instead; empty: not tried
    rl_by: str = ""  # the rl step

    def __post_init__(self) -> None:
        if not all((self.label, self.base, self.distilled, self.distilled_by)):
            raise ValueError("label, base, distilled and distilled_by: none of them may be empty")
        if bool(self.rl) != bool(self.rl_by):
            raise ValueError(f"rl: {self.rl!r} and rl_by: {self.rl_by!r} need each other")

    @property
    def steps(self) -> tuple[str, ...]:
        """All that are named."""
        return tuple(filter(None, (self.base, self.distilled, self.distilled_by, self.rl, self.rl_by)))


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What the page of a pipeline compares."""

    stages: tuple[StageColumn, ...]  # in order
    students: tuple[Student, ...] = ()
    expectations: tuple[Expectation, ...] = ()
    """Between labels: those of `stages`, and of a student "LABEL base", "LABEL distilled" and "LABEL RL"."""
    samples_per_domain: int = 4  # questions whose responses are shown side by side
    hacking_drop: float = DROP  # fall in rule-graded accuracy from which a rising preference reward is flagged
    seed: int = 0  # of the choice of samples

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages: is empty; at least one evaluation")
        labels = [label for label, _ in self._labelled()]
        twice = [label for label in labels if labels.count(label) > 1]
        if twice:
            raise ValueError(f"the label {twice[0]!r} is used twice")
        for index, expectation in enumerate(self.expectations):
            for field in ("before", "after"):
                label = getattr(expectation, field)
                if label not in self.evaluations():
                    known = ", ".join(self.evaluations())
                    raise ValueError(f"expectations[{index}].{field}: {label!r} is not one of {known}")
        if self.samples_per_domain < 0 or not 0 < self.hacking_drop < 1:
            raise ValueError(
                f"samples_per_domain: {self.samples_per_domain}, at least 0; hacking_drop: {self.hacking_drop}, "
                "between 0 and 1"
            )

    def _labelled(self) -> list[tuple[str, str]]:
        found = [(column.label, column.step) for column in self.stages]
        for student in self.students:
            found += [(f"{student.label} base", student.base), (f"{student.label} distilled", student.distilled)]
            found += [(f"{student.label} RL", student.rl)] if student.rl else []
        return found

    def evaluations(self) -> dict[str, str]:
        """Label -> evaluate step, of all that can be compared."""
        return dict(self._labelled())

    def check_steps(self, names: Collection[str]) -> None:
        """Raises ValueError naming a step that the pipeline does not have."""
        steps = [column.step for column in self.stages] + [step for one in self.students for step in one.steps]
        unknown = [step for step in steps if step not in names]
        if unknown:
            raise ValueError(f"report: the step {unknown[0]!r} is not one of {', '.join(names)}")


def write_pipeline_report(workdir: Path | str, steps: Sequence[str], config: ReportConfig, *, title: str = "") -> Path:
    """Writes `report.html` and `plots/*.png` into a pipeline's workdir and returns the page's path.

    Args:
        workdir: the pipeline's folder, with one folder per step.
        steps: the steps' names in the order they run.
        config: what is compared.
        title: heading of the page; by default the run's name.

    Raises:
        ValueError: a file is malformed (file and line named).
    """
    root = Path(workdir)
    records = {record.name: record for record in find_stages(root, steps)}
    figures = {label: _summary(records, step) for label, step in config.evaluations().items()}
    columns = [Column(column.label, column.step, figures[column.label]) for column in config.stages]
    shown = [(column.label, records[column.step]) for column in columns if column.figures]
    heading = title or f"r1jax: {root.resolve().name}"
    body = [
        f'<p class="muted">r1jax pipeline report</p><h1>{page.text(heading)}</h1>',
        _cards(columns),
        "<h2>Stages</h2>",
        stage_table(columns),
        f'<p class="muted">{_protocol(columns)}</p>',
        _expectations(config, figures),
        _distillation(config, figures, records),
        monitors(list(records.values()), config.hacking_drop),
        reward_models(list(records.values())),
        budget_figures(list(records.values())),
        _curves(list(records.values()), root / "plots"),
        data_cards(list(records.values())),
        shared_samples(shown, config.samples_per_domain, config.seed) if config.samples_per_domain else "",
        cost_table(steps, records),
        "<h2>Configuration</h2>" + sections.configurations(root, list(records.values())),
    ]
    path = root / "report.html"
    path.write_text(page.document(heading, "\n".join(part for part in body if part)), encoding="utf-8")
    return path


def _summary(records: Mapping[str, StageRecord], step: str) -> dict[str, Any]:
    return records[step].summary if step in records else {}


def _cards(columns: Sequence[Column]) -> str:
    """The last stage's figures, with those of the first below."""
    first, last = columns[0], columns[-1]
    before, after = ({"": reasoning(c.figures), **(c.figures.get("by_domain") or {})} for c in (first, last))
    shown = (
        ("reasoning, pass@1", "", "pass_at_1"),
        ("helpful", "helpful", "pass_at_1"),
        ("safe", "harmless", "safe"),
        ("readable summaries", "all", "readable_summary"),
        ("thoughts in one language", "all", "single_language"),
    )
    before, after = before | {"all": first.figures}, after | {"all": last.figures}
    cards = [
        f'<div class="card"><div class="name">{page.text(last.label)}: {name}</div>'
        f'<div class="value">{sections.percent(after[domain][key])}</div>'
        f'<div class="was">{page.text(first.label)} {sections.percent(before.get(domain, {}).get(key))}</div></div>'
        for name, domain, key in shown
        if after.get(domain, {}).get(key) is not None
    ]
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _protocol(columns: Sequence[Column]) -> str:
    """How the stages were evaluated, each way once."""
    found: dict[str, list[str]] = {}
    for column in columns:
        said = column.figures
        if said:
            way = (
                f"{said.get('problems', 0):,} questions × {said.get('k')} responses at temperature "
                f"{said.get('temperature', 0):g}, top-p {said.get('top_p', 0):g}"
            )
            found.setdefault(way, []).append(column.label)
    ways = [f"{page.text(', '.join(labels))}: {way}" for way, labels in found.items()]
    return "; ".join(ways) + ". ± is one standard error over questions." if ways else "No stage was evaluated yet."


def _expectations(config: ReportConfig, figures: Mapping[str, Mapping[str, Any]]) -> str:
    if not config.expectations:
        return ""
    lines = [sentence(one, verdict(one, figures[one.before], figures[one.after])) for one in config.expectations]
    note = (
        "As the run's configuration states it. Within error: the difference is below two standard errors, taken as "
        "those of independent estimates."
    )
    return f'<h2>What was expected</h2><p class="muted">{note}</p>{"".join(lines)}'


def _distillation(
    config: ReportConfig, figures: Mapping[str, Mapping[str, Any]], records: Mapping[str, StageRecord]
) -> str:
    if not config.students:
        return ""
    rows = []
    for student in config.students:
        rl = None
        if student.rl:
            rl = Trained(figures[f"{student.label} RL"], _summary(records, student.rl_by).get("cost", {}))
        distilled = Trained(
            figures[f"{student.label} distilled"], _summary(records, student.distilled_by).get("cost", {})
        )
        rows.append(StudentRow(student.label, figures[f"{student.label} base"], distilled, rl))
    note = "Reasoning questions, pass@1. The cost is that of training the student: sampling from the teacher is apart."
    paper = page.folded("the paper's distilled models, and RL on the 32B one", paper_students())
    return f'<h2>Distillation</h2>{distillation_table(rows)}<p class="muted">{note}</p>{paper}'


def _curves(stages: Sequence[StageRecord], folder: Path) -> str:
    """Of every stage its main figures, RL in full width; the others folded. All are also written to `folder`."""
    folder.mkdir(exist_ok=True)
    wide, small, folded = [], [], []
    for stage in stages:
        drawn = {} if stage.kind == "evaluate" else sections.draw_figures(stage, folder)
        if not drawn:
            continue
        main = {name: drawn.pop(name) for name in OPEN_FIGURES.get(stage.kind, ()) if name in drawn}
        if stage.kind == "rl":
            wide.append(f"<h3>{sections.stage_title(stage)}</h3>{sections.pictures(stage, main)}")
        else:
            small += [page.picture(data, f"{stage.name}: {name}", stage.name) for name, data in main.items()]
        rest = sections.pictures(stage, drawn) + sections.zero_note(stage)
        folded.append(page.folded(f"more figures of {stage.name}", rest))
    if not folded:
        return ""
    losses = f'<h3>Pretraining and fine-tuning</h3><div class="small">{"".join(small)}</div>' if small else ""
    note = f'<p class="muted">{sections.NOTES}</p>'
    return f"<h2>Curves</h2>{''.join(wide)}{losses}{''.join(folded)}{note}"
