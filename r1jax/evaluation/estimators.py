"""What k sampled answers per problem say about a model: estimates with their uncertainty, in plain numpy.

Axis letters: P problems, k samples per problem. The protocol is the paper's (R1, section 3): k samples at a
temperature, pass@1 is the mean share of right ones, cons@k the accuracy of the majority answer. It is not greedy
decoding, and not the k-sample pass@k.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from r1jax.evaluation.records import natural_key


@dataclasses.dataclass(frozen=True)
class Consensus:
    """Accuracy of the majority answer over problems, with a bootstrap interval over problems."""

    mean: float
    low: float
    high: float
    problems: int  # problems that could be graded


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Everything measured on k samples of each of P problems; see `summarize`."""

    correct: NDArray[np.bool_]  # [P, k], False for a response cut by the length limit unless the grader says otherwise
    graded: NDArray[np.bool_]  # [P, k], False where the grader could not decide
    answers: Sequence[Sequence[Hashable | None]]  # [P][k] canonical answers, None where a response gives none
    right: Sequence[Collection[Hashable] | None]  # [P] the canonical answers that the grader accepts; None: not graded
    lengths: NDArray[np.int64]  # [P, k] tokens, the stop token included
    finished: NDArray[np.bool_]  # [P, k], False where the length limit cut the response
    format: NDArray[np.float64]  # [P, k], 1 where the response has the required tags
    language: NDArray[np.float64]  # [P, k] share of words in the prompt's language, nan where there are no words
    reflection: NDArray[np.int64]  # [P, k] reflection words in the response
    groups: Sequence[Hashable] | None = None  # [P] difficulty of the problem, such as its number of steps


