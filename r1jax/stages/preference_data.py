"""From responses to pairs and labels: what is compared, what the judge says, what is kept, and the counts of it all."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from r1jax.rewards.answer import THINK_CLOSE
from r1jax.rewards.judges.judge import PairwiseJudge, Preference
from r1jax.rewards.judges.reward_models import helpfulness_input, safety_input
from r1jax.rewards.judges.rule_judge import RuleJudge, RuleLabeller
from r1jax.rewards.judges.safety_judge import SafetyJudge
from r1jax.types import Example, Score, Status

HELPFUL, HARMLESS = "helpful", "harmless"
KEPT = "kept"
# What becomes of two responses to one prompt, in the order in which it is found out.
PAIR_FATES = ("no_summary", "identical", "repeated", "lengths", "not_asked", "ungradable", "small_gap", KEPT)
LABEL_FATES = ("identical", "ungradable", "safe", "unsafe")


@dataclasses.dataclass(frozen=True)
class Answered:
    """A prompt with the policy's responses."""

    example: Example
    texts: tuple[str, ...]  # whole, thinking included
    lengths: tuple[int, ...]  # tokens, the stop token included
    prompt_length: int  # tokens


class Judges(Protocol):
    """Who prefers and labels."""

    def prefer(self, pairs: Sequence[tuple[Example, str, str]]) -> list[Preference]:
        """What is said of each (example, summary a, summary b)."""
        ...

    def label(self, responses: Sequence[tuple[Example, str]]) -> list[Score]:
        """1 where the response is safe, 0 where not; no grade where nothing was said."""
        ...


class ModelJudges:
    """A model that is asked."""

    def __init__(self, pairwise: PairwiseJudge, safety: SafetyJudge) -> None:
        self._pairwise, self._safety = pairwise, safety

    def prefer(self, pairs: Sequence[tuple[Example, str, str]]) -> list[Preference]:
        """See `Judges`."""
        return self._pairwise.prefer_all([(example.question, a, b) for example, a, b in pairs])

    def label(self, responses: Sequence[tuple[Example, str]]) -> list[Score]:
        """See `Judges`."""
        return self._safety.label_all([(example.question, text) for example, text in responses])


class RuleJudges:
    """The rule of the made-up world, with stated errors."""

    def __init__(self, judge: RuleJudge, labeller: RuleLabeller) -> None:
        self._judge, self._labeller = judge, labeller

    def prefer(self, pairs: Sequence[tuple[Example, str, str]]) -> list[Preference]:
        """See `Judges`. The rule looks for the reply behind a closed thought."""
        closed = [(example, f"{THINK_CLOSE} {a}", f"{THINK_CLOSE} {b}") for example, a, b in pairs]
        return self._judge.prefer_all(closed)

    def label(self, responses: Sequence[tuple[Example, str]]) -> list[Score]:
        """See `Judges`."""
        return [Score(float(safe)) for safe in self._labeller.label_all(responses)]


# Pairs ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PairRules:
    """Which pairs are asked about, and which are kept."""

    per_prompt: int
    max_ratio: float
    min_gap: float
    seed: int


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """Two responses of one prompt, by their places, and why they are not compared; "" if they are."""

    answered: Answered
    places: tuple[int, int]
    summaries: tuple[str, str]
    lengths: tuple[int, int]  # tokens of the summaries
    fate: str


def judge_pairs(
    answered: Sequence[Answered], tokens: Callable[[str], int], rules: PairRules, judges: Judges
) -> list[dict[str, Any]]:
    """One record for every two responses to one prompt: its `fate` (of PAIR_FATES), and the row of pairs.jsonl if kept.

    Of the pairs whose final summaries differ, are not those of an earlier pair, and have comparable lengths, at most
    `per_prompt` of each prompt are judged, drawn at random from the seed and the prompt's id alone. The judge sees the
    summaries only.
    """
    candidates = [c for one in answered for c in _candidates(one, tokens, rules)]
    asked = [c for c in candidates if not c.fate]
    said = iter(judges.prefer([(c.answered.example, *c.summaries) for c in asked]))
    return [_pair_record(c, None if c.fate else next(said), rules.min_gap) for c in candidates]


