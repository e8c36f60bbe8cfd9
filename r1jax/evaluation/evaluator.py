"""Asks a policy every question k times and grades the answers."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from r1jax.evaluation.estimators import Evaluation
from r1jax.processes import from_writer
from r1jax.rewards.answer import extract_final_answer
from r1jax.rewards.combine import RewardConfig, Scores, needs_verifier
from r1jax.rewards.grading import Grading
from r1jax.rewards.instructions import can_be_unsafe, is_safe
from r1jax.rewards.languages.language import language_share, reflection_count, thought_of, word_counts
from r1jax.rewards.mathematics.math_accuracy import answer_key
from r1jax.rewards.patterns import PATTERNS, Pattern, summary_of
from r1jax.rollout import Completer, GradedRollout, load_graded, save_graded
from r1jax.types import Array, Example, Params, Score

ONE_LANGUAGE = 0.95  # share of words from which a text is in one language: names and formulas are in none
USUAL = RewardConfig()
VOTED = (
    "math",
    "exact",
    "expressions",
    "judge",
)  # comparisons of final answers; programs and replies are all different
SUMMARY_WORDS = 2  # fewest in a summary: an answer alone is not one


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
    if from_writer(store.exists):
        graded, _ = load_graded(store)
    else:
        batch = grading.begin()
        rollout, texts = completer.complete(params, examples, samples, key, limit, batch)
        graded = GradedRollout(rollout, tuple(examples), texts, batch.scores())
        save_graded(store, graded, {})
    return graded


def evaluation_of(parts: Sequence[GradedRollout], rewards: RewardConfig = USUAL) -> Evaluation:
    """What was measured on graded answers; all parts have the same number of samples per example.

    rewards: how they were graded: the form that they were asked in, and what is compared in which domain.
    """
    samples = parts[0].samples
    examples = [example for part in parts for example in part.examples]
    texts = [text for part in parts for text in part.texts]
    scores = [score for part in parts for score in part.scores]
    asked = [examples[i // samples] for i in range(len(texts))]
    shape = (len(examples), samples)

    def table(values: Any, dtype: Any) -> np.ndarray:
        return np.array(values, dtype).reshape(shape)

    accuracies = [score.parts.get("accuracy") for score in scores]
    patterns = [PATTERNS[rewards.mix(example.domain).pattern] for example in asked]
    shares = [_share(*of) for of in zip(texts, scores, asked, patterns, strict=True)]
    graded = table([a is not None and a.graded for a in accuracies], bool)
    correct = table([a is not None and is_right(a) for a in accuracies], bool)
    votes = [_vote(*of) for of in zip(texts, asked, patterns, strict=True)]
    answers = [votes[i : i + samples] for i in range(0, len(votes), samples)]
    right = [_right_votes(*row) for row in zip(answers, correct, graded, strict=True)]
    voted = [needs_verifier(e) or rewards.mix(e.domain).comparison in VOTED for e in examples]
    names = sorted({name for score in scores for name in score.parts})
    return Evaluation(
        correct=correct,
        graded=graded,
        answers=answers,
        right=[known if votes else None for known, votes in zip(right, voted, strict=True)],
        lengths=table(np.concatenate([p.rollout.response_lengths for p in parts]), np.int64),
        finished=table(np.concatenate([p.rollout.finished for p in parts]), bool),
        format=table([s.parts["format"].value for s in scores], np.float64),
        language=table([np.nan if share is None else share for share in shares], np.float64),
        single_language=table([_single(*of) for of in zip(shares, scores, strict=True)], np.float64),
        readable_summary=table([_readable(*of) for of in zip(texts, scores, asked, strict=True)], np.float64),
        safe=table([_safe(*of) for of in zip(texts, asked, strict=True)], np.float64),
        reflection=table([reflection_count(text) for text in texts], np.int64),
        compared=np.array([a is not None for a in accuracies[::samples]]),  # so for all answers of an example
        rewards={name: table([_value(score, name) for score in scores], np.float64) for name in names},
        domains=[example.domain for example in examples],
        groups=_difficulties(examples),
    )


def _language_known(scores: Scores) -> bool:
    """Whether it can be told if text is in the prompt's language."""
    return scores.parts["language"].graded


def _share(text: str, scores: Scores, example: Example, pattern: Pattern) -> float | None:
    """The share of the thought's words in the example's language; None without a word, or where that language cannot
    be told."""
    if not _language_known(scores):
        return None
    return language_share(thought_of(text, pattern.parse), example.language)


def _single(share: float | None, scores: Scores) -> float:
    """1 where nearly all words of a thought, and at least one, are in the example's language; nan where that language
    cannot be told."""
    return float((share or 0.0) >= ONE_LANGUAGE) if _language_known(scores) else np.nan


def _readable(text: str, scores: Scores, example: Example) -> float:
    """1 where what follows the thought has `SUMMARY_WORDS` words or more, nearly all of them in the example's language;
    nan where that language cannot be told."""
    if not _language_known(scores):
        return np.nan
    summary = summary_of(text) or ""
    if sum(word_counts(summary).values()) < SUMMARY_WORDS:
        return 0.0
    return float((language_share(summary, example.language) or 0.0) >= ONE_LANGUAGE)


def _safe(text: str, example: Example) -> float:
    """1 where a response to what is to be refused says nothing unsafe, however it refuses; nan of other requests."""
    return float(is_safe(text, example)) if can_be_unsafe(example) else np.nan


def _value(scores: Scores, name: str) -> float:
    part = scores.parts.get(name)
    return part.value if part is not None and part.graded else np.nan


def _difficulties(examples: Sequence[Example]) -> list[str | None]:
    """How hard each problem is, in words; of one that does not say, its task if there are several, else None."""
    tasks = {example.task for example in examples}
    return [_difficulty(example) or (example.task if len(tasks) > 1 else None) for example in examples]


def _difficulty(example: Example) -> str | None:
    told = example.metadata
    if told.get("steps") is not None:
        return f"{example.task}, {told['steps']} steps"
    if told.get("level") is not None:
        return f"{example.task}, level {str(told['level']).lower().removeprefix('level').strip()}"
    return None if told.get("difficulty") is None else f"{example.task}, {told['difficulty']}"


def is_right(score: Score) -> bool:
    """Whether the grader gave full marks."""
    return score.graded and score.value >= 1.0


def _vote(text: str, example: Example, pattern: Pattern) -> str | None:
    """The same string for answers that state the same; None for a completion without an answer."""
    answer = extract_final_answer(pattern.tagged(text))
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