def mean_over_problems(values: ArrayLike, mask: ArrayLike | None = None) -> tuple[float, float]:
    """Mean over problems of the mean over samples, and its standard error.

    Args:
        values: [P, k] one number per sample.
        mask: [P, k] True where the number counts (default: everywhere). A problem without any is left out.

    Returns:
        (mean, standard error). The samples of one problem are not independent, so the problem is the unit: the error
        is the sample standard deviation (n - 1) of the problem means over sqrt(n). Either is nan if undefined: the
        mean without any problem, the error with fewer than two.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"values must be [problems, samples], got shape {x.shape}")
    m = np.ones(x.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if m.shape != x.shape:
        raise ValueError(f"mask has shape {m.shape}, values have {x.shape}")
    counts = m.sum(axis=1)
    kept = counts > 0
    means = np.where(m, x, 0.0).sum(axis=1)[kept] / counts[kept]
    if means.size == 0:
        return math.nan, math.nan
    error = float(means.std(ddof=1) / math.sqrt(means.size)) if means.size > 1 else math.nan
    return float(means.mean()), error


def pass_at_1(correct: ArrayLike, graded: ArrayLike | None = None) -> tuple[float, float]:
    """pass@1 = mean over problems of (1/k) sum_i p_i (R1, section 3), and its standard error over problems.

    Samples that are not graded are left out of their problem's mean, never counted as wrong or right.
    """
    return mean_over_problems(np.asarray(correct, dtype=np.float64), graded)


def majority_credit(answers: Sequence[Hashable | None], right: Collection[Hashable]) -> float:
    """Credit in [0, 1] of the majority vote among the samples of one problem.

    Samples without an answer (None) do not vote. Answers tied for the most votes share the credit: with m of them, n
    of which are among the `right` ones, the result is n/m, the expected value of drawing the winner at random. No vote
    at all earns 0.
    """
    votes = collections.Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    tied = [answer for answer, count in votes.items() if count == most]
    return sum(answer in right for answer in tied) / len(tied)


def bootstrap_interval(values: ArrayLike, *, seed: int, draws: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` [P], drawing problems with replacement."""
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    # One draw at a time: P x draws indices at once would be large for thousands of problems.
    means = np.array([x[rng.integers(0, x.size, x.size)].mean() for _ in range(draws)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def cons_at_k(
    answers: Sequence[Sequence[Hashable | None]],
    right: Sequence[Collection[Hashable] | None],
    *,
    seed: int = 0,
    draws: int = 2000,
    level: float = 0.95,
) -> Consensus:
    """cons@k: the accuracy of the majority answer, averaged over problems.

    Args:
        answers: [P][k] canonical answers (equal answers must compare equal), None where there is none.
        right: [P] the canonical answers that are right; a problem where it is None is left out.
        seed, draws, level: of the bootstrap over problems.

    Returns:
        The mean and the bootstrap interval; ties and missing votes as in `majority_credit`.
    """
    if len(answers) != len(right):
        raise ValueError(f"answers of {len(answers)} problems, right ones of {len(right)}")
    scores = [majority_credit(votes, truth) for votes, truth in zip(answers, right, strict=True) if truth is not None]
    low, high = bootstrap_interval(scores, seed=seed, draws=draws, level=level)
    return Consensus(float(np.mean(scores)) if scores else math.nan, low, high, len(scores))


def by_group(
    correct: ArrayLike,
    graded: ArrayLike,
    answers: Sequence[Sequence[Hashable | None]],
    right: Sequence[Collection[Hashable] | None],
    groups: Sequence[Hashable],
) -> dict[Hashable, dict[str, float]]:
    """pass@1 (with its standard error) and cons@k of each difficulty, in natural order (9 before 10).

    Args:
        groups: [P] the difficulty of each problem, such as its number of steps.
    """
    credit, ok = np.asarray(correct), np.asarray(graded)
    table: dict[Hashable, dict[str, float]] = {}
    for kind in sorted(set(groups), key=lambda kind: natural_key(str(kind))):
        rows = [i for i, group in enumerate(groups) if group == kind]
        mean, error = pass_at_1(credit[rows], ok[rows])
        consensus = cons_at_k([answers[i] for i in rows], [right[i] for i in rows], draws=1)
        table[kind] = {
            "problems": len(rows),
            "pass_at_1": mean,
            "pass_at_1_se": error,
            "cons_at_k": consensus.mean,
        }
    return table


def difference(before: tuple[float, float], after: tuple[float, float]) -> tuple[float, float]:
    """after - before of two (mean, standard error) pairs, with the error of a difference of independent estimates.

    On shared problems the errors are positively correlated as a rule, so this one is on the safe side.
    """
    return after[0] - before[0], math.hypot(before[1], after[1])


def _plain(value: float) -> float | None:
    """nan has no place in JSON: an undefined number is null."""
    return None if math.isnan(value) else float(value)


def summarize(evaluation: Evaluation, *, seed: int = 0) -> dict[str, Any]:
    """The figures of an evaluation under the names that `summary.json` and the report use; undefined ones are None.

    Rates and shares are in [0, 1], lengths in tokens, `reflection_words` per response, `ungradable` a count of
    responses. Format, lengths and truncation are over all responses; the language share over those with words.
    """
    e = evaluation
    shape = np.shape(e.correct)
    for name in ("graded", "lengths", "finished", "format", "language", "reflection"):
        if np.shape(getattr(e, name)) != shape:
            raise ValueError(f"evaluation.{name} has shape {np.shape(getattr(e, name))}, correct has {shape}")
    mean, error = pass_at_1(e.correct, e.graded)
    consensus = cons_at_k(e.answers, e.right, seed=seed)
    length, length_error = mean_over_problems(e.lengths)
    figures: dict[str, Any] = {
        "problems": shape[0],
        "k": shape[1],
        "pass_at_1": _plain(mean),
        "pass_at_1_se": _plain(error),
        "cons_at_k": _plain(consensus.mean),
        "cons_at_k_low": _plain(consensus.low),
        "cons_at_k_high": _plain(consensus.high),
        "length_mean": _plain(length),
        "length_mean_se": _plain(length_error),
        "length_std": float(np.std(e.lengths)),
        "length_max": int(np.max(e.lengths)),
        "truncation_rate": float(1.0 - np.mean(e.finished)),
        "format": _plain(mean_over_problems(e.format)[0]),
        "language": _plain(mean_over_problems(np.nan_to_num(e.language), ~np.isnan(e.language))[0]),
        "reflection_words": _plain(mean_over_problems(e.reflection)[0]),
        "ungradable": int(np.sum(~np.asarray(e.graded))),
        # Where this is much lower, answers may have found a way to have no grade.
        "pass_at_1_ungraded_wrong": float(np.mean(np.asarray(e.correct) & np.asarray(e.graded))),
    }
    if e.groups is not None:
        table = by_group(e.correct, e.graded, e.answers, e.right, e.groups)
        figures["by_group"] = {
            str(kind): {name: _plain(value) for name, value in row.items()} | {"problems": int(row["problems"])}
            for kind, row in table.items()
        }
    return figures