def _candidates(answered: Answered, tokens: Callable[[str], int], rules: PairRules) -> list[_Candidate]:
    summaries = [helpfulness_input(text) for text in answered.texts]
    lengths = [tokens(summary) if summary else 0 for summary in summaries]
    found: list[_Candidate] = []
    seen: set[frozenset[str]] = set()
    for i, j in itertools.combinations(range(len(summaries)), 2):
        pair = (summaries[i] or "", summaries[j] or "")
        shorter, longer = sorted((lengths[i], lengths[j]))
        if not all(pair):
            fate = "no_summary"
        elif pair[0] == pair[1]:
            fate = "identical"
        elif frozenset(pair) in seen:
            fate = "repeated"
        else:
            fate = "lengths" if longer > rules.max_ratio * shorter else ""
        seen.add(frozenset(pair))
        found.append(_Candidate(answered, (i, j), pair, (lengths[i], lengths[j]), fate))
    open_ones = [place for place, candidate in enumerate(found) if not candidate.fate]
    random.Random(f"{rules.seed}:{answered.example.id}").shuffle(open_ones)
    for place in open_ones[rules.per_prompt :]:
        found[place] = dataclasses.replace(found[place], fate="not_asked")
    return found


def _pair_record(candidate: _Candidate, said: Preference | None, min_gap: float) -> dict[str, Any]:
    example = candidate.answered.example
    record: dict[str, Any] = {"fate": candidate.fate, "task": example.task, "language": example.language}
    if said is None:
        return record
    record["votes"] = {"valid": said.votes, "unparseable": said.unparseable, "unanswered": said.unanswered}
    if said.status is not Status.GRADED:
        return record | {"fate": "ungradable", "reason": said.reason}
    if abs(said.difference) <= min_gap:
        return record | {"fate": "small_gap"}
    better, worse = (0, 1) if said.difference > 0 else (1, 0)
    texts = [candidate.answered.texts[place] for place in candidate.places]
    row = {
        "id": f"{example.id}/{candidate.places[0]}-{candidate.places[1]}",
        "question": example.question,
        "chosen": texts[better],
        "rejected": texts[worse],
        "gap": abs(said.difference),
        "votes": said.votes,
        "unparseable": said.unparseable,
        "unanswered": said.unanswered,
        "chosen_length": candidate.lengths[better],
        "rejected_length": candidate.lengths[worse],
        "language": example.language,
        "task": example.task,
        "domain": example.domain,
    }
    return record | {"fate": KEPT, "row": row}


