"""r1jax's own sampler as a model that answers conversations (`rewards.chat_models.ChatModel`), many at once."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r1jax.data.chat import Chat, Message, Prompt, split_thinking
from r1jax.data.tokenizer import Tokenizer
from r1jax.model.config import ModelConfig
from r1jax.rewards.judges.chat_models import Conversation, Reply
from r1jax.sampling.decode import SamplingConfig
from r1jax.sampling.sampler import Sampler, left_pad
from r1jax.types import Array, Params

WIDTH_STEP = 128  # prompt widths are multiples of it: another call seldom compiles another program


class SamplerChat:
    """Answers conversations in blocks of `batch_size` rows: `chat.ask(conversations, seed)`.

    The reply is the answer without the model's thinking. What has no answer is said in the reply: a message with a
    control token, a prompt that leaves no room for a whole answer, an answer cut at `max_new_tokens`. A draw depends on
    the seed and the conversation alone, apart from what another width of the padding changes in the last bits. Compiled
    programs are kept for calls whose longest prompt has the same rounded width.
    """

    def __init__(
        self,
        model: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        chat: Chat,
        config: SamplingConfig,
        batch_size: int = 16,
        mesh: Mesh | None = None,
    ) -> None:
        """Compiles nothing yet.

        Args:
          model: the model's configuration.
          params: its parameters.
          tokenizer: turns tokens into text.
          chat: its chat format; what ends an answer there stops the sampler too.
          config: how to draw; its `max_new_tokens` bounds thinking and answer together.
          batch_size: conversations decoded at once, a multiple of the mesh's parts.
          mesh: None: one device.

        Raises:
          ValueError: an answer of max_new_tokens leaves no room for a prompt in the model's context.
        """
        if config.max_new_tokens >= model.max_positions:
            raise ValueError(
                f"max_new_tokens is {config.max_new_tokens}, the model's context {model.max_positions}: no room for a "
                "prompt"
            )
        self._model, self._params, self._tokenizer, self._chat = model, params, tokenizer, chat
        stops = tuple(dict.fromkeys([*config.stop_tokens, *chat.stop_tokens]))
        self._config = dataclasses.replace(config, stop_tokens=stops)
        self._batch_size, self._mesh = batch_size, mesh
        self._samplers: dict[int, Sampler] = {}

    def ask(self, conversations: Sequence[Conversation], seed: int) -> list[Reply]:
        """One reply to each conversation, in order."""
        replies: dict[int, Reply] = {}
        prompts: dict[int, Prompt] = {}
        for place, conversation in enumerate(conversations):
            prompt = self._prompt(conversation)
            if isinstance(prompt, Reply):
                replies[place] = prompt
            else:
                prompts[place] = prompt
        if prompts:
            replies |= zip(prompts, self._draw(list(prompts.values()), seed), strict=True)
        return [replies[place] for place in range(len(conversations))]

    def _prompt(self, conversation: Conversation) -> Prompt | Reply:
        """The prompt, or the reply that says why there is none."""
        try:
            prompt = self._chat.prompt([_message(said) for said in conversation])
        except ValueError as error:  # what was said is at fault, which concerns this conversation alone
            return Reply(None, str(error))
        room = self._model.max_positions - self._config.max_new_tokens
        if len(prompt.tokens) > room:
            return Reply(
                None,
                f"the prompt has {len(prompt.tokens)} tokens, more than the {room} that the context of "
                f"{self._model.max_positions} has room for beside max_new_tokens {self._config.max_new_tokens}",
            )
        return prompt

    def _draw(self, prompts: Sequence[Prompt], seed: int) -> list[Reply]:
        longest = max(len(prompt.tokens) for prompt in prompts)
        sampler = self._sampler(longest)
        tokens, lengths = left_pad([prompt.tokens for prompt in prompts], sampler.prompt_width)
        rollout = sampler.sample(self._params, tokens, lengths, _keys(prompts, seed))
        rows = zip(rollout.response_tokens, rollout.response_lengths, rollout.finished, strict=True)
        return [
            self._reply(prompt, row[: length - 1].tolist()) if finished else Reply(None, f"cut after {length} tokens")
            for prompt, (row, length, finished) in zip(prompts, rows, strict=True)
        ]

    def _reply(self, prompt: Prompt, tokens: Sequence[int]) -> Reply:
        """The answer without the thinking. tokens: what was drawn, without the stop token."""
        thinking, answer, closed = split_thinking(self._tokenizer.decode(tokens), prompt.thinking)
        if (thinking or prompt.thinking) and not closed:
            return Reply(None, "the thinking was not ended")
        return Reply(answer)

    def _sampler(self, longest: int) -> Sampler:
        room = self._model.max_positions - self._config.max_new_tokens
        width = min(-(-longest // WIDTH_STEP) * WIDTH_STEP, room)
        if width not in self._samplers:
            self._samplers[width] = Sampler(self._model, self._mesh, self._config, width, self._batch_size)
        return self._samplers[width]


def _message(said: Mapping[str, str]) -> Message:
    return Message(said["role"], said["content"])


def _keys(prompts: Sequence[Prompt], seed: int) -> Array:
    """[N] random keys, each from the seed and the prompt's text."""
    digests = [hashlib.sha256(prompt.text.encode()).digest() for prompt in prompts]
    numbers = np.array([int.from_bytes(digest[:4], "big") for digest in digests], np.uint32)
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(jnp.asarray(numbers))
