"""Whether a text repeats part of an evaluation set: overlap of n-grams of words (the R1 paper: n = 10).

A **word** is a run of letters and digits, case folded after NFKC; or one Han character, since Chinese has no blanks (10
of them are some six words: Chinese texts overlap sooner); or one mathematical sign (`7 + 5` and `7 - 5` are different
questions). Other punctuation and white space do not count. Two texts overlap where they have n words in a row in
common. A text of fewer than n words overlaps only with one of the same words as a whole: short questions made by one
template would match each other otherwise.

Questions of one task are often worded alike around a few numbers. What all of them in a set have in common at the
beginning and at the end (of at least 10 in one language) is their **frame**, and is not compared: of "State the final
answer to the following problem: 7 + 5 =" only `7 + 5` is, as a whole, with questions in the same frame.

What this does not find is a paraphrase, a translation, or the same problem with other names or numbers (the paper says
so of its own decontamination), nor a short question that is quoted within a longer text.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from r1jax.data.sources import question_hash
from r1jax.types import Example

WORDS_OF_OVERLAP = 10  # R1 (Nature version, supplement): 10-gram overlap
FRAMED = 10  # questions that have something in common by more than chance

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


@dataclasses.dataclass(frozen=True)
class Frame:
    """The words around what is particular to a question."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def within(self, words: Sequence[str]) -> tuple[str, ...] | None:
        """The words inside; None if the text does not stand in this frame."""
        end = len(words) - len(self.after)
        fits = len(self.before) <= end and tuple(words[: len(self.before)]) == self.before
        return tuple(words[len(self.before) : end]) if fits and tuple(words[end:]) == self.after else None


def frame_of(questions: Sequence[Sequence[str]]) -> Frame:
    """What all questions, as words, begin and end with; nothing for fewer than 10."""
    if len(questions) < FRAMED:
        return Frame()
    before = _common(questions)
    rest = [words[len(before) :] for words in questions]
    return Frame(before, _common([words[::-1] for words in rest])[::-1])


def _common(texts: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """What all begin with."""
    first, last = min(map(tuple, texts)), max(map(tuple, texts))  # in the order of their words: all others are between
    same = (a == b for a, b in zip(first, last, strict=False))
    return tuple(first[: sum(itertools.takewhile(bool, same))])


class EvaluationQuestions:
    """The questions of evaluation sets, to hold texts against."""

    def __init__(self, sets: Mapping[str, Iterable[Example]], n: int = WORDS_OF_OVERLAP) -> None:
        """Reads them once; sets: name -> examples. ValueError unless n is positive."""
        if n < 1:
            raise ValueError(f"n: {n} words; at least 1")
        self.n = n
        self.sizes: dict[str, int] = {}
        self.short: dict[str, int] = {}  # questions of fewer than n words, their frames not counted
        self._hashes: dict[str, tuple[str, str]] = {}
        self._grams: dict[tuple[str, ...], tuple[str, str]] = {}
        self._wholes: dict[tuple[Frame, tuple[str, ...]], tuple[str, str]] = {}
        for name, examples in sets.items():
            self.sizes[name] = self.short[name] = 0
            groups: dict[tuple[str, str], list[Example]] = {}
            for example in examples:
                groups.setdefault((example.task, example.language), []).append(example)
            for group in groups.values():
                self._add(name, group)
        self._frames = list(dict.fromkeys(frame for frame, _ in self._wholes))

    def _add(self, name: str, group: Sequence[Example]) -> None:
        questions = [words_of(example.question) for example in group]
        frame = frame_of(questions)
        for example, question in zip(group, questions, strict=True):
            owner, words = (name, example.id), frame.within(question)
            assert words is not None  # it is the frame of all
            self.sizes[name] += 1
            self._hashes.setdefault(question_hash(example), owner)
            if len(words) < self.n:
                self.short[name] += 1
                self._wholes.setdefault((frame, words), owner)
            for gram in self._grams_of(words):
                self._grams.setdefault(gram, owner)

    def _grams_of(self, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        return (words[i : i + self.n] for i in range(len(words) - self.n + 1))

    def overlap(self, text: str) -> Overlap | None:
        """The first overlap of a text, None if there is none."""
        words = tuple(words_of(text))
        for frame in self._frames:
            inside = frame.within(words)
            if inside and (frame, inside) in self._wholes:
                return Overlap(*self._wholes[frame, inside], "all words", " ".join(inside))
        for gram in self._grams_of(words):
            if gram in self._grams:
                return Overlap(*self._grams[gram], "n words", " ".join(gram))
        return None

    def overlap_of_question(self, example: Example) -> Overlap | None:
        """As `overlap`, and before it whether the question itself is one of them (`sources.question_hash`)."""
        owner = self._hashes.get(question_hash(example))
        if owner is not None:
            return Overlap(*owner, "same question", example.question)
        return self.overlap(example.question)
