"""Samples under curation: where each comes from and what has become of it so far."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence

from r1jax.data.chat import Message
from r1jax.data.data_card import KEPT, Looked
from r1jax.data.decontamination import EvaluationQuestions, Overlap
from r1jax.data.samples import Sample
from r1jax.data.selection import choose, find_duplicates
from r1jax.data.sources import question_hash
from r1jax.data.tokenizer import Tokenizer
from r1jax.rewards.filters import Candidate, Drop
from r1jax.rewards.languages.language import check_language, language_share
from r1jax.rewards.patterns import PATTERNS
from r1jax.types import Example

CONTAMINATED = "contaminated"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A sample that is looked at."""

    id: str
    example: Example  # what is asked; of several rounds all that the user says
    completion: str  # as it would be trained on; of several rounds all that the assistant says
    tokens: int  # of the completion, its end included
    candidate: Candidate | None = None  # as it was sampled; None: it was read from elsewhere
    pattern: str = ""  # of the completion; empty: unknown
    messages: tuple[Message, ...] = ()
    source: str = ""
    drop: Drop | None = None

    @property
    def asked(self) -> list[str]:
        """What the user says, round by round."""
        return [message.content for message in self.messages if message.role == "user"] or [self.example.question]

    @property
    def said(self) -> list[str]:
        """What the assistant says, round by round."""
        return [message.content for message in self.messages if message.role == "assistant"] or [self.completion]

    @property
    def kept(self) -> bool:
        """Whether nothing has been found against it so far."""
        return self.drop is None

    def dropped(self, name: str, reason: str = "") -> Entry:
        """The same, dropped."""
        return dataclasses.replace(self, drop=Drop(name, reason))

    def sample(self) -> Sample:
        """As it is trained on."""
        example = self.example
        asked = {} if self.messages else {"question": example.question, "completion": self.completion}
        return Sample(
            id=self.id,
            **asked,
            answer=example.answer,
            task=example.task,
            language=example.language,
            domain=example.domain,
            source=self.source,
            messages=self.messages,
            metadata=example.metadata if self.candidate is None else {"tokens": self.tokens},
        )

    def looked(self) -> Looked:
        """As the data card counts it."""
        return Looked(
            question=question_hash(self.example),
            fate=KEPT if self.drop is None else self.drop.filter,
            sampled=self.candidate is not None,
            domain=self.example.domain,
            task=self.example.task,
            language=self.example.language,
            tokens=self.tokens,
            rounds=len(self.said),
            share=self._share() if self.kept and self.candidate is not None else None,
        )

    def _share(self) -> float | None:
        """Share of the thought's words in the question's language; None without words, or where it cannot be told."""
        thought = PATTERNS[self.pattern].parse(self.completion).thought
        try:
            check_language(self.example.language)
        except ValueError:
            return None
        return language_share(self.completion if thought is None else thought, self.example.language)


def read_entry(sample: Sample, name: str, source: str, tokenizer: Tokenizer) -> Entry:
    """A sample that was not made by this stage, under another name."""
    said = [message.content for message in sample.messages if message.role == "assistant"] or [sample.completion]
    asked = [message.content for message in sample.messages if message.role == "user"] or [sample.question]
    fields = (sample.answer, sample.task, sample.language, sample.metadata, sample.domain)
    return Entry(
        id=name,
        example=Example(name, "\n".join(asked), *fields),
        completion="\n".join(said),
        tokens=sum(len(tokenizer.encode(text)) + 1 for text in said),
        messages=sample.messages,
        source=sample.source or source,
    )


def without_overlap(entries: Sequence[Entry], known: EvaluationQuestions, completions: bool) -> list[Entry]:
    """The same, with those dropped that overlap with an evaluation set.

    Of what was sampled, the questions are known not to; completions: what is said is held against the sets too.
    """
    found = [_overlap(entry, known, completions) if entry.kept else None for entry in entries]
    return [
        entry if one is None else entry.dropped(CONTAMINATED, str(one))
        for entry, one in zip(entries, found, strict=True)
    ]


def _overlap(entry: Entry, known: EvaluationQuestions, completions: bool) -> Overlap | None:
    asked = [dataclasses.replace(entry.example, question=text) for text in entry.asked if entry.candidate is None]
    found = [known.overlap_of_question(example) for example in asked]
    found += [known.overlap(text) for text in entry.said if completions]
    return next((one for one in found if one is not None), None)


def within_questions(entries: Sequence[Entry], prune: Callable[[list[Entry]], list[Entry]]) -> list[Entry]:
    """The same, after `prune` saw those that are kept of each question together, in their order."""
    groups: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        if entry.kept:
            groups.setdefault(question_hash(entry.example), []).append(index)
    pruned = list(entries)
    for indices in groups.values():
        for index, entry in zip(indices, prune([entries[i] for i in indices]), strict=True):
            pruned[index] = entry
    return pruned


def without_duplicates(group: list[Entry], near: float | None = None, prefix: str = "") -> list[Entry]:
    """The same, with those dropped that repeat an earlier one; `prefix` of the name under which they are."""
    found = find_duplicates([entry.completion for entry in group], near)
    return [entry.dropped(prefix + found[i]) if i in found else entry for i, entry in enumerate(group)]


def selected(group: list[Entry], count: int, rule: str, seed: int) -> list[Entry]:
    """The same, with those dropped that are more than `count` (`data.selection.choose`)."""
    name = group[0].example.id
    chosen = set(choose([entry.tokens for entry in group], count, rule, seed, name))
    return [entry if i in chosen else entry.dropped("not_selected") for i, entry in enumerate(group)]


def some_dropped(entries: Sequence[Entry], fates: Sequence[str], count: int, seed: int) -> list[dict[str, str]]:
    """At most `count` random entries of each of the `fates`, as rows for a reader."""
    rows = []
    for fate in fates:
        own = [entry for entry in entries if entry.drop is not None and entry.drop.filter == fate]
        for entry in random.Random(json.dumps([seed, fate])).sample(own, min(count, len(own))):
            assert entry.drop is not None
            rows.append(
                {
                    "dropped_for": fate,
                    "reason": entry.drop.reason,
                    "id": entry.id,
                    "domain": entry.example.domain,
                    "task": entry.example.task,
                    "language": entry.example.language,
                    "question": entry.example.question,
                    "answer": entry.example.answer,
                    "completion": entry.completion,
                }
                | ({"sampled": entry.candidate.text} if entry.candidate else {})
            )
    return rows
