"""Parts of a pipeline's page that come from its stages one by one: reward models, data cards, costs, shared samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1jax.evaluation import monitor, page, plots, sections
from r1jax.evaluation.budget_curve import budget_curve
from r1jax.evaluation.records import Row, StageRecord, read_json

COSTS = ("tokens_trained", "tokens_sampled", "seconds", "flops")
REWARD_MODEL_PLOTS = ("calibration", "length_bias")


def reward_models(stages: Sequence[StageRecord]) -> str:
    """What held-out preferences and labels say of each reward model, with its plots."""
    models = [stage for stage in stages if stage.kind == "reward_model" and stage.summary]
    if not models:
        return ""
    head = ["reward model", "held out", "accuracy", "knowing nothing", "calibration error", "length"]
    rows = []
    for stage in models:
        held = stage.summary["held_out"]
        unit = "pairs" if stage.summary["kind"] == "pairwise" else "labels"
        rows.append(
            [
                f"{page.text(stage.name)} <small>{page.text(stage.summary['view'])}</small>",
                f"{stage.summary['counts']['held_out']:,} {unit}",
                sections.share(held, "accuracy"),
                sections.percent(held["base_accuracy"]),
                sections.number(held["ece"], 3),
                _length_bias(stage.summary["length_bias"]),
            ]
        )
    shown = [
        page.picture((stage.folder / f"{name}.png").read_bytes(), f"{stage.name}: {name}", stage.name)
        for stage in models
        for name in REWARD_MODEL_PLOTS
        if (stage.folder / f"{name}.png").exists()
    ]
    note = (
        "Held-out questions only. Knowing nothing is to choose at random, or always the more frequent label; the "
        "calibration error (ECE) is the mean distance of probability and frequency; length: the rank correlation of "
        "reward and response length, and how often the longer response of a pair is the better one."
    )
    return (
        f'<h2>Reward models</h2>{page.table(head, rows)}<p class="muted">{note}</p>'
        f'<div class="small">{"".join(shown)}</div>'
    )


def _length_bias(bias: Mapping[str, Any]) -> str:
    text = f"ρ {sections.number(bias.get('spearman'), 2)}"
    if bias.get("longer_by_judge") is None:
        return text
    judge, model = (sections.percent(bias[f"longer_by_{who}"]) for who in ("judge", "model"))
    return f"{text} <small>longer is better: judge {judge}, model {model}</small>"


def monitors(stages: Sequence[StageRecord], drop: float) -> str:
    """Every RL stage with reward models: preference reward against rule-graded accuracy, and whether they part."""
    parts = []
    for stage in stages:
        figure = monitor.monitor_figure(stage.rows) if stage.kind == "rl" else None
        if figure is None:
            continue
        found = monitor.hacking(stage.rows, drop)
        flags = [
            f'<p><span class="chip bad">reward hacking</span> {page.text(monitor.sentence(one))}.</p>' for one in found
        ] or [
            '<p><span class="chip good">no reward hacking seen</span> No rule-graded accuracy fell by more than '
            f"{100 * drop:g} points, and beyond noise, while a preference reward rose.</p>"
        ]
        image = page.picture(plots.png(figure), f"{stage.name}: monitor")
        parts.append(f'<h3>{page.text(stage.name)}</h3><div class="wide">{image}<div>{"".join(flags)}</div></div>')
    if not parts:
        return ""
    note = "Pale: each step; strong: running means. Solid: what rules grade; dashed: what reward models say."
    return f'<h2>Preference reward against rules</h2><p class="muted">{note}</p>{"".join(parts)}'


def data_cards(stages: Sequence[StageRecord]) -> str:
    """What each curated set of samples holds, and what every filter dropped."""
    cards = [(stage, read_json(stage.folder / "data_card.json")) for stage in stages]
    shown = [_card(stage, card) for stage, card in cards if card]
    return f"<h2>Data</h2>{''.join(shown)}" if shown else ""


def _card(stage: StageRecord, card: Mapping[str, Any]) -> str:
    rows = card["by_domain"]
    head = ["domain", "questions", "sampled", "read", "kept", "of questions", "tokens", "rounds", "in its language"]
    kept = [
        [
            page.text(name),
            *(f"{row[key]:,}" for key in ("questions_asked", "sampled", "read", "kept", "questions_kept")),
            sections.number(row["mean_tokens"]),
            sections.number(row["mean_rounds"]),
            sections.percent(row["language_consistency"]),
        ]
        for name, row in rows.items()
    ]
    fates = [fate for fate, count in rows["total"]["dropped"].items() if count]
    empty = [fate for fate in rows["total"]["dropped"] if fate not in fates]
    dropped = [[_spaced(fate), *(f"{row['dropped'][fate]:,}" for row in rows.values())] for fate in fates]
    parts = [f"<h3>{page.text(stage.name)}</h3>", f'<p class="muted">{_asked(card)}</p>', page.table(head, kept)]
    if dropped:
        parts.append(page.table(["dropped for", *map(page.text, rows)], dropped))
    if empty:
        parts.append(f'<p class="muted">Nothing was dropped for: {_spaced(", ".join(empty))}.</p>')
    return "".join(parts)


def _spaced(fate: str) -> str:
    return page.text(fate.replace("_", " "))


def _asked(card: Mapping[str, Any]) -> str:
    """How a card's samples were drawn, and what overlapped with the evaluations."""
    questions, found = card["questions"], card["decontamination"]
    text = (
        f"{questions['source']:,} questions, {card['samples']} samples of each at temperature {card['temperature']:g}, "
        f"top-p {card['top_p']:g}; at most {card['per_prompt']} of each question kept ({card['selection']})."
    )
    if card["rewriting"]:
        text += f" Rewritten by: {card['rewriting']}."
    if not found["sets"]:
        return page.text(text + " Not held against any evaluation's questions.")
    overlaps = ", ".join(f"{count:,} {name}" for name, count in found["overlaps"].items())
    return page.text(f"{text} Dropped for {found['n']} words in a row of an evaluation's question: {overlaps}.")


