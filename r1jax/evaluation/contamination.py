"""How much of an evaluation a policy may have been trained on: equal questions, and words in common."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from r1jax.data.decontamination import WORDS_OF_OVERLAP, words_of
from r1jax.data.samples import Sample
from r1jax.data.sources import question_hash
from r1jax.types import Example


@dataclasses.dataclass(frozen=True)
class Document:
    """What was trained on, once: the questions in it, and its other texts."""

    questions: tuple[str, ...]
    texts: tuple[str, ...] = ()


def documents_of(trained: Iterable[Sample | Example]) -> Iterator[Document]:
    """What samples and examples hold of text. Of an example that is its question: answers are a word or two."""
    for item in trained:
        if isinstance(item, Example):
            yield Document((item.question,))
        elif item.messages:
            said = {role: tuple(m.content for m in item.messages if m.role == role) for role in ("user", "assistant")}
            yield Document(said["user"], said["assistant"])
        else:
            yield Document((item.question,), (item.completion,))


def contamination(
    examples: Sequence[Example], trained: Mapping[str, Iterable[Document]], n: int = WORDS_OF_OVERLAP
) -> dict[str, Any]:
    """Counts the questions of an evaluation that occur in what was trained on.

    Args:
        examples: the evaluation's, without what a prompt adds to every question.
        trained: name of a file or source -> its documents, read once.
        n: words in a row that two texts have in common if they overlap (`data.decontamination`); a question of fewer
            words only overlaps with one of the same words.

    Returns:
        JSON: `questions`, how many the evaluation has; `equal` and `overlap`, how many of them were asked in training
        but for blanks and case, and how many overlap with a text of it, equal ones among them; `words`, n; and under
        `trained` for every name `documents`, `equal`, `overlap`.
    """
    hashes: dict[str, set[int]] = collections.defaultdict(set)
    grams: dict[tuple[str, ...], set[int]] = collections.defaultdict(set)
    for index, example in enumerate(examples):
        hashes[question_hash(example)].add(index)
        for gram in _grams(words_of(example.question), n):
            grams[gram].add(index)
    equal: set[int] = set()
    overlap: set[int] = set()
    told: dict[str, Any] = {}
    for name, documents in trained.items():
        own_equal: set[int] = set()
        own_overlap: set[int] = set()
        count = 0
        for document in documents:
            count += 1
            for question in document.questions:
                own_equal |= hashes.get(question_hash(Example("", question, "", "")), set())
            for text in (*document.questions, *document.texts):
                for gram in _grams(words_of(text), n):
                    own_overlap |= grams.get(gram, set())
        own_overlap |= own_equal  # a question without a word, say
        told[name] = {"documents": count, "equal": len(own_equal), "overlap": len(own_overlap)}
        equal |= own_equal
        overlap |= own_overlap
    return {"questions": len(examples), "equal": len(equal), "overlap": len(overlap), "words": n, "trained": told}


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n words; of a shorter text its words, of one without any nothing."""
    if len(words) < n:
        return [tuple(words)] if words else []
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
