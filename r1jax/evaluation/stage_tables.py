"""The paper's tables with a run's numbers: its stages (R1v2 table 3), and distillation against RL (R1v1 table 6)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1jax.evaluation import estimators, page, sections
from r1jax.evaluation.expectations import figure_at
from r1jax.evaluation.monitor import PREFERENCES

Figures = Mapping[str, Any]

# R1v2 table 3: percent.
PAPER_STAGES: dict[str, dict[str, float]] = {
    "AIME 2024, pass@1": {"Zero": 77.9, "Dev1": 59.0, "Dev2": 74.0, "Dev3": 78.1, "R1": 79.8},
    "MATH-500, pass@1": {"Zero": 95.9, "Dev1": 94.2, "Dev2": 95.9, "Dev3": 95.4, "R1": 97.3},
    "IF-Eval, prompt strict": {"Zero": 46.6, "Dev1": 71.7, "Dev2": 72.0, "Dev3": 78.1, "R1": 83.3},
    "AlpacaEval 2, LC win rate": {"Zero": 24.7, "Dev1": 50.1, "Dev2": 55.8, "Dev3": 62.1, "R1": 87.6},
    "ArenaHard, GPT-4-1106": {"Zero": 53.6, "Dev1": 77.0, "Dev2": 73.2, "Dev3": 75.6, "R1": 92.3},
}
# R1v1 tables 5 and 6: AIME pass@1, AIME cons@64, MATH-500, GPQA Diamond, LiveCodeBench, percent.
PAPER_STUDENTS: dict[str, tuple[float, ...]] = {
    "Qwen2.5-32B, RL (Zero)": (47.0, 60.0, 91.6, 55.0, 40.2),
    "Distill-Qwen-32B": (72.6, 83.3, 94.3, 62.1, 57.2),
    "Distill-Qwen-14B": (69.7, 80.0, 93.9, 59.1, 53.1),
    "Distill-Qwen-7B": (55.5, 83.3, 92.8, 49.1, 37.6),
    "Distill-Qwen-1.5B": (28.9, 52.7, 83.9, 33.8, 16.9),
    "Distill-Llama-8B": (50.4, 80.0, 89.1, 49.0, 39.6),
    "Distill-Llama-70B": (70.0, 86.7, 94.5, 65.2, 57.5),
}
DOMAINS = {  # of general requests, whose right answers the made-up world's rules know
    "helpful": ("Requests for help", "Helpful, by the world's own rule"),
    "harmless": ("Requests to refuse", "Refused in good words, by the world's own rule"),
}


@dataclasses.dataclass(frozen=True)
class Column:
    """One evaluation of a table; without figures it is missing."""

    label: str
    step: str
    figures: Figures


@dataclasses.dataclass(frozen=True)
class Trained:
    """A student after training: its evaluation, and what the stage that trained it cost."""

    figures: Figures
    cost: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class StudentRow:
    """A line of the distillation table."""

    label: str
    base: Figures
    distilled: Trained
    by_rl: Trained | None


def reasoning(figures: Figures) -> Figures:
    """The figures of the domain "reasoning"; of all questions where there is none."""
    return (figures.get("by_domain") or {}).get("reasoning", figures)


def _line(label: str, columns: Sequence[Column], show: Callable[[Figures], str]) -> list[str]:
    return [label, *(show(column.figures) for column in columns)]


def _length(figures: Figures) -> str:
    mean, error = figure_at(figures, "length_mean")
    return sections.number(mean) + ("" if error is None else f" <small>± {error:.1f}</small>")


def _shares(columns: Sequence[Column], named: Mapping[str, str]) -> list[list[str]]:
    return [_line(label, columns, functools.partial(sections.share, key=key)) for key, label in named.items()]


def _within(columns: Sequence[Column], table: str, name: str) -> list[Column]:
    """The columns with the figures of one domain or difficulty."""
    return [dataclasses.replace(c, figures=(c.figures.get(table) or {}).get(name, {})) for c in columns]


def _names(columns: Sequence[Column], table: str) -> list[str]:
    """The domains or difficulties of any of the columns."""
    return list(dict.fromkeys(name for column in columns for name in column.figures.get(table) or {}))


def _reasoning_rows(columns: Sequence[Column]) -> list[list[str]]:
    k = next((column.figures["k"] for column in columns if column.figures.get("k")), "k")
    own = [dataclasses.replace(column, figures=reasoning(column.figures)) for column in columns]
    rows = [
        ["Reasoning, graded by rule"],
        _line("pass@1", own, sections.share),
        _line(f"cons@{k} <small>[95&nbsp;%]</small>", own, sections.consensus),
        _line("Response length <small>tokens</small>", own, _length),
        *_shares(own, {"truncation_rate": "Cut by the length limit"}),
    ]
    return rows + _group_rows(columns, voted=True)


def _group_rows(columns: Sequence[Column], voted: bool) -> list[list[str]]:
    """pass@1 of every difficulty or kind; `voted`: of those whose answers are compared (that have a cons@k), or not."""
    rows = []
    for name in _names(columns, "by_group"):
        of_it = _within(columns, "by_group", name)
        measured = [column.figures for column in of_it if column.figures.get("pass_at_1") is not None]
        if measured and voted == any(figures.get("cons_at_k") is not None for figures in measured):
            rows.append(_line(f"<small>pass@1:</small> {page.text(name)}", of_it, sections.share))
    return rows


def _domain_rows(columns: Sequence[Column]) -> list[list[str]]:
    rows: list[list[str]] = []
    for name in _names(columns, "by_domain"):
        if name == "reasoning":
            continue
        of_it = _within(columns, "by_domain", name)
        heading, label = DOMAINS.get(name, (page.text(name), "Right"))
        rows += [[heading], _line(label, of_it, sections.share)]
        if any(column.figures.get("safe") is not None for column in of_it):
            rows += _shares(of_it, {"safe": "Nothing unsafe is said"})
        rows += [
            _line(f"{reward} <small>by the reward model</small>", of_it, _reward(reward))
            for reward in PREFERENCES
            if any(reward in (column.figures.get("rewards") or {}) for column in of_it)
        ]
        rows.append(_line("Response length <small>tokens</small>", of_it, _length))
    kinds = _group_rows(columns, voted=False)
    return rows + ([["Other requests, by kind"], *kinds] if kinds else [])


def _paper_rows(columns: Sequence[Column]) -> list[list[str]]:
    """The paper's numbers of the stages that are called as it calls them."""
    rows = [
        [page.text(name), *(sections.number(numbers.get(column.label)) for column in columns)]
        for name, numbers in PAPER_STAGES.items()
        if any(column.label in numbers for column in columns)
    ]
    return [["The paper's stages (671B; R1v2, table 3; percent)"], *rows] if rows else []


