"""Prompt templates: the text around a question, up to where the completion begins."""

from __future__ import annotations

# R1 paper (arXiv 2501.12948 v1), Table 1, verbatim; the table's placeholder `prompt` is `{question}` here.
R1_ZERO_TEMPLATE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: {question}. Assistant:"
)
# For a tiny base model, to which the instruction above would be so many wasted tokens.
SHORT_TEMPLATE = "User: {question} Assistant:"
SHORT_TEMPLATE_ZH = "用户: {question} 助手:"

TEMPLATES: dict[str, str] = {"r1_zero": R1_ZERO_TEMPLATE, "short": SHORT_TEMPLATE}
# Templates whose wording follows the question's language; the paper's own is English for every question.
TRANSLATIONS: dict[tuple[str, str], str] = {("short", "zh"): SHORT_TEMPLATE_ZH}


def render_prompt(template_name: str, question: str, few_shot: str = "", language: str = "en") -> str:
    """The prompt of `question`: `few_shot` as it is, then the template with the question in its place.

    The question is trimmed, otherwise untouched: braces and tags in it are text, and the period that r1_zero sets
    behind it comes even after a question mark, as in the paper's table. `language` picks the template's translation
    where there is one; any other language gets the English wording. The completion begins right behind the prompt.
    ValueError for an unknown template or a blank question.
    """
    if template_name not in TEMPLATES:
        raise ValueError(f"template must be one of {sorted(TEMPLATES)}, got {template_name!r}")
    question = question.strip()
    if not question:
        raise ValueError("question is blank")
    before, _, after = TRANSLATIONS.get((template_name, language), TEMPLATES[template_name]).partition("{question}")
    return few_shot + before + question + after


def render_completion(thought: str, answer: str) -> str:
    """A completion in the form the templates ask for, with the leading blank that follows "Assistant:".

    For corpora and worked examples. ValueError where thought or answer is blank or contains one of the tags, because
    the result would not be well-formed.
    """
    for name, text in (("thought", thought), ("answer", answer)):
        if not text.strip():
            raise ValueError(f"{name} is blank")
        if any(tag in text for tag in ("<think>", "</think>", "<answer>", "</answer>")):
            raise ValueError(f"{name} contains a tag: {text!r}")
    return f" <think> {thought.strip()} </think> <answer> {answer.strip()} </answer>"
