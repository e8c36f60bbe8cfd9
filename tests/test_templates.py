"""Prompts: the paper's template to the letter, the short one, few-shot prefixes, odd questions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.data.templates import TEMPLATES, render_completion, render_prompt
from r1jax.rewards.answer import parse_response

# Table 1 of arXiv 2501.12948 v1 as printed, its highlighted placeholder `prompt` included.
PAPER_TABLE_1 = """\
A conversation between User and Assistant. The user asks a question, and the Assistant solves it. \
The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. \
The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, \
i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: prompt. Assistant:"""


def test_r1_zero_is_the_papers_table_verbatim() -> None:
    assert render_prompt("r1_zero", "prompt") == PAPER_TABLE_1


def test_r1_zero_keeps_its_english_wording_and_period_for_every_question() -> None:
    prompt = render_prompt("r1_zero", "计算 7 + 5 ?", language="zh")
    assert prompt == PAPER_TABLE_1.replace("User: prompt.", "User: 计算 7 + 5 ?.")


def test_short_template_in_both_languages() -> None:
    assert render_prompt("short", "compute 7 + 5 ?") == "User: compute 7 + 5 ? Assistant:"
    assert render_prompt("short", "计算 7 + 5 ?", language="zh") == "用户: 计算 7 + 5 ? 助手:"


def test_few_shot_prefix_stands_before_the_template_as_it_is() -> None:
    few_shot = render_prompt("short", "1 + 1 ?") + render_completion("one plus one is two", "2") + "\n\n"
    assert render_prompt("short", "2 + 2 ?", few_shot) == (
        "User: 1 + 1 ? Assistant: <think> one plus one is two </think> <answer> 2 </answer>\n\nUser: 2 + 2 ? Assistant:"
    )


@given(st.sampled_from(sorted(TEMPLATES)), st.text(min_size=1).filter(lambda text: text.strip()), st.text())
def test_the_question_goes_in_once_and_unchanged(name: str, question: str, few_shot: str) -> None:
    prompt = render_prompt(name, question, few_shot)
    before, _, after = TEMPLATES[name].partition("{question}")
    assert prompt == few_shot + before + question.strip() + after


def test_braces_and_placeholders_in_a_question_are_text() -> None:
    assert render_prompt("short", "what is {question} or {0} or %s ?").startswith(
        "User: what is {question} or {0} or %s ?"
    )


def test_unknown_template_and_blank_question_are_errors() -> None:
    with pytest.raises(ValueError, match=r"template must be one of \['r1_zero', 'short'\], got 'r1zero'"):
        render_prompt("r1zero", "q")
    with pytest.raises(ValueError, match="question is blank"):
        render_prompt("short", " \n")


def test_render_completion_is_well_formed() -> None:
    text = render_completion(" seven plus five is twelve ", "12\n")
    assert text == " <think> seven plus five is twelve </think> <answer> 12 </answer>"
    parsed = parse_response(text)
    assert (parsed.well_formed, parsed.thought, parsed.answer) == (True, "seven plus five is twelve", "12")


@pytest.mark.parametrize(("thought", "answer"), [("", "9"), ("a", " "), ("a </think> b", "9"), ("a", "<answer> 9")])
def test_render_completion_refuses_what_would_not_be_well_formed(thought: str, answer: str) -> None:
    with pytest.raises(ValueError, match=r"is blank|contains a tag"):
        render_completion(thought, answer)
