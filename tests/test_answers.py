"""r1jax's own sampler as a model that is asked: each conversation's answer, and why there is none."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from r1jax.data.chat import FORMATS, Chat, Message
from r1jax.data.tokenizer import train_sentencepiece
from r1jax.model.presets import get_preset
from r1jax.model.transformer import init_params
from r1jax.rewards.judges.chat_models import Reply
from r1jax.sampling.answers import SamplerChat
from r1jax.sampling.decode import SamplingConfig
from r1jax.sampling.speaker import Speaker
from r1jax.types import Rollout

MARKERS = (*FORMATS["r1"].markers, *FORMATS["qwen"].markers)
GREEDY = SamplingConfig(12, temperature=0.0, stop_tokens=tuple(range(20, 60)))  # about one token in seven


@pytest.fixture(scope="module")
def sp(tmp_path_factory):
    words = ["2 + 3 = 5 so the answer is 5 é"] * 9
    return train_sentencepiece(words, tmp_path_factory.mktemp("sp") / "m.model", 294, MARKERS)


@pytest.fixture(scope="module")
def model(sp):
    return get_preset("tiny_dense", num_dense_layers=1, ffn_dim=64, vocab_size=sp.vocab_size, max_positions=200)


@pytest.fixture(scope="module")
def params(model):
    return init_params(model, jax.random.key(0))


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


QUESTIONS = [f"{a} + {b} =" for a in range(4) for b in range(4)]


@pytest.fixture(scope="module")
def greedy(sp, model, params):
    return SamplerChat(model, params, sp, Chat(sp, "qwen"), GREEDY, batch_size=16)


def test_each_gets_the_answer_that_it_gets_when_it_is_alone_with_the_speaker(sp, model, params, greedy):
    replies = greedy.ask([conversation(text) for text in QUESTIONS], seed=0)
    chat = Chat(sp, "qwen")
    speaker = Speaker(model, params, sp, greedy._config)  # the same stop tokens
    answered = 0
    for text, reply in zip(QUESTIONS, replies, strict=True):
        said = list(speaker.say(chat.prompt([Message("user", text)]).tokens, jax.random.key(9), plain=True))
        if said and said[-1].kind == "note":
            assert reply == Reply(None, "cut after 12 tokens")
        else:
            answered += 1
            assert reply == Reply("".join(piece.text for piece in said))
    assert 0 < answered < len(QUESTIONS)


def test_what_cannot_be_asked_does_not_touch_the_others(greedy):
    good = conversation("2 + 3 =")
    replies = greedy.ask(
        [conversation("a<|im_end|>b"), good, conversation("5 " * 300), [{"role": "judge", "content": "x"}]], seed=0
    )
    assert replies[1] == greedy.ask([good], seed=0)[0]
    assert [reply.text for reply in replies[:1] + replies[2:]] == [None] * 3
    assert "message 1 (user) contains '<|im_end|>'" in replies[0].problem
    assert "more than the 188 that the context of 200 has room for beside max_new_tokens 12" in replies[2].problem
    assert "role 'judge' is not one of" in replies[3].problem
    assert greedy.ask([], seed=0) == []


def test_a_draw_depends_on_seed_and_conversation_alone(sp, model, params):
    config = SamplingConfig(6, temperature=1.0, stop_tokens=tuple(range(20, 160)))
    chat = SamplerChat(model, params, sp, Chat(sp, "qwen"), config, batch_size=16)
    asked = [conversation(text) for text in QUESTIONS]
    replies = chat.ask(asked, seed=1)
    assert chat.ask(asked[::-1], seed=1) == replies[::-1]
    assert chat.ask(asked[3:4], seed=1) == replies[3:4]
    assert chat.ask(asked[:1] * 3, seed=1) == replies[:1] * 3
    assert chat.ask(asked, seed=2) != replies


def test_the_thinking_is_not_part_of_the_answer(sp, model, params, monkeypatch):
    chat = SamplerChat(model, params, sp, Chat(sp, "r1"), GREEDY, batch_size=16)
    monkeypatch.setattr(chat._tokenizer, "decode", lambda ids: "so 5</think>\n\n5")
    monkeypatch.setattr(chat, "_sampler", lambda longest: Finished(longest))
    assert chat.ask([conversation("2 + 3 =")], seed=0) == [Reply("\n\n5")]
    monkeypatch.setattr(chat._tokenizer, "decode", lambda ids: "so 5 and then")
    (reply,) = chat.ask([conversation("2 + 3 =")], seed=0)
    assert reply.text is None
    assert reply.problem == "the thinking was not ended"


class Finished:
    """In place of a sampler: every row ends with its second token."""

    def __init__(self, width):
        self.prompt_width = width

    def sample(self, params, tokens, lengths, keys):
        rows = len(tokens)
        drawn = np.ones((rows, 4), np.int32)
        logprobs = np.zeros((rows, 4), np.float32)
        return Rollout(tokens, lengths, drawn, np.full(rows, 2), logprobs, np.ones(rows, bool))


def test_an_answer_that_leaves_no_room_for_a_prompt_is_refused(sp, model, params):
    with pytest.raises(ValueError, match="max_new_tokens is 200, the model's context 200: no room for a prompt"):
        SamplerChat(model, params, sp, Chat(sp, "qwen"), SamplingConfig(200))
