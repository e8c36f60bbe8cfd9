"""A whole conversation as one training document: every answer is learnt where it stands, nothing else is.

The text is what the model would read before its last answer, rendered by the chat template, and then that answer. So
earlier answers stand there as the template leaves them: R1's drops their thoughts, which only the last answer keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from r1jax.data.chat import THINK_CLOSE, THINK_OPEN, Chat, Message, Prompt


def encode_conversation(chat: Chat, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Tokens of a conversation, and for each 1 if it is learnt: the assistant's words and the token that ends a turn.

    Answers are encoded apart from what stands around them, as a sampled one is. If the chat format begins an answer
    with a thought that it opens itself, the last message either begins with the same opening, which then belongs to the
    prompt, or goes on from it and closes the thought.

    Raises:
      ValueError: the template refuses the messages, or changes with what the assistant says or ends no turn, so that
        its answers cannot be found; an answer holds a control token, or lacks a thought that the format has opened.
    """
    _check_answers(chat, messages)
    *before, last = messages
    prompt = chat.prompt(before)
    answers = [
        _place_of(chat, prompt.text, before, i, add_generation_prompt=True)
        for i, message in enumerate(before)
        if message.role == "assistant"
    ]
    tokens: list[int] = []
    mask: list[int] = []
    done = 0
    for start, end in [*answers, (len(prompt.text), len(prompt.text))]:
        between = chat.encode(prompt.text[done:start])
        answer = chat.encode(prompt.text[start:end])
        follows_answer = done > 0
        if follows_answer:
            _check_end(chat, between)
        tokens += between + answer
        mask += [int(follows_answer and i == 0) for i in range(len(between))] + [1] * len(answer)
        done = end
    answer = chat.encode(_continuation(prompt, last.content))
    whole = chat.template.render(messages, add_generation_prompt=False)
    _, end = _place_of(chat, whole, messages, len(before), add_generation_prompt=False)
    behind = chat.encode(whole[end:])
    _check_end(chat, behind)
    return [*tokens, *answer, behind[0]], [*mask, *[1] * len(answer), 1]


def _check_answers(chat: Chat, messages: Sequence[Message]) -> None:
    """That no answer ends a turn or begins another inside its own text; thinking tags stand there by right."""
    tokens = [token for token in chat.control_tokens if token not in (THINK_OPEN, THINK_CLOSE)]
    for number, message in enumerate(messages, start=1):
        found = [token for token in tokens if token in message.content]
        if found and message.role == "assistant":
            raise ValueError(f"message {number} (assistant) contains the control token {found[0]!r}")


def _place_of(
    chat: Chat, text: str, messages: Sequence[Message], index: int, add_generation_prompt: bool
) -> tuple[int, int]:
    """Where in the rendered `text` the answer that is message `index` begins and ends.

    Two answers of one letter each show what the template writes before and behind it.
    """
    shown = [
        chat.template.render(
            [*messages[:index], dataclasses.replace(messages[index], content=letter), *messages[index + 1 :]],
            add_generation_prompt,
        )
        for letter in "AB"
    ]
    before = _common_start(*shown)
    behind = _common_start(*(one[::-1] for one in shown))[::-1]
    end = len(text) - len(behind)
    if not (text.startswith(before) and text.endswith(behind) and len(before) <= end):
        raise ValueError(f"{chat.template.origin} does not write message {index + 1} into a fixed place")
    return len(before), end


def _common_start(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _check_end(chat: Chat, behind: Sequence[int]) -> None:
    """That what follows an answer begins with a token that stops sampling: otherwise no model learns to stop."""
    if not behind or behind[0] not in chat.stop_tokens:
        raise ValueError(f"{chat.template.origin} ends no answer with a token that stops sampling")


def _continuation(prompt: Prompt, answer: str) -> str:
    """What of the last answer is still to come after the prompt, which may have opened its thought."""
    if not prompt.thinking:
        return answer
    opening = prompt.text[prompt.text.rindex(THINK_OPEN) :]
    if answer.startswith(opening):
        return answer[len(opening) :]
    if THINK_OPEN in answer or THINK_CLOSE not in answer:
        raise ValueError(
            f"the chat format opens a thought by {opening!r}: an answer begins in the same way, or goes on from there "
            f"and closes the thought with {THINK_CLOSE!r}"
        )
    return answer
