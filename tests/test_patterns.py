"""The forms of a completion: which are well-formed, what is their thought, summary and final answer."""

from __future__ import annotations

import pytest

from r1jax.rewards.answer import extract_final_answer
from r1jax.rewards.format import format_reward
from r1jax.rewards.languages.language import language_reward
from r1jax.rewards.mathematics.math_accuracy import accuracy
from r1jax.rewards.patterns import PATTERNS, parse_boxed, parse_summary, summary_of
from r1jax.types import Example

QUESTION = Example("q", "compute 4 + 5 ?", "9", "chain_sum")


@pytest.mark.parametrize(
    ("text", "thought", "answer", "problem"),
    [
        (" <think> a b </think> so it is <answer> 9 </answer>", "a b", "9", ""),
        (" <think> a b </think> so it is <answer> 9 </answer> .", "a b", "9", ""),
        (" <think> a b </think> the hat is blue", "a b", None, ""),
        (" <think> a b </think> <answer> 9 </answer>", "a b", "9", ""),
        (" <think> a b </think> ", "a b", None, "empty summary"),
        (" <think> </think> blue", "", None, "empty thought"),
        ("so <think> a </think> b", "a", None, "text before <think>"),
        ("<think> a", None, None, "missing </think>"),
        ("a </think> b", None, None, "missing <think>"),
        ("<think> a </think> b </think> c", None, None, "repeated </think>"),
        ("</think> a <think> b", None, None, "tags out of order: </think> <think>"),
        ("<think> a <answer> 9 </answer> </think> b", None, None, "a tag in the thought"),
        ("<think> a </think> b <answer> 9", "a", None, "answer tags that hold no single answer"),
        ("<think> a </think> b <answer> </answer>", "a", None, "answer tags that hold no single answer"),
        (
            "<think> a </think> <answer> 1 </answer> <answer> 2 </answer>",
            "a",
            None,
            "answer tags that hold no single answer",
        ),
    ],
)
def test_summary_pattern(text: str, thought: str | None, answer: str | None, problem: str) -> None:
    parsed = parse_summary(text)
    assert (parsed.thought, parsed.answer, parsed.problem) == (thought, answer, problem)
    assert parsed.well_formed == (not problem)


@pytest.mark.parametrize(
    ("text", "answer", "well_formed"),
    [
        (r"<think>a</think>It is \boxed{9}.", "9", True),
        (r"a</think>It is \boxed{9}.", "9", True),  # the prompt opened the thought
        (r"a \boxed{8}</think>First \boxed{7}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}", True),
        (r"<think>\boxed{9}</think>no box", None, True),
        (r"<think>a</think>It is \boxed{9", None, True),
        (r"a \boxed{9}", None, False),  # never stopped thinking
        (r"<think>a</think><answer> 8 </answer> \boxed{9}", None, False),
        (r"<think>a</think>b <think>c</think> \boxed{9}", "9", False),
    ],
)
def test_boxed_pattern(text: str, answer: str | None, well_formed: bool) -> None:
    parsed = parse_boxed(text)
    assert parsed.well_formed == well_formed
    if well_formed:
        assert parsed.answer == answer


def test_graders_read_the_boxed_answer_through_tags() -> None:
    tagged = PATTERNS["boxed"].tagged
    assert extract_final_answer(tagged(r"a</think>First \boxed{7}, then \boxed{9}.")) == "9"
    assert accuracy(tagged(r"a</think>It is \boxed{9}."), QUESTION).value == 1
    assert accuracy(tagged(r"<think>a <answer> 9 </answer></think>It is \boxed{8}."), QUESTION).value == 0
    assert extract_final_answer(tagged(r"a \boxed{9}")) is None
    for name in ("answer", "summary"):
        assert PATTERNS[name].tagged("any <answer> text") == "any <answer> text"


def test_format_and_language_follow_the_pattern() -> None:
    text = " <think> four plus five 得 九 </think> so it is <answer> 9 </answer>"
    assert format_reward(text, QUESTION).value == 0  # text between the tags is not R1-Zero's form
    assert format_reward(text, QUESTION, parse_summary).value == 1
    assert language_reward(text, QUESTION, parse_summary).value == pytest.approx(3 / 5)
    assert language_reward(text, QUESTION).value == pytest.approx(6 / 8)  # not of that form: all of it counts


def test_summary_is_what_follows_the_thought() -> None:
    assert summary_of("<think> a </think> so it is <answer> 9 </answer> .") == "so it is  9  ."
    assert summary_of("a </think> blue") == "blue"
    assert summary_of("blue") is None
    assert summary_of("<think> a </think> ") is None
    assert summary_of("<think> a </think> b <think> c") is None


def test_all_of_a_reply_is_the_answer() -> None:
    """What a program is read from: neither boxes nor tags, and no draft of the thought."""
    reply = PATTERNS["reply"]
    text = "a draft <answer> 1 </answer> </think> Here it is:\n```python\nprint(2)\n```"
    assert extract_final_answer(reply.tagged(text)) == "Here it is:\n```python\nprint(2)\n```"
    assert reply.parse("<think> so </think> print(2)").well_formed
    assert reply.parse("so </think> print(2)").answer == "print(2)"
    for nothing in ("no thought is closed", "so </think> \n", "so </think> print(2) </think>"):
        assert reply.parse(nothing).answer is None
        assert extract_final_answer(reply.tagged(nothing)) is None
