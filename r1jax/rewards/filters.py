"""What sampled completions must pass to be trained on, in the order in which it is asked.

The R1 papers keep cold-start samples that are right and readable (answer check, repetition and language filters), and
drop from the rejection samples what is wrong, and reasoning with mixed languages, long paragraphs or code blocks. They
give no thresholds: those of `FilterConfig` are ours.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from r1jax.rewards.combine import Scores
from r1jax.rewards.languages.language import language_share, word_counts
from r1jax.rewards.patterns import PATTERNS, summary_of
from r1jax.rewards.shaping import repetition_share
from r1jax.types import Example

_PARAGRAPH_BREAK = re.compile(r"\n[^\S\n]*\n")
_CODE_FENCE = re.compile(r"```|^[^\S\n]*~~~", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Which filters there are; False or None: that one is left out."""

    wrong: bool = True  # accuracy below 1
    ungraded: bool = True  # the grader could not decide: counted apart from wrong ones
    truncated: bool = True  # cut by the length limit
    format: bool = True  # not of the form that is asked for (`RewardConfig.pattern`); without text, in any case
    mixed_language: float | None = 0.9  # least share of the language that most words of the thought are in
    wrong_language: float | None = 0.9  # least share of words in the prompt's language, in thought and in summary
    repetition: float | None = 0.2  # largest share of repeated n-grams of tokens, in the whole completion
    repetition_n: int = 20  # tokens of an n-gram
    paragraph: int | None = 4000  # longest paragraph of the thought in characters; a blank line ends one
    code_block: bool = True  # a fence (``` or ~~~) in the thought

    def __post_init__(self) -> None:
        for name in ("mixed_language", "wrong_language", "repetition"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: {value} is not a share between 0 and 1")
        for name in ("repetition_n", "paragraph"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value}; at least 1")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A graded completion."""

    example: Example
    text: str
    tokens: Sequence[int]  # with the stop token
    finished: bool
    scores: Scores
    pattern: str  # a key of PATTERNS: the form that was asked for

    @property
    def thought(self) -> str:
        """What is between the thinking tags; the whole text where that cannot be told, so that nothing hides."""
        thought = PATTERNS[self.pattern].parse(self.text).thought
        return self.text if thought is None else thought


@dataclasses.dataclass(frozen=True)
class Drop:
    """Why a completion is not trained on."""

    filter: str
    reason: str


Filter = Callable[[Candidate, FilterConfig], str]
"""Says what is wrong with a completion; empty: nothing, or the filter is left out."""


def _wrong(candidate: Candidate, config: FilterConfig) -> str:
    score = candidate.scores.parts.get("accuracy")
    if not config.wrong or score is None or not score.graded or score.value >= 1:
        return ""
    return score.reason or f"accuracy {score.value:g}"


def _ungraded(candidate: Candidate, config: FilterConfig) -> str:
    score = candidate.scores.parts.get("accuracy")
    if not config.ungraded or score is None or score.graded:
        return ""
    return f"{score.status.value}: {score.reason}"


def _truncated(candidate: Candidate, config: FilterConfig) -> str:
    return f"cut after {len(candidate.tokens)} tokens" if config.truncated and not candidate.finished else ""


def _format(candidate: Candidate, config: FilterConfig) -> str:
    """A completion without text has no form at all: nothing could be learned from it."""
    if not candidate.text.strip():
        return "no text"
    parsed = PATTERNS[candidate.pattern].parse(candidate.text)
    return parsed.problem if config.format and not parsed.well_formed else ""


def _mixed_language(candidate: Candidate, config: FilterConfig) -> str:
    """Told by script; of other languages than English and Chinese, see `wrong_language`."""
    counts = word_counts(candidate.thought)
    total = sum(counts.values())
    if config.mixed_language is None or not total or max(counts.values()) >= config.mixed_language * total:
        return ""
    return "words of the thought: " + ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)


def _wrong_language(candidate: Candidate, config: FilterConfig) -> str:
    """A part without words is in no wrong language."""
    if config.wrong_language is None:
        return ""
    target = candidate.example.language
    for name, part in (("thought", candidate.thought), ("summary", summary_of(candidate.text) or "")):
        share = language_share(part, target)
        if share is not None and share < config.wrong_language:
            return f"{share:.2f} of the {name}'s words are {target}"
    return ""


def _repetition(candidate: Candidate, config: FilterConfig) -> str:
    if config.repetition is None:
        return ""
    share = repetition_share(candidate.tokens, config.repetition_n)
    return f"{share:.2f} of the {config.repetition_n}-grams repeat" if share > config.repetition else ""


def _paragraph(candidate: Candidate, config: FilterConfig) -> str:
    longest = max(len(paragraph.strip()) for paragraph in _PARAGRAPH_BREAK.split(candidate.thought))
    return f"{longest} characters" if config.paragraph is not None and longest > config.paragraph else ""


def _code_block(candidate: Candidate, config: FilterConfig) -> str:
    return "a fence in the thought" if config.code_block and _CODE_FENCE.search(candidate.thought) else ""


# Name -> filter, in their order: what is dropped is counted under the first that it fails.
FILTERS: Mapping[str, Filter] = {
    "wrong": _wrong,
    "ungraded": _ungraded,
    "truncated": _truncated,
    "format": _format,
    "mixed_language": _mixed_language,
    "wrong_language": _wrong_language,
    "repetition": _repetition,
    "paragraph": _paragraph,
    "code_block": _code_block,
}


def first_failure(candidate: Candidate, config: FilterConfig) -> Drop | None:
    """The first filter that a completion does not pass; None if it passes all.

    ValueError for a language that thoughts cannot be held against (`languages.language.check_language`), unless
    `wrong_language` is None.
    """
    for name, fails in FILTERS.items():
        reason = fails(candidate, config)
        if reason:
            return Drop(name, reason)
    return None
