"""What counts as a well-formed completion and as its final answer."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.rewards.answer import TAGS, exact_match, extract_final_answer, normalize_space, parse_response
from r1jax.types import Example, Status

GOOD = " <think> seven plus five is twelve , minus three is nine </think> <answer> 9 </answer>"

# (completion, first fault, final answer)
MALFORMED = [
    ("", "missing <think>", None),
    ("9", "missing <think>", None),
    ("<answer> 9 </answer>", "missing <think>", "9"),
    ("the answer is <answer> 9 </answer>", "missing <think>", "9"),
    ("</think> <answer> 9 </answer>", "missing <think>", "9"),
    ("<think> a <answer> 9 </answer>", "missing </think>", None),  # still inside the thought
    ("<think> a </think>", "missing <answer>", None),
    ("<think> a </think> 9", "missing <answer>", None),
    ("<think> a </think> <answer> 9", "missing </answer>", None),  # cut off
    ("<think> a </think> <answer> 9 </answer", "missing </answer>", None),
    ("<think> a </think> 9 </answer>", "missing <answer>", None),
    ("<think> <answer> 9 </answer> </think>", "tags out of order: <think> <answer> </answer> </think>", None),
    ("<answer> 9 </answer> <think> a </think>", "tags out of order: <answer> </answer> <think> </think>", None),
    ("</think> a <think> <answer> 9 </answer>", "tags out of order: </think> <think> <answer> </answer>", None),
    ("<think> a </think> </answer> 9 <answer>", "tags out of order: <think> </think> </answer> <answer>", None),
    ("<think> <answer> a </think> 9 </answer>", "tags out of order: <think> <answer> </think> </answer>", None),
    ("<think> a <think> b </think> <answer> 9 </answer>", "repeated <think>", None),
    ("<think> <think> a </think> </think> <answer> 9 </answer>", "repeated <think>", None),
    ("<think> a </think> <think> b </think> <answer> 9 </answer>", "repeated <think>", None),
    ("<think> a </think> </think> <answer> 9 </answer>", "repeated </think>", None),
    ("<think> a </think> <answer> 8 </answer> <answer> 9 </answer>", "repeated <answer>", None),
    ("<think> a </think> <answer> 9 </answer> <answer> 9 </answer>", "repeated <answer>", None),
    ("<think> a </think> <answer> <answer> 9 </answer> </answer>", "repeated <answer>", None),
    ("<think> a </think> <answer> 9 </answer> </answer>", "repeated </answer>", None),
    ("<think> <answer> 9 </answer> </think> <answer> 8 </answer>", "repeated <answer>", None),
    ("<think> a </think> <answer> 9 <think> </answer>", "repeated <think>", None),
    ("a <answer> 9 <think> </think> </answer>", "tags out of order: <answer> <think> </think> </answer>", None),
    ("so: <think> a </think> <answer> 9 </answer>", "text before <think>", "9"),
    ("<<think> a </think> <answer> 9 </answer>", "text before <think>", "9"),
    ("<think> a </think> hence <answer> 9 </answer>", "text between </think> and <answer>", "9"),
    ("<think> a </think> <answer> 9 </answer> .", "text after </answer>", "9"),
    ("<think> a </think> <answer> 9 </answer> or 10", "text after </answer>", "9"),
    ("<think> a </think> <answer> 9 </answer> User: next <", "text after </answer>", "9"),
    ("<think> a </think> <answer> 9 </answer>\0", "text after </answer>", "9"),
    ("<think> a </think> <answer> 9 </answer>\u3000", "text after </answer>", "9"),  # not ASCII: text
    ("<think> </think> <answer> 9 </answer>", "empty thought", "9"),
    ("<think></think><answer>9</answer>", "empty thought", "9"),
    ("<think> a </think> <answer>  </answer>", "empty answer", None),
    ("<think> a </think> <answer></answer>", "empty answer", None),
    ("<Think> a </Think> <Answer> 9 </Answer>", "missing <think>", None),
    ("<THINK> a </THINK> <answer> 9 </answer>", "missing <think>", "9"),
    ("< think > a </ think > <answer> 9 </answer>", "missing <think>", "9"),
    ("\uff1cthink\uff1e a \uff1c/think\uff1e <answer> 9 </answer>", "missing <think>", "9"),  # full-width brackets
    ("<th\u0456nk> a </think> <answer> 9 </answer>", "missing <think>", "9"),  # Cyrillic i
    ("<think\u200b> a </think> <answer> 9 </answer>", "missing <think>", "9"),  # zero-width space
    ("<think/> a </think> <answer> 9 </answer>", "missing <think>", "9"),
    ("<think> a </think> <answer > 9 </answer>", "missing <answer>", None),
    ("&lt;think&gt; a </think> <answer> 9 </answer>", "missing <think>", "9"),
]


@pytest.mark.parametrize(("text", "problem", "answer"), MALFORMED)
def test_faults_are_found_and_only_a_single_answer_is_taken(text: str, problem: str, answer: str | None) -> None:
    parsed = parse_response(text)
    assert (parsed.well_formed, parsed.problem, parsed.answer) == (False, problem, answer)
    assert extract_final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        (GOOD, "seven plus five is twelve , minus three is nine", "9"),
        ("<think>a</think><answer>9</answer>", "a", "9"),
        ("\n\t<think>\na\n\nb\n</think>\n<answer>\n3 8\n</answer>\r\n\f\v", "a\n\nb", "3 8"),
        ("<think> 七 加 五 得 十二 ， 等等 </think> <answer> 12 </answer> ", "七 加 五 得 十二 ， 等等", "12"),
        ("<think> a < b <thin </ think <<answer </think> <answer> <b </answer>", "a < b <thin </ think <<answer", "<b"),
        ("<think> < </think> <answer> / </answer>", "<", "/"),
        ("<think> a </think> <answer> </answe </answer>", "a", "</answe"),
        ("<think> \u3000 </think> <answer> 9 </answer>", "\u3000", "9"),
    ],
)
def test_well_formed_completions(text: str, thought: str, answer: str) -> None:
    parsed = parse_response(text)
    assert (parsed.thought, parsed.answer, parsed.well_formed, parsed.problem) == (thought, answer, True, "")
    assert extract_final_answer(text) == answer


# An independent statement of the form: thought and answer are anything without a tag in it, and not blank.
_NO_TAG = r"(?:(?!</?think>|</?answer>)[\s\S])*?"
_VISIBLE = rf"(?=[ \t\n\r\f\v]*[^ \t\n\r\f\v])(?![ \t\n\r\f\v]*</?(?:think|answer)>){_NO_TAG}"
_FORM = re.compile(rf"[ \t\n\r\f\v]*<think>{_VISIBLE}</think>[ \t\n\r\f\v]*<answer>{_VISIBLE}</answer>[ \t\n\r\f\v]*")

PIECES = st.sampled_from(
    [*TAGS, *TAGS, " ", "\n", "9", "a b", "<", "</", "<think", "nk>", "answer>", "\u3000", "<Think>"]
)


@given(st.lists(PIECES, max_size=9).map("".join))
def test_form_equals_one_regular_expression(text: str) -> None:
    assert parse_response(text).well_formed == (_FORM.fullmatch(text) is not None)


@given(st.lists(PIECES, max_size=9).map("".join))
def test_a_well_formed_completion_has_each_tag_once_and_states_its_answer(text: str) -> None:
    parsed = parse_response(text)
    assert parsed.well_formed == (not parsed.problem)
    if parsed.well_formed:
        assert [text.count(tag) for tag in TAGS] == [1, 1, 1, 1]
        assert parsed.thought
        assert parsed.answer
    if parsed.answer is not None:
        assert text.count("<answer>") == text.count("</answer>") == 1
        assert "<answer>" not in text.partition("</answer>")[2]
        assert not any(tag in parsed.answer for tag in TAGS)


@given(st.text(alphabet=st.sampled_from("ab \n<>/"), min_size=1), st.sampled_from(TAGS), st.integers(0, 200))
def test_one_more_tag_anywhere_breaks_a_good_completion(thought: str, tag: str, place: int) -> None:
    text = f"<think>.{thought}</think> <answer> 9 </answer>"
    assert parse_response(text).well_formed
    cut = place % (len(text) + 1)
    assert not parse_response(text[:cut] + tag + text[cut:]).well_formed


def test_normalize_space_knows_ascii_white_space_only() -> None:
    assert normalize_space(" \t3 \n 8\r\f\v") == "3 8"
    assert normalize_space("\u30003\xa08") == "\u30003\xa08"


@pytest.mark.parametrize(
    ("stated", "gold", "value"),
    [
        ("knight , knave", "knight , knave", 1.0),
        ("  knight ,\n knave ", "knight , knave", 1.0),
        ("knight,knave", "knight , knave", 0.0),
        ("Knight , knave", "knight , knave", 0.0),
        ("9", "9", 1.0),
        ("9.0", "9", 0.0),
        ("19", "9", 0.0),
        ("9 9", "9", 0.0),
        ("9 or 8", "9", 0.0),
        ("1 7", "17", 0.0),
        ("17", "1 7", 0.0),
    ],
)
def test_exact_match_ignores_white_space_only(stated: str, gold: str, value: float) -> None:
    example = Example(id="1", question="q", answer=gold, task="logic")
    score = exact_match(f"<think> a </think> <answer>{stated}</answer>", example)
    assert (score.value, score.graded) == (value, True)


@pytest.mark.parametrize("gold", ["", " \n", "<answer>", "9 </answer>"])
def test_exact_match_cannot_grade_a_reference_that_nothing_can_state(gold: str) -> None:
    example = Example(id="1", question="q", answer=gold, task="logic")
    for text in (GOOD, "<think> a </think> <answer></answer>", gold):
        score = exact_match(text, example)
        assert (score.value, score.status) == (0.0, Status.UNGRADABLE)
