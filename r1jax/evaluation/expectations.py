"""What is expected of a run, written down before it ran, and whether it came so."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from r1jax.evaluation import estimators, page

DIRECTIONS = ("up", "down", "not_down", "state")
SURE = 2.0  # standard errors from which a difference counts
POINTS = ("length_mean", "length_std", "reflection_words", "mean")  # figures that are no shares, by their last name
INTERVAL = 2 * 1.959964  # width of a 95 % interval in standard errors
CHIPS = {"held": "good", "did not hold": "bad", "within error": "warn", "missing": "warn", "measured": ""}


@dataclasses.dataclass(frozen=True)
class Expectation:
    """A figure of one evaluation is expected to be above or below that of another."""

    claim: str  # in words, with what the paper reports of it; a colon and the numbers follow
    before: str  # labels of the report
    after: str
    metric: str  # path in an evaluation's summary.json: "readable_summary", "by_domain/helpful/pass_at_1"
    direction: str = "up"  # of after against before: "up", "down", "not_down"; "state": nothing is expected

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction: {self.direction!r} is not one of {', '.join(DIRECTIONS)}")
        if not all((self.claim, self.before, self.after, self.metric)):
            raise ValueError("claim, before, after and metric: none of them may be empty")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How an expectation came out."""

    word: str  # a key of CHIPS
    text: str  # the numbers, HTML


def figure_at(figures: Mapping[str, Any], path: str) -> tuple[float | None, float | None]:
    """The figure at a path such as "by_domain/helpful/pass_at_1", and its standard error; None for what is not there.

    cons@k has an interval instead: its error is that of a normal distribution with this interval.
    """
    *parents, name = path.split("/")
    holder: Any = figures
    for parent in parents:
        holder = holder.get(parent) if isinstance(holder, Mapping) else None
    if not isinstance(holder, Mapping):
        return None, None
    value, error = holder.get(name), holder.get(f"{name}_se")
    if name == "cons_at_k" and holder.get("cons_at_k_low") is not None:
        error = (holder["cons_at_k_high"] - holder["cons_at_k_low"]) / INTERVAL
    return value, error


def verdict(expectation: Expectation, before: Mapping[str, Any], after: Mapping[str, Any]) -> Verdict:
    """Compares two evaluations' figures.

    The error of the difference is that of independent estimates: on shared questions it is on the safe side. "Not
    down" has held if the figure rose by whatever amount, or if a fall is within error of none: then it says so.
    """
    pairs = [figure_at(figures, expectation.metric) for figures in (before, after)]
    labels = (expectation.before, expectation.after)
    gone = [label for label, (value, _) in zip(labels, pairs, strict=True) if value is None]
    if gone:
        return Verdict("missing", f"no figure {page.text(expectation.metric)} of {page.text(' and '.join(gone))}")
    known = all(error is not None for _, error in pairs)
    (old, new) = ((value, error if error is not None else 0.0) for value, error in pairs)
    change, error = estimators.difference(old, new)  # type: ignore[arg-type]
    return Verdict(_word(expectation.direction, change, error), _numbers(expectation, pairs, change, error, known))


def _word(direction: str, change: float, error: float) -> str:
    if direction == "state":
        return "measured"
    wanted = -change if direction == "down" else change
    if direction == "not_down" and wanted >= 0:
        return "held"
    if abs(change) < SURE * error or change == 0:
        return "within error"
    return "held" if wanted > 0 else "did not hold"


def _numbers(
    expectation: Expectation,
    pairs: list[tuple[float | None, float | None]],
    change: float,
    error: float,
    known: bool,
) -> str:
    share = expectation.metric.split("/")[-1] not in POINTS
    scale, unit, points = (100, "&nbsp;%", " points") if share else (1, "", "")
    shown = []
    for label, (value, own) in zip((expectation.before, expectation.after), pairs, strict=True):
        spread = "" if own is None else f" ± {scale * own:.1f}"
        shown.append(f"{page.text(label)} {scale * (value or 0.0):.1f}{spread}{unit}")
    if not known:
        return f"{', '.join(shown)}: {scale * change:+.1f}{points}, whose error is not known"
    beyond = f"{abs(change) / error:.1f} standard errors" if error and math.isfinite(error) else "no error"
    return f"{', '.join(shown)}: {scale * change:+.1f} ± {scale * error:.1f}{points} ({beyond})"


def sentence(expectation: Expectation, found: Verdict) -> str:
    """One expectation as a line of the page."""
    return (
        f'<p><span class="chip {CHIPS[found.word]}">{found.word}</span> {page.text(expectation.claim.rstrip("."))}: '
        f'<span class="muted">{found.text}</span></p>'
    )
