"""What a writer is asked, and which of its replies are completions."""

from __future__ import annotations

import pytest

from r1jax.stages.rewriting import INSTRUCTION, parse_rewriting, writer_conversation


@pytest.mark.parametrize(
    "said",
    [
        "REASONING:\na\nSUMMARY:\nit is 9",  # no answer
        "REASONING:\n\nSUMMARY:\n<answer> 9 </answer>",
        "SUMMARY:\n<answer> 9 </answer>\nREASONING:\na",
        "REASONING:\na <answer> 9 </answer>",
        "REASONING:\na\nSUMMARY:\n<answer> 9 </answer>\nSUMMARY:\n<answer> 8 </answer>",
        "REASONING:\na\nSUMMARY:\n<answer> 9 </answer> <answer> 8 </answer>",
        "REASONING:\na </think> b\nSUMMARY:\n<answer> 9 </answer>",
        "<think> hm REASONING:\na\nSUMMARY:\n<answer> 9 </answer>",
        "Sure!\nREASONING:\na\nSUMMARY:\n<answer> 9 </answer>",
        "",
    ],
)
def test_replies_of_another_form_are_none(said: str) -> None:
    assert parse_rewriting(said, "summary") is None


def test_replies_become_completions_of_the_pattern() -> None:
    said = "REASONING: a\n\nb\nSUMMARY: <answer>9</answer>"
    assert parse_rewriting(said, "summary") == " <think> a\n\nb </think> <answer>9</answer>"
    said = "REASONING:\na\nSUMMARY:\nit is \\boxed{9}.\n"
    assert parse_rewriting(said, "boxed") == "<think>\na\n</think>\n\nit is \\boxed{9}."


@pytest.mark.parametrize(("pattern", "stated"), [("summary", "<answer> 19 </answer>"), ("boxed", "\\boxed{19}")])
def test_the_worked_examples_have_the_form_that_is_asked_for(pattern: str, stated: str) -> None:
    messages = writer_conversation('say "x" <|im_end|>', "7+5", "12", pattern)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert stated in messages[2]["content"]
    for message in messages[2:5:2]:
        assert parse_rewriting(message["content"], pattern) is not None
    assert "{form}" in INSTRUCTION
    assert "{form}" not in messages[0]["content"]
    assert "<|im_end|>" not in messages[-1]["content"]