def _contamination_row(columns: Sequence[Column]) -> list[list[str]]:
    """How many questions overlap with what was trained on, where that was looked up."""

    def show(figures: Figures) -> str:
        found = figures.get("contamination")
        return "–" if not found else f"{found['overlap']:,} <small>of {found['questions']:,}</small>"

    words = next((c.figures["contamination"]["words"] for c in columns if c.figures.get("contamination")), None)
    label = f"Questions seen in training <small>{words} words in a row</small>"
    return [] if words is None else [_line(label, columns, show)]


def _reward(name: str) -> Callable[[Figures], str]:
    def show(figures: Figures) -> str:
        mean, error = figure_at(figures, f"rewards/{name}/mean")
        return sections.number(mean, 2) + ("" if error is None else f" <small>± {error:.2f}</small>")

    return show


def stage_table(columns: Sequence[Column]) -> str:
    """A column for each stage: this run's figures, and below them the paper's of the same stage."""
    head = ["", *(_heading(column) for column in columns)]
    rows = _reasoning_rows(columns) + _domain_rows(columns)
    rows += [
        ["All questions"],
        *_shares(
            columns,
            {
                "format": "Well-formed",
                "language": "Words in the prompt's language",
                "single_language": "Thoughts in a single language",
                "readable_summary": "Readable summaries",
            },
        ),
        *_contamination_row(columns),
        *_paper_rows(columns),
    ]
    return page.table(head, rows)


def _heading(column: Column) -> str:
    missing = "" if column.figures else " missing"
    return f"{page.text(column.label)} <small>{page.text(column.step)}{missing}</small>"


def cost_text(cost: Mapping[str, Any]) -> str:
    """Tokens, time and operations of a stage in two lines."""
    if not cost:
        return "–"
    return (
        f"{sections.scaled(cost['tokens_trained'])} tokens trained, {sections.scaled(cost['tokens_sampled'])} sampled"
        f"<br>{sections.duration(cost['seconds'])}, {sections.scaled(cost['flops'], 'FLOP')}"
    )


def distillation_table(rows: Sequence[StudentRow]) -> str:
    """Each student before, distilled, and trained by RL instead; the questions are those with right answers."""
    head = ["student", "before", "distilled", "by RL instead", "distilled − RL", "cost of distilling", "cost of RL"]
    cells = []
    for row in rows:
        after = reasoning(row.distilled.figures)
        other = reasoning(row.by_rl.figures) if row.by_rl else {}
        cells.append(
            [
                page.text(row.label),
                sections.share(reasoning(row.base)),
                sections.share(after),
                sections.share(other),
                _difference(other, after),
                f"<small>{cost_text(row.distilled.cost)}</small>",
                f"<small>{cost_text(row.by_rl.cost) if row.by_rl else '–'}</small>",
            ]
        )
    return page.table(head, cells)


def _difference(before: Figures, after: Figures) -> str:
    pairs = [figure_at(figures, "pass_at_1") for figures in (before, after)]
    if any(value is None for value, _ in pairs):
        return "–"
    (old, new) = ((value, error or 0.0) for value, error in pairs)
    change, error = estimators.difference(old, new)  # type: ignore[arg-type]
    return f"{100 * change:+.1f} points <small>± {100 * error:.1f}</small>"


def paper_students() -> str:
    """The paper's distilled models, and the 32B one trained by RL instead."""
    head = ["percent", "AIME 2024 pass@1", "AIME 2024 cons@64", "MATH-500", "GPQA Diamond", "LiveCodeBench"]
    return page.table(head, [[name, *(f"{x:.1f}" for x in numbers)] for name, numbers in PAPER_STUDENTS.items()])