def empty_pairs(records: Sequence[Mapping[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """Rows that prefer something to nothing: the chosen response of a kept pair, and the empty response as rejected.

    In use a reward model is asked about the empty response where one has no final summary, which it has not seen in
    pairs of comparable length. The pairs are drawn from the seed and their ids, `share` of them on average.
    """
    rows = [record["row"] for record in records if "row" in record]
    drawn = [row for row in rows if random.Random(f"{seed}:empty:{row['id']}").random() < share]
    return [
        {**row, "id": f"{row['id']}/empty", "rejected": "", "gap": None, "votes": 0, "rejected_length": 0}
        | {"unparseable": 0, "unanswered": 0}
        for row in drawn
    ]


# Labels ---------------------------------------------------------------------------------------------------------------


def judge_safety(answered: Sequence[Answered], judges: Judges) -> list[dict[str, Any]]:
    """One record for every response: its `fate` (of LABEL_FATES), and the row of labels.jsonl if it has a label.

    Of responses to one prompt with the same text the first is labelled. The judge sees the whole response.
    """
    responses = [(one, place, safety_input(text)) for one in answered for place, text in enumerate(one.texts)]
    first = [text not in one.texts[:place] for one, place, text in responses]
    fresh = [(one.example, text) for (one, _, text), new in zip(responses, first, strict=True) if new]
    said = iter(judges.label(fresh))
    return [
        _label_record(one, place, next(said) if new else None)
        for (one, place, _), new in zip(responses, first, strict=True)
    ]


def _label_record(answered: Answered, place: int, said: Score | None) -> dict[str, Any]:
    example = answered.example
    record: dict[str, Any] = {"fate": "identical", "task": example.task, "language": example.language}
    if said is None:
        return record
    if not said.graded:
        return record | {"fate": "ungradable", "reason": said.reason}
    row = {
        "id": f"{example.id}/{place}",
        "question": example.question,
        "completion": answered.texts[place],
        "safe": said.value > 0.5,
        "length": answered.lengths[place],
        "language": example.language,
        "task": example.task,
        "domain": example.domain,
    }
    return record | {"fate": "safe" if row["safe"] else "unsafe", "row": row}


# The card -------------------------------------------------------------------------------------------------------------


def card_of(pairs: Sequence[Mapping[str, Any]], labels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of all candidates by fate, in total and by language and task; every candidate has one fate.

    `longer_preferred`: share of kept pairs, among those whose summaries differ in length, in which the longer one is
    preferred (None: there are none).
    """
    return {
        "pairs": _groups(pairs, PAIR_FATES, _pair_figures),
        "labels": _groups(labels, LABEL_FATES, lambda records: {}),
    }


def _groups(
    records: Sequence[Mapping[str, Any]],
    fates: Sequence[str],
    figures: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]],
) -> dict[str, Any]:
    def counted(chosen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        counts = Counter(record["fate"] for record in chosen)
        return {"candidates": len(chosen), **{fate: counts[fate] for fate in fates}, **figures(chosen)}

    table: dict[str, Any] = {"total": counted(records)}
    for group in ("language", "task"):
        names = sorted({record[group] for record in records})
        table[f"by_{group}"] = {name: counted([r for r in records if r[group] == name]) for name in names}
    reasons = Counter(record["reason"] for record in records if "reason" in record)
    return table | {"ungradable_reasons": dict(reasons.most_common(5))}


def _pair_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [record["row"] for record in records if "row" in record]
    gaps = [row["chosen_length"] - row["rejected_length"] for row in rows]
    differing = [gap for gap in gaps if gap]
    votes: Counter[str] = Counter()
    for record in records:
        votes.update(record.get("votes", {}))
    return {
        "longer_preferred": sum(gap > 0 for gap in differing) / len(differing) if differing else None,
        "of_one_length": len(gaps) - len(differing),
        "mean_gap": sum(row["gap"] for row in rows) / len(rows) if rows else None,
        "votes": {name: votes[name] for name in ("valid", "unparseable", "unanswered")},
    }


def markdown(card: Mapping[str, Any]) -> str:
    """The card as a page."""
    lines = ["# Preferences and labels", "", *_setting(card["settings"])]
    for name, fates in (("pairs", PAIR_FATES), ("labels", LABEL_FATES)):
        table = card[name]
        lines += ["", f"## {name.capitalize()}", "", *_table(table, fates)]
        if name == "pairs":
            share, votes = table["total"]["longer_preferred"], table["total"]["votes"]
            told = (
                "no kept pair differs in length" if share is None else f"preferred in {100 * share:.1f} % of the kept"
            )
            lines += ["", f"The longer summary: {told}. Votes: {', '.join(f'{n} {c}' for n, c in votes.items())}."]
            lines += ["", f"Added to them, with the empty response as the rejected one: {card['empty_pairs']}."]
        lines += [f"- {count} ungradable: {reason}" for reason, count in table["ungradable_reasons"].items()]
    return "\n".join(lines) + "\n"


def _setting(settings: Mapping[str, Any]) -> Iterable[str]:
    return (f"- {name.replace('_', ' ')}: {value}" for name, value in settings.items())


def _table(table: Mapping[str, Any], fates: Sequence[str]) -> list[str]:
    columns = ["candidates", *fates]
    lines = ["| | " + " | ".join(c.replace("_", " ") for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    rows = {"total": table["total"], **table["by_language"], **table["by_task"]}
    return lines + [f"| {name} | " + " | ".join(str(row[c]) for c in columns) + " |" for name, row in rows.items()]
