r"""The forms that a completion may have, by the phase of the recipe that asks for it.

- "answer", R1-Zero's template: `<think> thought </think> <answer> 9 </answer>`
- "summary", from the cold start on (R1 section 2.3.1: reasoning, then a summary): `<think> thought </think> so the
  result is <answer> 9 </answer>`. The final answer of a reasoning question stands in tags within the summary; of a
  general request the summary is the reply, without tags.
- "boxed", the released models: `<think> thought </think> summary with \boxed{9}`, where the prompt may have opened the
  thought.
- "reply", the released models asked for a program: `<think> thought </think> reply`, all of which is the answer.

A pattern parses a completion, and `tagged` brings its final answer between answer tags, where all graders look for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from r1jax.rewards.answer import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    SPACE,
    TAGS,
    THINK_CLOSE,
    THINK_OPEN,
    Parsed,
    extract_final_answer,
    parse_response,
)
from r1jax.rewards.mathematics.math_accuracy import box_contents


@dataclasses.dataclass(frozen=True)
class Pattern:
    """One form: how a completion in it is read."""

    parse: Callable[[str], Parsed]
    tagged: Callable[[str], str]  # the completion with its final answer, if it has one, between answer tags


def summary_of(text: str) -> str | None:
    """The final summary, stripped: all that follows the last `</think>`, without the tags of its `<answer>` where there
    is exactly one. What stands before and after the answer is part of it.

    None where nothing but white space follows it, where another thought is opened after it, or where no thought is
    closed at all: whether the prompt had opened one does not show in a completion, so one without `</think>` may be all
    thinking.
    """
    _, closed, summary = text.rpartition(THINK_CLOSE)
    if not closed or THINK_OPEN in summary:
        return None
    if extract_final_answer(summary) is not None:
        before, _, rest = summary.partition(ANSWER_OPEN)
        answer, _, after = rest.partition(ANSWER_CLOSE)
        summary = before + answer + after
    return summary.strip(SPACE) or None


def parse_summary(text: str) -> Parsed:
    """Well-formed is `<think>` thought `</think>` summary: its tags exactly once, nothing before them, thought
    and summary not blank, and no answer tags but one pair around a part of the summary that is not blank.
    """
    return _parse(text)


def parse_boxed(text: str) -> Parsed:
    r"""As `parse_summary`, but the prompt may have opened the thought, and the answer is the last \boxed{...} of the
    summary; answer tags may not occur. A summary without a box is well-formed, and without an answer.
    """
    parsed = _parse(text if THINK_OPEN in text else THINK_OPEN + text)
    if parsed.well_formed and ANSWER_OPEN in text:
        return dataclasses.replace(parsed, answer=None, well_formed=False, problem=f"{ANSWER_OPEN} is not of this form")
    return dataclasses.replace(parsed, answer=_boxed(text))


def parse_reply(text: str) -> Parsed:
    """As `parse_summary`, but the prompt may have opened the thought, and all that follows it is the answer."""
    parsed = _parse(text if THINK_OPEN in text else THINK_OPEN + text)
    return dataclasses.replace(parsed, answer=_reply(text))


def _parse(text: str) -> Parsed:
    before, _, rest = text.partition(THINK_OPEN)
    thought, _, summary = rest.partition(THINK_CLOSE)
    problem = _summary_problem(text, before, thought, summary)
    answer = extract_final_answer(text)
    single = text.count(THINK_OPEN) == 1 == text.count(THINK_CLOSE) and bool(rest) and THINK_CLOSE in rest
    clean = single and not any(tag in thought for tag in TAGS)
    return Parsed(thought.strip(SPACE) if clean else None, answer, not problem, problem)


def _summary_problem(text: str, before: str, thought: str, summary: str) -> str:
    for tag in (THINK_OPEN, THINK_CLOSE):
        if text.count(tag) != 1:
            return f"{'repeated' if tag in text else 'missing'} {tag}"
    if THINK_CLOSE in before:
        return f"tags out of order: {THINK_CLOSE} {THINK_OPEN}"
    if before.strip(SPACE):
        return f"text before {THINK_OPEN}"
    if not thought.strip(SPACE):
        return "empty thought"
    if any(tag in thought for tag in TAGS):
        return "a tag in the thought"
    if not summary.strip(SPACE):
        return "empty summary"
    if (ANSWER_OPEN in summary or ANSWER_CLOSE in summary) and extract_final_answer(summary) is None:
        return "answer tags that hold no single answer"
    return ""


def _boxed(text: str) -> str | None:
    """The content of the last box after the thought; None where there is none, or the last one does not close."""
    _, closed, summary = text.rpartition(THINK_CLOSE)
    boxes = box_contents(summary if closed else "")
    return (boxes[-1] or "").strip(SPACE) or None if boxes else None


def _tag_boxed(text: str) -> str:
    """The thought as it is, and after it nothing but the boxed answer in tags; without an answer, no tags."""
    thought, closed, _ = text.rpartition(THINK_CLOSE)
    answer = _boxed(text)
    plain = thought.replace(ANSWER_OPEN, "").replace(ANSWER_CLOSE, "")
    return f"{plain}{closed} {ANSWER_OPEN} {answer} {ANSWER_CLOSE}" if answer else ""


def _reply(text: str) -> str | None:
    """What follows the last closed thought; None where there is none, or nothing follows."""
    _, closed, reply = text.rpartition(THINK_CLOSE)
    return (reply.strip(SPACE) or None) if closed else None


def _tag_reply(text: str) -> str:
    """The reply in tags; without one, nothing. The thought plays no part: its drafts are no answers."""
    reply = _reply(text)
    return f"{ANSWER_OPEN}\n{reply}\n{ANSWER_CLOSE}" if reply else ""


def _as_it_is(text: str) -> str:
    return text


PATTERNS: dict[str, Pattern] = {
    "answer": Pattern(parse_response, _as_it_is),
    "summary": Pattern(parse_summary, _as_it_is),
    "boxed": Pattern(parse_boxed, _tag_boxed),
    "reply": Pattern(parse_reply, _tag_reply),
}
