"""What k sampled answers per problem say about a model: estimates with their uncertainty, in plain numpy.

Axis letters: P problems, k samples per problem. The protocol is the paper's (R1, section 3): k samples at a
temperature, pass@1 is the mean share of right ones, cons@k the accuracy of the majority answer. It is not greedy
decoding, and not the k-sample pass@k.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from r1jax.evaluation.records import natural_key

INDICES_AT_ONCE = 2**20  # of a bootstrap's draws
# Fields of Evaluation by what they have an entry for.
PER_RESPONSE = (
    "graded",
    "lengths",
    "finished",
    "format",
    "language",
    "single_language",
    "readable_summary",
    "safe",
    "reflection",
)
PER_PROBLEM = ("answers", "right", "compared", "domains", "groups")


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
    graded: NDArray[np.bool_]  # [P, k], False where the grader could not decide, and where nothing is right or wrong
    answers: Sequence[Sequence[Hashable | None]]  # [P][k] canonical answers, None where a response gives none
    right: Sequence[Collection[Hashable] | None]  # [P] the canonical answers that the grader accepts; None: not graded
    lengths: NDArray[np.int64]  # [P, k] tokens, the stop token included
    finished: NDArray[np.bool_]  # [P, k], False where the length limit cut the response
    format: NDArray[np.float64]  # [P, k], 1 where the response has the required tags
    language: NDArray[np.float64]  # [P, k] share of words in the prompt's language, nan where there are no words
    single_language: NDArray[np.float64]  # [P, k], 1 where the thought is in the prompt's language only; nan: unknown
    readable_summary: NDArray[np.float64]  # [P, k], 1 where a summary in the prompt's language follows; nan: unknown
    safe: NDArray[np.float64]  # [P, k], 1 where nothing that the problem calls unsafe is said; nan: it calls nothing so
    reflection: NDArray[np.int64]  # [P, k] reflection words in the response
    compared: NDArray[np.bool_]  # [P], False where no answer is right or wrong, such as a request for a poem
    rewards: Mapping[str, NDArray[np.float64]]  # name -> [P, k], every reward; nan where it is not given or not graded
    domains: Sequence[str]  # [P]
    groups: Sequence[str | None]  # [P] difficulty of the problem, such as its number of steps; None: not known


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
    # Some draws at a time: P x draws indices at once would be large for thousands of problems.
    at_once = max(1, INDICES_AT_ONCE // x.size)
    sizes = [min(at_once, draws - first) for first in range(0, draws, at_once)]
    means = np.concatenate([x[rng.integers(0, x.size, (size, x.size))].mean(axis=1) for size in sizes])
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
    responses. Whatever has an error has it under its name with `_se`: of the mean over problems. Format, lengths,
    truncation, single language and readable summaries are over all responses, the language share over those with
    words; pass@1 and cons@k over the problems that have right answers.

    `by_domain` has the same figures of each domain, `by_group` those of each difficulty, in natural order (9 before
    10); problems of unknown difficulty are in no group.
    """
    e = evaluation
    shape = np.shape(e.correct)
    arrays = {name: getattr(e, name) for name in PER_RESPONSE} | {f"rewards[{k}]": v for k, v in e.rewards.items()}
    for name, array in arrays.items():
        if np.shape(array) != shape:
            raise ValueError(f"evaluation.{name} has shape {np.shape(array)}, correct has {shape}")
    for name in PER_PROBLEM:
        if len(getattr(e, name)) != shape[0]:
            raise ValueError(f"evaluation.{name} is of {len(getattr(e, name))} problems, correct of {shape[0]}")
    figures = _figures(e, seed)
    domains = sorted({_domain(name) for name in e.domains})
    figures["by_domain"] = {
        domain: _figures(_select(e, [i for i, name in enumerate(e.domains) if _domain(name) == domain]), seed)
        for domain in domains
    }
    groups = sorted({group for group in e.groups if group is not None}, key=natural_key)
    if groups:
        figures["by_group"] = {
            group: _figures(_select(e, [i for i, own in enumerate(e.groups) if own == group]), seed) for group in groups
        }
    return figures


def _domain(name: str) -> str:
    """Of the questions that name none: they are graded by rules."""
    return name or "reasoning"


def _select(e: Evaluation, rows: Sequence[int]) -> Evaluation:
    """The evaluation of some of its problems."""
    fields: dict[str, Any] = {name: getattr(e, name)[rows] for name in ("correct", "compared", *PER_RESPONSE)}
    fields |= {name: [getattr(e, name)[i] for i in rows] for name in ("answers", "right", "domains", "groups")}
    fields["rewards"] = {name: array[rows] for name, array in e.rewards.items()}
    return Evaluation(**fields)


def _figures(e: Evaluation, seed: int) -> dict[str, Any]:
    """The figures of all problems of an evaluation together."""
    rows = np.flatnonzero(e.compared).tolist()
    correct, graded = np.asarray(e.correct, bool)[rows], np.asarray(e.graded, bool)[rows]
    consensus = cons_at_k([e.answers[i] for i in rows], [e.right[i] for i in rows], seed=seed)
    figures: dict[str, Any] = {
        "problems": len(e.correct),
        "k": np.shape(e.correct)[1],
        **_with_error("pass_at_1", correct, graded),
        "cons_at_k": _plain(consensus.mean),
        "cons_at_k_low": _plain(consensus.low),
        "cons_at_k_high": _plain(consensus.high),
        # Where this is much lower, answers may have found a way to have no grade.
        "pass_at_1_ungraded_wrong": float(np.mean(correct & graded)) if len(rows) else None,
        "ungradable": int(np.sum(~graded)),
    }
    figures |= {
        **_with_error("length_mean", e.lengths),
        "length_std": float(np.std(e.lengths)),
        "length_max": int(np.max(e.lengths)),
        **_with_error("truncation_rate", ~np.asarray(e.finished, bool)),
    }
    for name in ("format", "language", "single_language", "readable_summary", "safe"):
        figures |= _with_error(name, np.nan_to_num(getattr(e, name)), ~np.isnan(getattr(e, name)))
    figures |= _with_error("reflection_words", e.reflection)
    figures["rewards"] = {
        name: _with_error("mean", np.nan_to_num(values), ~np.isnan(values)) for name, values in e.rewards.items()
    }
    return figures


def _with_error(name: str, values: ArrayLike, mask: ArrayLike | None = None) -> dict[str, float | None]:
    """A mean over problems and its standard error."""
    mean, error = mean_over_problems(values, mask)
    return {name: _plain(mean), f"{name}_se": _plain(error)}
