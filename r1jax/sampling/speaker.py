"""One answer as text, while it is drawn: thinking told apart from the answer, and cut short where a budget says so."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
from jax.sharding import Mesh

from r1jax.data.chat import THINK_CLOSE, Chat, Message, Part, ThinkingSplitter
from r1jax.data.tokenizer import StreamDecoder, Tokenizer
from r1jax.model.config import ModelConfig
from r1jax.sampling.decode import SamplingConfig
from r1jax.sampling.sampler import Sampler
from r1jax.types import Array, Params

WIDTH_STEP = 64  # prompt widths are multiples of it: another turn seldom compiles another program
BUDGET_CLOSING = f"\n{THINK_CLOSE}\n\n"


@dataclasses.dataclass(frozen=True)
class Said:
    """A piece of an answer. A "note" is ours, not the model's."""

    kind: Part | Literal["note"]
    text: str


class Speaker:
    """Draws answers one at a time: `speaker.say(prompt, key)` yields their text as it comes.

    After `thinking_budget` tokens inside a thought it is closed with "\\n</think>\\n\\n", as if the model had written
    that, and the answer is drawn from there. Compiled programs are kept for prompts of the same rounded width.
    """

    def __init__(
        self,
        model: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        config: SamplingConfig,
        mesh: Mesh | None = None,
        thinking_budget: int | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
          model: the model's configuration.
          params: its parameters.
          tokenizer: turns tokens into text.
          config: how to draw; `max_new_tokens` bounds thinking and answer together, and `stop_tokens` are not text.
          mesh: one that does not split rows; None: one device.
          thinking_budget: tokens; None: no bound.

        Raises:
          ValueError: the budget is not positive, or leaves nothing of max_new_tokens for an answer.
        """
        if thinking_budget is not None and not 1 <= thinking_budget < config.max_new_tokens:
            raise ValueError(
                f"a thinking budget of {thinking_budget} tokens must be at least 1 and below max_new_tokens "
                f"{config.max_new_tokens}, which bounds thinking and answer together"
            )
        self._model, self._params, self._mesh = model, params, mesh
        self._tokenizer = tokenizer
        self._config = config
        self._budget = thinking_budget
        self._samplers: dict[tuple[int, int], Sampler] = {}

    def say(self, prompt: Sequence[int], key: Array, *, thinking: bool = False, plain: bool = False) -> Iterator[Said]:
        """Draws one answer.

        Args:
          prompt: token ids.
          key: one random key.
          thinking: the prompt ends inside the thinking that it has opened.
          plain: all is "answer", tags included; there is no budget then.

        Raises:
          ValueError: the prompt does not fit the model's context (both lengths are named); at the first `next`.
        """
        thought_key, answer_key = jax.random.split(key)
        text = _Text(self._tokenizer, None if plain else ThinkingSplitter(thinking))
        limit = self._config.max_new_tokens
        yield from self._draw(prompt, thought_key, limit, text)
        if text.thoughts == self._budget:
            yield Said("note", f"thinking stopped at its budget of {self._budget} tokens")
            prompt = [*prompt, *text.tokens, *self._tokenizer.encode(BUDGET_CLOSING)]
            limit -= len(text.tokens)
            if limit < 1 or len(prompt) >= self._model.max_positions:
                yield Said("note", "no room is left for an answer")
                return
            text = _Text(self._tokenizer, None)
            yield from self._draw(prompt, answer_key, limit, text)
        if not text.ended:
            yield Said("note", f"cut after {len(text.tokens)} tokens")

    def _draw(self, prompt: Sequence[int], key: Array, limit: int, text: _Text) -> Iterator[Said]:
        """Draws tokens until a stop token, the limit, the end of the context, or that of the thinking budget."""
        sampler = self._sampler(len(prompt), limit)
        for token in itertools.chain.from_iterable(sampler.stream(self._params, prompt, key)):
            if token in self._config.stop_tokens:
                text.ended = True
                break
            yield from text.feed(token)
            if text.thoughts == self._budget:
                break
        yield from text.finish()

    def _sampler(self, length: int, limit: int) -> Sampler:
        """For prompts of this length; limit: tokens to draw, fewer where the context has no room for them."""
        context = self._model.max_positions
        if length >= context:
            raise ValueError(f"the prompt has {length} tokens, the model's context {context}: no room for an answer")
        # Rounded up, but not so far that the answer loses room to padding.
        width = max(length, min(-(-length // WIDTH_STEP) * WIDTH_STEP, context - limit))
        config = dataclasses.replace(self._config, max_new_tokens=min(limit, context - width))
        shape = width, config.max_new_tokens
        if shape not in self._samplers:
            self._samplers[shape] = Sampler(self._model, self._mesh, config, width, batch_size=1)
        return self._samplers[shape]


class Conversation:
    """Questions and answers, in which earlier thinking is forgotten, as R1's chat format has it."""

    def __init__(self, chat: Chat, speaker: Speaker, key: Array, system: str | None = None) -> None:
        self._chat, self._speaker, self._key = chat, speaker, key
        self._beginning = [] if system is None else [Message("system", system)]
        self._turns = 0
        self.forget()

    def forget(self) -> None:
        """Starts afresh, with the system message."""
        self.messages = list(self._beginning)

    def ask(self, question: str) -> Iterator[Said]:
        """Draws the answer; question and answer become part of the conversation when it is complete.

        Raises:
          ValueError: a control token in the question, or a conversation that does not fit the context; at the first
            `next`. The conversation stays as it was.
        """
        messages = [*self.messages, Message("user", question)]
        prompt = self._chat.prompt(messages)
        key = jax.random.fold_in(self._key, self._turns)
        self._turns += 1
        answer = ""
        for said in self._speaker.say(prompt.tokens, key, thinking=prompt.thinking):
            answer += said.text if said.kind == "answer" else ""
            yield said
        self.messages = [*messages, Message("assistant", answer)]


class _Text:
    """The tokens of an answer as pieces of text. Without a splitter, all of it is the answer."""

    def __init__(self, tokenizer: Tokenizer, splitter: ThinkingSplitter | None) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._splitter = splitter
        self.tokens: list[int] = []
        self.thoughts = 0  # tokens after which the text was inside a thought
        self.ended = False  # by a stop token

    def feed(self, token: int) -> list[Said]:
        """What became certain with this token."""
        self.tokens.append(token)
        said = self._split(self._decoder.feed(token))
        if self._splitter is not None and self._splitter.thinking:
            self.thoughts += 1
        return said

    def finish(self) -> list[Said]:
        """What was held back."""
        said = self._split(self._decoder.finish())
        return said if self._splitter is None else [*said, *(Said(*part) for part in self._splitter.finish())]

    def _split(self, piece: str) -> list[Said]:
        if self._splitter is None:
            return [Said("answer", piece)] if piece else []
        return [Said(*part) for part in self._splitter.feed(piece)]