def budget_figures(stages: Sequence[StageRecord]) -> str:
    """Accuracy over the length of the thought, of the evaluations that tried budgets."""
    figures = {stage.name: budget_curve(stage.summary["budgets"]) for stage in stages if stage.summary.get("budgets")}
    shown = [page.picture(plots.png(figure), f"{name}: budgets", name) for name, figure in figures.items() if figure]
    return f'<h2>Thinking budgets</h2><div class="wide">{"".join(shown)}</div>' if shown else ""


def cost_table(names: Sequence[str], stages: Mapping[str, StageRecord]) -> str:
    """Tokens, time and operations of every step, in order; steps that are not done are said to be missing."""
    rows, total = [], dict.fromkeys(COSTS, 0.0)
    for name in names:
        stage = stages.get(name)
        kind = "" if stage is None else stage.kind.replace("_", " ")
        if stage is None or not stage.summary:
            rows.append([page.text(name), page.text(kind), "missing", "", "", ""])
            continue
        cost = stage.summary.get("cost", {})
        rows.append([page.text(name), page.text(kind), *_cost_cells(cost)])
        for key in COSTS:
            total[key] += cost.get(key) or 0.0
    rows.append(["all", "", *_cost_cells(total)])
    note = (
        "Operations are those of the models' matrix products, by formula: two for a multiply-add, three passes for a "
        "trained token, attention to the mean length; no recomputation, no filling."
    )
    head = ["stage", "kind", "tokens trained", "tokens sampled", "wall time", "FLOP"]
    return f'<h2>Cost</h2>{page.table(head, rows)}<p class="muted">{note}</p>'


def _cost_cells(cost: Mapping[str, Any]) -> list[str]:
    cells = ["–" if cost.get(key) is None else sections.scaled(cost[key]) for key in COSTS]
    seconds = cost.get("seconds")
    cells[COSTS.index("seconds")] = "–" if seconds is None else sections.duration(seconds)
    return cells


def shared_samples(columns: Sequence[tuple[str, StageRecord]], per_domain: int, seed: int) -> str:
    """Responses of several evaluations to the same questions, side by side; the questions are drawn at random.

    Args:
        columns: label and evaluation, those that have samples.
        per_domain: questions of each domain.
        seed: of the draw.
    """
    questions = [_questions(record) for _, record in columns]
    if not questions:
        return ""
    common = {key: domain for key, domain in questions[-1].items() if all(key in others for others in questions)}
    rng = np.random.default_rng(seed)
    chosen: dict[str, str] = {}
    for domain in sorted(set(common.values()), key=lambda name: (name != "reasoning", name)):
        ids = sorted(key for key, own in common.items() if own == domain)
        drawn = rng.choice(len(ids), size=min(per_domain, len(ids)), replace=False)
        chosen |= {ids[index]: domain for index in sorted(drawn)}
    firsts = [(label, _first_rows(record, chosen)) for label, record in columns]
    parts = []
    for domain in dict.fromkeys(chosen.values()):
        parts.append(f"<h3>{page.text(domain)}</h3>")
        parts += [_side_by_side(key, firsts) for key, own in chosen.items() if own == domain]
    note = (
        "The same questions, drawn at random with a fixed seed and not chosen; of each stage the first of its k "
        "responses. The prompt is that of the last column: earlier stages ask in their own form."
    )
    return f'<h2>Samples of every stage</h2><p class="muted">{note}</p>{"".join(parts)}'


def _questions(record: StageRecord) -> dict[str, str]:
    """Id -> domain of an evaluation's questions."""
    return {row["id"]: row.get("domain") or "reasoning" for row in record.samples()}


def _first_rows(record: StageRecord, ids: Mapping[str, str]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in record.samples():
        if row["id"] in ids:
            found.setdefault(row["id"], row)
    return found


def _side_by_side(key: str, columns: Sequence[tuple[str, Mapping[str, Row]]]) -> str:
    last = columns[-1][1][key]
    cells = "".join(
        f"<div><header><b>{page.text(label)}</b>{sections.chips(rows[key])}</header>"
        f'<div class="text">{page.with_tags(str(rows[key].get("completion", "")).strip())}</div></div>'
        for label, rows in columns
    )
    answer = f'<div class="muted">reference answer: {page.text(last["answer"])}</div>' if last.get("answer") else ""
    return (
        f'<div class="sample"><header><code>{page.text(key)}</code></header>{sections.prompt_text(last)}{answer}'
        f'<div class="across">{cells}</div></div>'
    )
