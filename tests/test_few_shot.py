"""The worked examples are right, well-formed and end where the next prompt can begin."""

from __future__ import annotations

import ast
import operator

import pytest

from r1jax.data.few_shot import CHAIN_SUM_EXAMPLES, CHAIN_SUM_QUESTION, CHAIN_SUM_WORKED, worked_examples
from r1jax.data.templates import render_prompt
from r1jax.rewards.answer import parse_response


def value(expression: str) -> int:
    """Sums and differences, computed apart from what the examples say."""

    def of(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            return int(node.value)
        if isinstance(node, ast.UnaryOp):
            return -of(node.operand)
        assert isinstance(node, ast.BinOp)
        return {ast.Add: operator.add, ast.Sub: operator.sub}[type(node.op)](of(node.left), of(node.right))

    return of(ast.parse(expression, mode="eval").body)


@pytest.mark.parametrize(("expression", "thought", "answer"), CHAIN_SUM_WORKED)
def test_every_step_and_answer_is_right(expression: str, thought: str, answer: str) -> None:
    assert value(expression) == int(answer)
    steps = [step.split(" = ") for step in thought.removesuffix(".").split(". ")]
    assert all(value(left) == int(right) for left, right in steps)
    assert steps[-1][1] == answer
    assert len(steps) == expression.count(" + ") + expression.count(" - ")


def test_prefix_is_prompts_and_well_formed_completions() -> None:
    examples = CHAIN_SUM_EXAMPLES.splitlines()
    assert len(examples) == len(CHAIN_SUM_WORKED)
    for example, (expression, _, answer) in zip(examples, CHAIN_SUM_WORKED, strict=True):
        prompt = render_prompt("short", CHAIN_SUM_QUESTION.replace("{expression}", expression))
        assert example.startswith(prompt)
        parsed = parse_response(example.removeprefix(prompt))
        assert parsed.well_formed
        assert parsed.answer == answer
    assert CHAIN_SUM_EXAMPLES.endswith("</answer>\n")


def test_prefix_in_another_template() -> None:
    prefix = worked_examples(CHAIN_SUM_WORKED[:1], template="r1_zero")
    assert prefix == render_prompt("r1_zero", "7 + 5") + " <think> 7 + 5 = 12. </think> <answer> 12 </answer>\n"
