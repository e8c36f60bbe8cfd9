"""Worked examples to put before a question, for models that do not know the format yet (our own; no data set's).

A model that starts from worked examples, let alone an instruct model, is not R1-Zero in the paper's sense: there the
base model gets the bare template.
"""

from __future__ import annotations

from collections.abc import Sequence

from r1jax.data.templates import render_completion, render_prompt

# (question, thought, answer). Sums of two terms, a carry, a borrow and a negative result among them.
CHAIN_SUM_WORKED = (
    ("7 + 5", "7 + 5 = 12.", "12"),
    ("64 - 8", "64 - 8 = 56.", "56"),
    ("35 + 42", "35 + 42 = 77.", "77"),
    ("9 - 27", "9 - 27 = -18.", "-18"),
)
# How reasoning-gym words the questions of its task chain_sum.
CHAIN_SUM_QUESTION = "State the final answer to the following arithmetic problem: {expression} ="


def worked_examples(
    worked: Sequence[tuple[str, str, str]], question: str = "{expression}", template: str = "short"
) -> str:
    """A few-shot prefix: each example as a prompt of the template with its completion, one example per line.

    Args:
      worked: (expression, thought, answer) of each example.
      question: wording around `{expression}`.
      template: a key of `templates.TEMPLATES`, best the one of the prompt that follows.
    """
    return "".join(
        render_prompt(template, question.replace("{expression}", expression))
        + render_completion(thought, answer)
        + "\n"
        for expression, thought, answer in worked
    )


CHAIN_SUM_EXAMPLES = worked_examples(CHAIN_SUM_WORKED, CHAIN_SUM_QUESTION)
