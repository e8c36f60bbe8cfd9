"""What a completion says: its thought and its one final answer, read from `<think>` and `<answer>` tags.

The tags are the exact ASCII strings of the R1-Zero template, case included. Anything else that looks like a tag
(`<Think>`, `< think >`, full-width brackets) is ordinary text. White space means the six ASCII characters of `SPACE`,
so that the token-space version (`on_device.py`) can decide it byte by byte.
"""

from __future__ import annotations

import dataclasses
import re

from r1jax.types import Example, Score, Status

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
ANSWER_OPEN = "<answer>"
ANSWER_CLOSE = "</answer>"
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)  # the order of a well-formed completion
SPACE = " \t\n\r\f\v"

_TAG = re.compile("|".join(re.escape(tag) for tag in TAGS))
_SPACES = re.compile(f"[{SPACE}]+")
# What may come before the one <answer>: nothing, a thought, or the end of a thought that the prompt opened.
_BEFORE_ANSWER = ((), (THINK_CLOSE,), (THINK_OPEN, THINK_CLOSE))


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A completion taken apart. `problem` names the first fault of the format and is empty when `well_formed`."""

    thought: str | None  # stripped; None unless there is exactly one thought
    answer: str | None  # stripped; None unless there is exactly one final answer
    well_formed: bool
    problem: str = ""


def normalize_space(text: str) -> str:
    """Trims `text` and turns every run of ASCII white space into one blank."""
    return _SPACES.sub(" ", text).strip(" ")


def _between(text: str, start: re.Match[str], end: re.Match[str]) -> str:
    return text[start.end() : end.start()].strip(SPACE)


def _single_thought(text: str, tags: list[re.Match[str]]) -> str | None:
    names = [tag.group() for tag in tags]
    if names.count(THINK_OPEN) != 1 or names.count(THINK_CLOSE) != 1:
        return None
    start = names.index(THINK_OPEN)
    if names[start + 1 : start + 2] != [THINK_CLOSE]:
        return None
    return _between(text, tags[start], tags[start + 1])


def _final_answer(text: str, tags: list[re.Match[str]]) -> str | None:
    names = tuple(tag.group() for tag in tags)
    if names[-2:] != (ANSWER_OPEN, ANSWER_CLOSE) or names[:-2] not in _BEFORE_ANSWER:
        return None
    return _between(text, tags[-2], tags[-1]) or None


def _problem(text: str, tags: list[re.Match[str]]) -> str:
    names = [tag.group() for tag in tags]
    for tag in TAGS:
        if names.count(tag) != 1:
            return f"{'repeated' if tag in names else 'missing'} {tag}"
    if names != list(TAGS):
        return "tags out of order: " + " ".join(names)
    think_open, think_close, answer_open, answer_close = tags
    outside = (
        (text[: think_open.start()], f"text before {THINK_OPEN}"),
        (text[think_close.end() : answer_open.start()], f"text between {THINK_CLOSE} and {ANSWER_OPEN}"),
        (text[answer_close.end() :], f"text after {ANSWER_CLOSE}"),
    )
    for piece, problem in outside:
        if piece.strip(SPACE):
            return problem
    if not _between(text, think_open, think_close):
        return "empty thought"
    if not _between(text, answer_open, answer_close):
        return "empty answer"
    return ""


def parse_response(text: str) -> Parsed:
    """Takes a completion apart and checks its form.

    Well-formed is `<think>` thought `</think>` `<answer>` answer `</answer>`: each tag exactly once, in this order,
    thought and answer not blank, nothing but white space outside. Hence no tag can be nested or stand inside a thought
    or an answer. The completion starts where the prompt ended ("Assistant:").
    """
    tags = list(_TAG.finditer(text))
    problem = _problem(text, tags)
    return Parsed(
        thought=_single_thought(text, tags),
        answer=_final_answer(text, tags),
        well_formed=not problem,
        problem=problem,
    )


def extract_final_answer(text: str) -> str | None:
    """The one answer a completion commits itself to, stripped; None where there is none or more than one.

    Laxer than the format, since accuracy is a reward of its own: text may stand outside the tags and the thought may be
    missing. But there must be exactly one `<answer>` and one `</answer>`, in this order, not inside a thought, with no
    tag between or after them and at most one thought before them; and the answer may not be blank.
    """
    return _final_answer(text, list(_TAG.finditer(text)))


def is_statable(answer: str) -> bool:
    """Whether a completion can give this answer between its tags: it is not blank and contains no tag."""
    return bool(normalize_space(answer)) and not _TAG.search(normalize_space(answer))


def exact_match(completion: str, example: Example) -> Score:
    """1 where the final answer is the reference answer but for white space, else 0. Case and spelling count.

    The text version of `on_device.exact_match_reward`, and the comparison for answers that are words. A blank
    reference, or one that contains a tag, cannot be stated by any completion: UNGRADABLE.
    """
    gold = normalize_space(example.answer)
    if not is_statable(example.answer):
        return Score(0.0, Status.UNGRADABLE, f"reference answer {example.answer!r} is blank or contains a tag")
    answer = extract_final_answer(completion)
    if answer is None:
        return Score(0.0, reason="no single final answer")
    return Score(1.0) if normalize_space(answer) == gold else Score(0.0, reason="another answer")
