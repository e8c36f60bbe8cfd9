r"""Thinking budgets: what a policy would answer if its chain of thought were cut after N tokens.

The answers that were sampled without a budget are taken as they are. Where one is still inside its thought after N
tokens, these N tokens are kept, the thought is closed with a text of the config (`</think>` and the beginning of an
answer), and the policy goes on for a bounded number of tokens. A chain that ended by itself before stays as it is, so
that the chains of all budgets are beginnings of the same ones, and a budget above all chains changes nothing.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r1jax.data.chat import THINK_CLOSE, THINK_OPEN, ThinkingSplitter
from r1jax.data.tokenizer import StreamDecoder, Tokenizer
from r1jax.evaluation.estimators import mean_over_problems, summarize
from r1jax.evaluation.evaluator import evaluation_of
from r1jax.model.config import ModelConfig
from r1jax.processes import from_writer, own_part
from r1jax.rewards.combine import RewardConfig
from r1jax.rewards.grading import Grading
from r1jax.rollout import Completer, DecodingConfig, GradedRollout, PromptConfig, load_graded, save_graded
from r1jax.sampling.sampler import Sampler, left_pad
from r1jax.types import Array, Params, Rollout

WIDTH_STEP = 64  # prompt widths are multiples of it: budgets that are close share their compiled programs


def check_closing(closing: str) -> None:
    """ValueError unless a text closes a thought, and no more than that."""
    if closing.count(THINK_CLOSE) != 1 or THINK_OPEN in closing:
        raise ValueError(f"{closing!r} must have one {THINK_CLOSE} and no {THINK_OPEN}")


@dataclasses.dataclass(frozen=True)
class Thought:
    """Where a response thinks: after `start` tokens up to, not including, `end` its text ends inside the thought."""

    start: int
    end: int

    def is_open(self, count: int) -> bool:
        """Whether the first `count` tokens end inside the thought."""
        return self.start <= count < self.end


def thought_of_tokens(tokens: Sequence[int], tokenizer: Tokenizer, opened: bool, finished: bool) -> Thought:
    """Where a response thinks; `Thought(0, 0)` where it does not.

    Args:
        tokens: the response, its stop token included.
        tokenizer: of the policy.
        opened: the prompt ends inside the thought that it has opened.
        finished: a stop token ended the response: within a thought that ends the thought, too.
    """
    splitter, decoder = ThinkingSplitter(opened), StreamDecoder(tokenizer)
    start = 0 if opened else None
    for count, token in enumerate(tokens, start=1):
        parts = splitter.feed(decoder.feed(token))
        if splitter.closed:
            return Thought(count if start is None else start, count)
        if any(kind == "answer" for kind, _ in parts):
            break
        if splitter.thinking and start is None:
            start = count
    if start is None:
        return Thought(0, 0)
    return Thought(start, len(tokens) if finished else len(tokens) + 1)


@dataclasses.dataclass(frozen=True)
class Budgeted:
    """Graded answers under one budget."""

    graded: GradedRollout
    cut: np.ndarray  # [N] bool: the chain was cut
    thinking: np.ndarray  # [N] int, response tokens up to the end of the thought
    drawn: np.ndarray  # [N] int, tokens drawn after the closing; 0 where the chain was not cut


class BudgetedAnswers:
    """Makes them from answers without a budget; keeps nothing but compiled programs."""

    def __init__(
        self,
        closing: str,
        answer_tokens: int,
        prompt: PromptConfig,
        decoding: DecodingConfig,
        model: ModelConfig,
        mesh: Mesh,
        tokenizer: Tokenizer,
    ) -> None:
        """Compiles nothing yet.

        Args:
            closing: what is put behind a chain that is cut; see `check_closing`.
            answer_tokens: drawn after it at most.
            prompt: as the answers without a budget were asked.
            decoding: as they were drawn, but for `max_new_tokens`.
            model: the policy's.
            mesh: likewise.
            tokenizer: likewise.
        """
        self._answer_tokens, self._prompt, self._decoding = answer_tokens, prompt, decoding
        self._model, self._mesh, self._tokenizer = model, mesh, tokenizer
        self._closing = tokenizer.encode(closing)
        self._samplers: dict[int, Sampler] = {}

    def thoughts(self, graded: GradedRollout) -> list[Thought]:
        """Where each response thinks."""
        rollout = graded.rollout
        return [
            thought_of_tokens(_response(rollout, i), self._tokenizer, self._is_opened(rollout, i), rollout.finished[i])
            for i in range(len(graded.texts))
        ]

    def answer(
        self,
        params: Params,
        graded: GradedRollout,
        thoughts: Sequence[Thought],
        budget: int,
        key: Array,
        grading: Grading,
        store: pathlib.Path,
    ) -> Budgeted:
        """The answers under a budget; where a chain was cut, answer i goes on with fold_in(key, i).

        They are written to `store`; if they lie there already, nothing is sampled or graded again.
        """
        cut = np.array([thought.is_open(budget) for thought in thoughts])
        if from_writer(store.exists):
            forced, _ = load_graded(store)
        else:
            forced = self._forced(params, graded, np.flatnonzero(cut), budget, key, grading)
            save_graded(store, forced, {})
        drawn = np.where(cut, forced.rollout.response_lengths - budget - len(self._closing), 0)
        ends = [thought.end for thought in thoughts]
        thinking = np.minimum(ends, np.where(cut, budget, graded.rollout.response_lengths))
        return Budgeted(forced, cut, thinking, drawn)

    def _forced(
        self, params: Params, graded: GradedRollout, rows: np.ndarray, budget: int, key: Array, grading: Grading
    ) -> GradedRollout:
        """The answers with those of `rows` cut, closed and gone on with; the others with their grades as they are."""
        before = graded.rollout
        room = len(self._closing) + self._answer_tokens
        after = Rollout(
            prompt_tokens=before.prompt_tokens,
            prompt_lengths=before.prompt_lengths,
            response_tokens=np.pad(before.response_tokens, ((0, 0), (0, room))),
            response_lengths=before.response_lengths.copy(),
            sampler_logprobs=np.pad(before.sampler_logprobs, ((0, 0), (0, room))),
            finished=before.finished.copy(),
        )
        texts, scores = list(graded.texts), list(graded.scores)
        if len(rows):
            self._go_on(params, after, rows, budget, key)
            batch = grading.begin()
            for i in rows.tolist():
                texts[i] = self._tokenizer.decode(_response(after, i))
            for place, i in own_part(rows.tolist()):
                batch.add(place, texts[i], _response(after, i), graded.example_of(i))
            for i, score in zip(rows.tolist(), batch.scores(), strict=True):
                scores[i] = score
        return GradedRollout(after, graded.examples, tuple(texts), tuple(scores))

    def _go_on(self, params: Params, rollout: Rollout, rows: np.ndarray, budget: int, key: Array) -> None:
        """Writes closing and answer behind the first `budget` tokens of `rows`."""
        chains = [[*_response(rollout, i)[:budget], *self._closing] for i in rows.tolist()]
        prompts = [[*_prompt(rollout, i), *chain] for i, chain in zip(rows.tolist(), chains, strict=True)]
        sampler = self._sampler(self._prompt.width + budget + len(self._closing))
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(rows))
        drawn = sampler.sample(params, *left_pad(prompts, sampler.prompt_width), keys)
        begin = budget + len(self._closing)
        rollout.response_tokens[rows] = 0
        rollout.response_tokens[rows, :begin] = chains
        rollout.response_tokens[rows, begin : begin + self._answer_tokens] = drawn.response_tokens
        rollout.sampler_logprobs[rows, budget:] = 0  # nobody drew the closing
        rollout.sampler_logprobs[rows, begin : begin + self._answer_tokens] = drawn.sampler_logprobs
        rollout.response_lengths[rows] = begin + drawn.response_lengths
        rollout.finished[rows] = drawn.finished

    def _sampler(self, width: int) -> Sampler:
        """For prompts of this many tokens and fewer."""
        room = self._model.max_positions - self._answer_tokens
        width = max(width, min(-(-width // WIDTH_STEP) * WIDTH_STEP, room))
        if width not in self._samplers:
            decoding = dataclasses.replace(self._decoding, max_new_tokens=self._answer_tokens)
            prompt = dataclasses.replace(self._prompt, width=width)
            completer = Completer(self._model, self._mesh, self._tokenizer, prompt, decoding)
            self._samplers[width] = completer.sampler
        return self._samplers[width]

    def _is_opened(self, rollout: Rollout, index: int) -> bool:
        return self._tokenizer.decode(_prompt(rollout, index)).rstrip().endswith(THINK_OPEN)


def _prompt(rollout: Rollout, index: int) -> list[int]:
    return rollout.prompt_tokens[index, rollout.prompt_tokens.shape[1] - rollout.prompt_lengths[index] :].tolist()


def _response(rollout: Rollout, index: int) -> list[int]:
    return rollout.response_tokens[index, : rollout.response_lengths[index]].tolist()


def without_budget(graded: GradedRollout, thoughts: Sequence[Thought]) -> Budgeted:
    """The answers as they were sampled, to stand beside those under budgets."""
    thinking = np.minimum([thought.end for thought in thoughts], graded.rollout.response_lengths)
    return Budgeted(graded, np.zeros(len(thinking), bool), thinking, np.zeros(len(thinking), int))


def budget_figures(parts: Sequence[Budgeted], budget: int | None, rewards: RewardConfig, seed: int) -> dict[str, Any]:
    """What `estimators.summarize` gives for answers under one budget, with `budget` (None: no budget), and
    `thinking_tokens` and `share_cut` per response, each with its standard error over problems under `_se`."""
    samples = parts[0].graded.samples
    told: dict[str, Any] = {"budget": budget}
    for name, values in (("thinking_tokens", [p.thinking for p in parts]), ("share_cut", [p.cut for p in parts])):
        mean, error = mean_over_problems(np.concatenate(values).reshape(-1, samples))
        told |= {name: mean, f"{name}_se": None if np.isnan(error) else error}
    return told | summarize(evaluation_of([part.graded for part in parts], rewards), seed=seed)
