"""Whether a text repeats part of an evaluation set: overlap of n-grams of words (the R1 paper: n = 10).

A **word** is a run of letters and digits, case folded after NFKC; or one Han character, since Chinese has no blanks (10
of them are some six words: Chinese texts overlap sooner); or one mathematical sign (`7 + 5` and `7 - 5` are different
questions). Other punctuation and white space do not count. Two texts overlap where they have n words in a row in
common. A text of fewer than n words overlaps only with one of the same words as a whole: short questions made by one
template would match each other otherwise.

What this does not find is a paraphrase, a translation, or the same problem with other names or numbers (the paper says
so of its own decontamination), nor a short question that is quoted within a longer text.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Mapping

from r1jax.data.sources import question_hash
from r1jax.types import Example

WORDS_OF_OVERLAP = 10  # R1 (Nature version, supplement): 10-gram overlap

_HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_SIGNS = "-+*/^%=<>\u00b1\u00d7\u00f7\u2190-\u22ff"
_WORD = re.compile(f"[{_HAN}]|(?:(?![{_HAN}])[^\\W_])+|[{_SIGNS}]")


def words_of(text: str) -> list[str]:
    """The words of a text as overlaps compare them (see the head of this file)."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What a text has in common with an evaluation question."""

    evaluation: str  # name of the set
    id: str  # of its example
    kind: str  # 'same question', 'n words' or 'all words'
    words: str  # those in common

    def __str__(self) -> str:
        return f"{self.kind} of {self.evaluation}, {self.id}: {self.words}"


class EvaluationQuestions:
    """The questions of evaluation sets, to hold texts against."""

    def __init__(self, sets: Mapping[str, Iterable[Example]], n: int = WORDS_OF_OVERLAP) -> None:
        """Reads them once; sets: name -> examples. ValueError unless n is positive."""
        if n < 1:
            raise ValueError(f"n: {n} words; at least 1")
        self.n = n
        self.sizes: dict[str, int] = {}
        self.short: dict[str, int] = {}  # questions of fewer than n words
        self._hashes: dict[str, tuple[str, str]] = {}
        self._texts: dict[tuple[str, ...], tuple[str, str]] = {}  # n words in a row, or fewer: then a whole question
        for name, examples in sets.items():
            self.sizes[name] = self.short[name] = 0
            for example in examples:
                self._add(name, example)

    def _add(self, name: str, example: Example) -> None:
        owner, words = (name, example.id), words_of(example.question)
        self.sizes[name] += 1
        self.short[name] += len(words) < self.n
        self._hashes.setdefault(question_hash(example), owner)
        for gram in self._grams(words):
            self._texts.setdefault(gram, owner)

    def _grams(self, words: list[str]) -> Iterable[tuple[str, ...]]:
        """All n-grams; of a shorter text the whole, of one without a word nothing."""
        if len(words) < self.n:
            return [tuple(words)] if words else []
        return (tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1))

    def overlap(self, text: str) -> Overlap | None:
        """The first overlap of a text, None if there is none."""
        for gram in self._grams(words_of(text)):
            if gram in self._texts:
                kind = "n words" if len(gram) == self.n else "all words"
                return Overlap(*self._texts[gram], kind, " ".join(gram))
        return None

    def overlap_of_question(self, example: Example) -> Overlap | None:
        """As `overlap`, and before it whether the question itself is one of them (`sources.question_hash`)."""
        owner = self._hashes.get(question_hash(example))
        if owner is not None:
            return Overlap(*owner, "same question", example.question)
        return self.overlap(example.question)
