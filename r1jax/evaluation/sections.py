"""What the pages of runs share: numbers as text, a stage's wall time and figures, one sample, configurations."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from r1jax.evaluation import page, plots
from r1jax.evaluation.records import Row, StageRecord, read_json, series

WIDE_FIGURES = ("accuracy", "length")
NOTES = (
    f"Where there are {plots.SMOOTH_FROM} points or more, the line is a running mean over 1/40 of them. "
    "The wall time of a step is stacked by its parts; steps that compile may reach beyond the axis."
)
CAPTIONS = {
    "accuracy": "Held-out questions; the band is one standard error over problems. As figure 2 of the R1 paper (v1).",
    "length": "Prompt excluded, stop token included. As figure 3 of the R1 paper (v1).",
}
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
KIND_TITLES = {
    "rl": "Reinforcement learning",
    "pretrain": "Pretraining",
    "sft": "Supervised fine-tuning",
    "reward_model": "Reward model",
}


def percent(value: float | None) -> str:
    """A share as percent, '–' if undefined."""
    return "–" if value is None else f"{100 * value:.1f}&nbsp;%"


def number(value: float | None, digits: int = 1) -> str:
    """A number with thousands separators, '–' if undefined."""
    return "–" if value is None else f"{value:,.{digits}f}"


def scaled(value: float, unit: str = "") -> str:
    """A large number to three digits with its prefix and unit: 1,234,000 as '1.23 M'; up to 999 without prefix."""
    power = 0
    while abs(value) >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}&nbsp;{PREFIXES[power]}{unit}".removesuffix("&nbsp;")


def share(figures: Mapping[str, Any], key: str = "pass_at_1") -> str:
    """A share as percent with its standard error in points, where `figures` hold one under `<key>_se`."""
    error = figures.get(f"{key}_se")
    shown = percent(figures.get(key))
    return shown if error is None else f"{shown} <small>± {100 * error:.1f}</small>"


def consensus(figures: Mapping[str, Any]) -> str:
    """cons@k with its bootstrap interval."""
    low, high = figures.get("cons_at_k_low"), figures.get("cons_at_k_high")
    shown = percent(figures.get("cons_at_k"))
    return shown if low is None or high is None else f"{shown} <small>[{100 * low:.1f}, {100 * high:.1f}]</small>"


def duration(seconds: float) -> str:
    """Seconds as hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def stage_seconds(stage: StageRecord) -> float | None:
    """Wall time of a stage: what its summary says, else until its last row, added up over its processes."""
    said = stage.summary.get("seconds")
    if isinstance(said, int | float):
        return float(said)
    elapsed = series(stage.rows, "time/elapsed")
    if elapsed is None:
        return None
    # A process that goes on counts from 0 again: what the one before had reached is added.
    return float(sum(a for a, b in itertools.pairwise(elapsed.values) if b < a)) + elapsed.last


def draw_figures(stage: StageRecord, folder: Path) -> dict[str, bytes]:
    """The figures that a stage's rows allow, name -> PNG; each is also written to `folder`."""
    drawn = {name: plots.png(figure) for name, figure in _figures(stage).items()}
    for name, data in drawn.items():
        (folder / f"{stage.name}_{name}.png").write_bytes(data)
    return drawn


def _figures(stage: StageRecord) -> Mapping[str, Figure]:
    # Samples per question of the evaluations inside an RL stage: as many as in training.
    return plots.stage_figures(stage.kind, stage.rows, stage.config.get("group_size"))


def stage_title(stage: StageRecord) -> str:
    """What a stage did, and its name."""
    return f"{KIND_TITLES.get(stage.kind, stage.kind)} <small class=muted>{page.text(stage.name)}</small>"


def pictures(stage: StageRecord, figures: Mapping[str, bytes]) -> str:
    """A stage's figures, the wide ones first."""
    wide = "".join(
        page.picture(figures[name], f"{stage.name}: {name}", CAPTIONS[name]) for name in WIDE_FIGURES if name in figures
    )
    small = "".join(
        page.picture(data, f"{stage.name}: {name}") for name, data in figures.items() if name not in WIDE_FIGURES
    )
    return f'<div class="wide">{wide}</div><div class="small">{small}</div>'


def zero_note(stage: StageRecord) -> str:
    """The metrics that were zero throughout, which are not drawn."""
    flat = plots.always_zero(stage.kind, stage.rows)
    return f'<p class="muted">Zero at every step: {page.text("; ".join(flat).lower())}.</p>' if flat else ""


def _reward_chip(name: str, reward: Mapping[str, Any]) -> str:
    status = reward.get("status", "graded")
    if status != "graded":
        reason = f": {reward['reason']}" if reward.get("reason") else ""
        return f'<span class="chip warn">{page.text(f"{name} {status}{reason}")}</span>'
    value = float(reward["value"])
    kind = " good" if value >= 1 else " bad" if value <= 0 else ""
    return f'<span class="chip{kind}">{page.text(f"{name} {value:g}")}</span>'


def chips(row: Row) -> str:
    """Each reward of a sample, their total, its length, and whether the limit cut it."""
    found = [_reward_chip(name, reward) for name, reward in (row.get("rewards") or {}).items()]
    if row.get("total") is not None:
        found.append(f'<span class="chip">total {float(row["total"]):g}</span>')
    if row.get("length") is not None:
        found.append(f'<span class="chip">{int(row["length"]):,} tokens</span>')
    if row.get("finished") is False:
        found.append('<span class="chip warn">cut by the length limit</span>')
    return "".join(found)


def prompt_text(row: Row) -> str:
    """A sample's prompt, folded where it is long."""
    prompt = str(row.get("prompt", ""))
    shown = f'<div class="text prompt">{page.text(prompt)}</div>'
    return page.folded(f"prompt, {len(prompt):,} characters", shown) if len(prompt) > 400 else shown


def sample(row: Row) -> str:
    """One sample: its rewards, its prompt, its completion, the reference answer."""
    answer = f'<div class="muted">reference answer: {page.text(row["answer"])}</div>' if "answer" in row else ""
    return (
        f'<div class="sample"><header><code>{page.text(row.get("id", ""))}</code>{chips(row)}</header>'
        f'{prompt_text(row)}<div class="text">{page.with_tags(row.get("completion", ""))}</div>{answer}</div>'
    )


def configurations(workdir: Path, stages: Sequence[StageRecord]) -> str:
    """The run's configuration and each stage's, folded."""
    shown = {"run": read_json(workdir / "config.json"), **{stage.name: stage.config for stage in stages}}
    return "".join(
        page.folded(f"config.json of {name}", f'<div class="text">{page.text(json.dumps(config, indent=2))}</div>')
        for name, config in shown.items()
        if config
    )
