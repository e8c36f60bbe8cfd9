"""The data card of curated samples: what was asked, what was dropped and why, and what is left, by domain.

Its table has the columns of the R1 paper's Table 5 (samples, average rounds, average tokens) and the counts of each
filter. Whatever was looked at is in exactly one of them: candidates = kept + all that was dropped.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

KEPT = "kept"
REASONING = "reasoning"  # the name of the domain "", whose answers a rule grades


@dataclasses.dataclass(frozen=True)
class Looked:
    """A sample that was looked at."""

    question: str  # which question: id or hash
    fate: str  # KEPT, or what it was dropped for
    sampled: bool  # by this stage; else it was read
    domain: str = ""
    task: str = ""
    language: str = "en"
    tokens: int = 0  # of what is trained: the completion with its end, or all that the assistant says
    rounds: int = 1
    share: float | None = None  # of the thought's words, those in the question's language; None: no words


def domain_of(looked: Looked) -> str:
    """The card's name of a domain."""
    return looked.domain or REASONING


def task_of(looked: Looked) -> str:
    """Domain and task."""
    return f"{domain_of(looked)}/{looked.task}"


def count(looked: Iterable[Looked], group: Callable[[Looked], str], fates: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The row of each group, by name, and "total". `fates`: what a sample may be dropped for, in order."""
    everything = list(looked)
    groups: dict[str, list[Looked]] = {}
    for one in everything:
        groups.setdefault(group(one), []).append(one)
    return {name: _row(groups[name], fates) for name in sorted(groups)} | {"total": _row(everything, fates)}


def _row(looked: Sequence[Looked], fates: Sequence[str]) -> dict[str, Any]:
    counts = Counter(one.fate for one in looked)
    kept = [one for one in looked if one.fate == KEPT]
    shares = [one.share for one in kept if one.share is not None]
    languages = Counter(one.language for one in kept)
    return {
        "questions_asked": len({one.question for one in looked if one.sampled}),
        "sampled": sum(one.sampled for one in looked),
        "read": sum(not one.sampled for one in looked),
        "dropped": {fate: counts[fate] for fate in fates},
        "kept": len(kept),
        "questions_kept": len({one.question for one in kept}),
        "mean_tokens": _mean([one.tokens for one in kept]),
        "mean_rounds": _mean([one.rounds for one in kept]),
        "languages": {name: languages[name] / len(kept) for name in sorted(languages)},
        "language_consistency": _mean(shares),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def markdown(title: str, card: Mapping[str, Any]) -> str:
    """The card as a page: `card` as the stage writes it to data_card.json."""
    lines = [f"# {title}", "", *_told(card), "", "## By domain", "", *_table(card["by_domain"])]
    lines += ["", *_empty(card["by_domain"]["total"]["dropped"])]
    if len(card["by_task"]) > len(card["by_domain"]):
        lines += ["", "## By task", "", *_table(card["by_task"])]
    lines += ["", "## Filters, in this order", ""]
    lines += _settings(card["filters"])
    if card["rewritten_filters"]:
        lines += ["", "What is rewritten then passes these:", "", *_settings(card["rewritten_filters"])]
    if card["proportions"]:
        lines += ["", "## Proportions", "", "| group | asked for | there | taken | left |", "|---|---|---|---|---|"]
        lines += [
            f"| {group} | {row['share']:.1%} | {row['there']:,} | {row['taken']:,} | {row['left']:,} |"
            for group, row in card["proportions"].items()
        ]
    return "\n".join([*lines, "", "## Decontamination", "", *_decontamination(card["decontamination"])]) + "\n"


def _told(card: Mapping[str, Any]) -> list[str]:
    questions = card["questions"]
    lines = [
        f"{questions['source']:,} questions, of which {questions['contaminated']:,} overlap with evaluation questions "
        f"and were not asked. {card['samples']} samples of each of the others at temperature "
        f"{card['temperature']:g}, top-p {card['top_p']:g}; at most {card['per_prompt']} of each question are kept "
        f"({card['selection']})."
    ]
    if card["rewriting"]:
        lines.append(f"Rewritten by: {card['rewriting']}.")
    return lines


def _table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Drops that are zero everywhere have no column; `_empty` names them."""
    shown = [fate for fate, dropped in rows["total"]["dropped"].items() if dropped]
    head = ["", "questions", "sampled", "read", *shown, "kept", "of questions", "tokens", "rounds", "languages"]
    lines = ["| " + " | ".join([*head, "in it"]) + " |", "|" + "---|" * (len(head) + 1)]
    for name, row in rows.items():
        counts = [row["questions_asked"], row["sampled"], row["read"], *(row["dropped"][fate] for fate in shown)]
        languages = ", ".join(f"{language} {share:.0%}" for language, share in row["languages"].items())
        cells = [f"{value:,}" for value in [*counts, row["kept"], row["questions_kept"]]]
        cells += [_figure(row["mean_tokens"], "{:,.1f}"), _figure(row["mean_rounds"], "{:.1f}"), languages or "–"]
        lines.append("| " + " | ".join([name, *cells, _figure(row["language_consistency"], "{:.1%}")]) + " |")
    return lines


def _settings(filters: Mapping[str, Any]) -> list[str]:
    words = {True: "on", False: "off", None: "off"}
    return [
        f"- {name}: {words[setting] if setting is None or isinstance(setting, bool) else setting}"
        for name, setting in filters.items()
    ]


def _empty(dropped: Mapping[str, int]) -> list[str]:
    lines = [
        "Candidates = sampled + read = kept + all that was dropped. Tokens and rounds are means over what is kept; "
        '"in it" is the share of the thoughts\' words in the language of the question.'
    ]
    empty = [fate for fate, count in dropped.items() if not count]
    return [*lines, "", f"Nothing was dropped for: {', '.join(empty)}."] if empty else lines


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _decontamination(found: Mapping[str, Any]) -> list[str]:
    if not found["sets"]:
        return ["Not held against any evaluation set."]
    lines = [f"{found['n']}-grams of words, against:", ""]
    lines += [
        f"- {name}: {row['questions']:,} questions, {row['short']:,} of them shorter: compared as a whole"
        for name, row in found["sets"].items()
    ]
    lines += ["", "Overlaps: " + ", ".join(f"{count:,} of {name}" for name, count in found["overlaps"].items()) + "."]
    if found["examples"]:
        lines += ["", "| what | text | overlap |", "|---|---|---|"]
        lines += [f"| {row['what']} | {_cell(row['text'])} | {_cell(row['overlap'])} |" for row in found["examples"]]
    return [*lines, "", "Paraphrases and translations are not found this way."]


def _cell(text: str, longest: int = 160) -> str:
    """A text within a table."""
    plain = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return plain if len(plain) <= longest else plain[:longest] + "…"
