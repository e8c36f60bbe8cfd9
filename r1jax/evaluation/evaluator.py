"""Asks a policy every question k times and grades the answers."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from r1jax.evaluation.estimators import Evaluation
from r1jax.rewards.answer import extract_final_answer
from r1jax.rewards.combine import Scores
from r1jax.rewards.grading import Grading
from r1jax.rewards.languages.language import language_share, reflection_count, thought_of
from r1jax.rewards.mathematics.math_accuracy import answer_key
from r1jax.rollout import Completer, GradedRollout, load_graded, save_graded
from r1jax.types import Array, Example, Params, Score


def answer_examples(
    completer: Completer,
    params: Params,
    examples: Sequence[Example],
    samples: int,
    key: Array,
    grading: Grading,
    store: pathlib.Path,
    limit: int | None = None,
) -> GradedRollout:
    """`samples` graded answers to each example, no longer than `limit` tokens.

    They are written to `store`; if they lie there already, nothing is sampled or graded again.
    """
    if store.exists():
        graded, _ = load_graded(store)
    else:
        batch = grading.begin()
        rollout, texts = completer.complete(params, examples, samples, key, limit, batch)
        graded = GradedRollout(rollout, tuple(examples), texts, batch.scores())
        save_graded(store, graded, {})
    return graded


def evaluation_of(parts: Sequence[GradedRollout]) -> Evaluation:
    """What was measured on graded answers; all parts have the same number of samples per example."""
    samples = parts[0].samples
    examples = [example for part in parts for example in part.examples]
    texts = [text for part in parts for text in part.texts]
    scores = [score for part in parts for score in part.scores]
    shape = (len(examples), samples)

    def table(values: Any, dtype: Any) -> np.ndarray:
        return np.array(values, dtype).reshape(shape)

    accuracies = [score.parts["accuracy"] for score in scores]
    shares = [_share(*pair, examples[i // samples]) for i, pair in enumerate(zip(texts, scores, strict=True))]
    graded = table([a.graded for a in accuracies], bool)
    correct = table([is_right(a) for a in accuracies], bool)
    votes = [_vote(text, examples[i // samples]) for i, text in enumerate(texts)]
    answers = [votes[i : i + samples] for i in range(0, len(votes), samples)]
    steps = [example.metadata.get("steps") for example in examples]
    return Evaluation(
        correct=correct,
        graded=graded,
        answers=answers,
        right=[_right_votes(*row) for row in zip(answers, correct, graded, strict=True)],
        lengths=table(np.concatenate([p.rollout.response_lengths for p in parts]), np.int64),
        finished=table(np.concatenate([p.rollout.finished for p in parts]), bool),
        format=table([s.parts["format"].value for s in scores], np.float64),
        language=table([np.nan if share is None else share for share in shares], np.float64),
        reflection=table([reflection_count(text) for text in texts], np.int64),
        groups=[f"{e.task}, {s} steps" for e, s in zip(examples, steps, strict=True)] if None not in steps else None,
    )


def _share(text: str, scores: Scores, example: Example) -> float | None:
    """The share of words in the example's language; None without a word, or where that language cannot be told."""
    return language_share(thought_of(text), example.language) if scores.parts["language"].graded else None


def is_right(score: Score) -> bool:
    """Whether the grader gave full marks."""
    return score.graded and score.value >= 1.0


def _vote(text: str, example: Example) -> str | None:
    """The same string for answers that state the same; None for a completion without an answer."""
    answer = extract_final_answer(text)
    return None if answer is None else answer_key(answer, bool(example.metadata.get("any_order", False)))


def _right_votes(votes: Sequence[str | None], correct: np.ndarray, graded: np.ndarray) -> frozenset[str | None] | None:
    """Those votes of a problem that the grader accepts, most of the times that it saw one: answers of one vote may be
    written in ways that it tells apart (50 and 50 %). None: nothing was graded."""
    if not graded.any():
        return None
    seen: dict[str | None, list[bool]] = {}
    for vote, right, known in zip(votes, correct, graded, strict=True):
        if known:
            seen.setdefault(vote, []).append(bool(right))
    return frozenset(vote for vote, rights in seen.items() if 2 * sum(rights) > len(rights))
