"""A model with a scalar head: how it reads a response, what it is made of, how it is stored, and its use as a reward.

The reward of a response is the hidden state, after the final norm, of the eos token that follows it, times a vector of
the model's width, in float32. There is no bias: it cancels in the difference of two rewards, and where a reward alone
counts (safety) a direction of the hidden state that all responses share does the same. The vector starts at zero, so
that nothing is preferred before the first update. The language-model head stays in the folder as it was, unused; the
module for multi-token prediction is left out.

Parameters: {"policy": those of the model, "score": {"kernel": [D] float32}}.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r1jax.checkpoint import CheckpointStore
from r1jax.data.errors import DataError
from r1jax.data.tokenizer import Tokenizer
from r1jax.data.tokenizer_files import read_json
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Transformer
from r1jax.processes import place, whole
from r1jax.rewards.judges.reward_models import View, helpfulness_input, safety_input
from r1jax.rewards.languages.language import detect_language
from r1jax.rollout import PromptConfig, encode_prompts
from r1jax.settings import ConfigError, from_config, to_plain
from r1jax.sharding import logical_sharding, shard_batch
from r1jax.stages.checks import check_divides
from r1jax.stages.state import placed_abstract_params
from r1jax.types import Array, Example, Params
from r1jax.weights.names import WeightsError
from r1jax.weights.policy_folder import CARD_FILE, PARAMETERS, read_description
from r1jax.workdir import write_atomically

KINDS = ("pairwise", "pointwise")
VIEWS: dict[str, View] = {"helpfulness": helpfulness_input, "safety": safety_input}
SHORTEST = 64  # tokens of the narrowest rows that are scored; wider ones are this times a power of two


@dataclasses.dataclass(frozen=True)
class RewardModelCard:
    """What must be known of a reward model to use it."""

    kind: str  # of KINDS
    view: str  # of VIEWS: what of a completion it was trained on
    prompt: PromptConfig  # how a question becomes a prompt; `width` was the limit in training
    mean: float  # of the rewards of held-out responses
    std: float  # their standard deviation

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} is not one of {list(KINDS)}")
        if self.view not in VIEWS:
            raise ValueError(f"view: {self.view!r} is not one of {sorted(VIEWS)}")
        if not 0 < self.std < float("inf"):
            raise ValueError(f"std: {self.std}; the held-out rewards are all the same, or not finite")


# The parameters -------------------------------------------------------------------------------------------------------


def scored_model(model: ModelConfig) -> ModelConfig:
    """The shape of a policy as the body of a reward model."""
    return dataclasses.replace(model, mtp_depth=0)


def add_head(params: Params, model: ModelConfig, mesh: Mesh) -> Params:
    """A policy's parameters with a head that gives 0 to everything."""
    kernel = place(np.zeros(model.width, np.float32), logical_sharding(mesh, ("embed",), (model.width,)))
    return {"policy": {k: v for k, v in params.items() if k != "mtp"}, "score": {"kernel": kernel}}


def abstract_scored(model: ModelConfig, mesh: Mesh) -> Params:
    """Shapes and shardings of the parameters; `model` is what `scored_model` gives."""
    sharding = logical_sharding(mesh, ("embed",), (model.width,))
    kernel = jax.ShapeDtypeStruct((model.width,), jnp.float32, sharding=sharding)
    return {"policy": placed_abstract_params(model, mesh), "score": {"kernel": kernel}}


def score_hidden(hidden: Array, params: Params) -> Array:
    """[..., D] of the model's dtype -> rewards [...] float32."""
    return jnp.einsum("...d,d->...", hidden.astype(jnp.float32), params["score"]["kernel"])


# What it reads --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reader:
    """Turns a response to a question into the tokens that are scored, the same way in training and in use."""

    tokenizer: Tokenizer
    prompt: PromptConfig  # how a question becomes a prompt
    longest: int  # tokens that prompt, response and eos may have
    limit: str  # what sets that limit, for messages

    def encode(self, names: Sequence[str], questions: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
        """Token ids of prompt, response and eos; all three arguments are [N], the names are for messages.

        A reward model is asked by the question's text alone, so the language of the template's wording is read off it:
        Chinese where most of its words are, else English.

        Raises:
          DataError: a prompt is longer than `prompt.width` or cannot be made, or all together is longer than `longest`.
        """
        examples = [Example(n, q, "", "", _wording(q)) for n, q in zip(names, questions, strict=True)]
        prompts = encode_prompts(examples, self.tokenizer, self.prompt)
        sequences = []
        for name, head, response in zip(names, prompts, responses, strict=True):
            sequence = [*head, *self.tokenizer.encode(response), self.tokenizer.eos_id]
            if len(sequence) > self.longest:
                raise DataError(
                    f"{name}: prompt and response have {len(sequence)} tokens, more than {self.limit} = "
                    f"{self.longest}; they are not cut"
                )
            sequences.append(sequence)
        return sequences


def _wording(question: str) -> str:
    try:
        return detect_language(question)
    except ValueError:  # of another script: templates have English wording for those
        return "en"


class Scorer:
    """Rewards of token sequences, `batch_size` at a time; one program for each width of the rows.

    A row holds one sequence and is as wide as the next power of two (times 64), but never wider than the model's
    context, so a reward does not depend on what else is scored.
    """

    def __init__(self, model: ModelConfig, mesh: Mesh, batch_size: int) -> None:
        """Compiles nothing yet. ConfigError if the mesh does not divide `batch_size`."""
        check_divides("batch_size", batch_size, mesh)
        self._mesh, self._batch_size, self._longest = mesh, batch_size, model.max_positions
        transformer = Transformer(model, mesh)

        def rewards(params: Params, tokens: Array, lengths: Array) -> Array:
            columns = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
            segments = (columns < lengths[:, None]).astype(jnp.int32)
            hidden = transformer.apply({"params": params["policy"]}, tokens, columns, segments).hidden  # type: ignore[union-attr]
            last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
            return score_hidden(last, params)

        self._rewards = jax.jit(rewards)

    def __call__(self, params: Params, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """[N] float32. Every sequence has at least one token and fits the model's context."""
        by_width: dict[int, list[int]] = {}
        for index, sequence in enumerate(sequences):
            by_width.setdefault(self._width(len(sequence)), []).append(index)
        found = np.zeros(len(sequences), np.float32)
        for width, members in sorted(by_width.items()):
            for start in range(0, len(members), self._batch_size):
                block = members[start : start + self._batch_size]
                tokens = np.zeros((self._batch_size, width), np.int32)
                lengths = np.zeros(self._batch_size, np.int32)
                for row, index in enumerate(block):
                    lengths[row] = len(sequences[index])
                    tokens[row, : lengths[row]] = sequences[index]
                rewards = self._rewards(params, *shard_batch(self._mesh, (tokens, lengths)))
                found[block] = whole(rewards)[: len(block)]
        return found

    def _width(self, length: int) -> int:
        width = SHORTEST
        while width < length:
            width *= 2
        return min(width, self._longest)


# Stored and used ------------------------------------------------------------------------------------------------------


def write_card(folder: pathlib.Path, card: RewardModelCard) -> None:
    """Writes what `read_card` reads; with it a reward model is finished."""
    write_atomically(folder / CARD_FILE, json.dumps(to_plain(card), indent=2, ensure_ascii=False) + "\n")


def describe_reward_model(folder: pathlib.Path) -> tuple[ModelConfig, Tokenizer, RewardModelCard]:
    """All but the parameters of a finished reward model. ConfigError if the folder holds none."""
    if not (folder / CARD_FILE).is_file():
        raise ConfigError(f"{folder} holds no finished reward model ({CARD_FILE}); run that stage first")
    try:
        model, tokenizer = read_description(folder)
    except WeightsError as error:
        raise ConfigError(str(error)) from error
    return model, tokenizer, from_config(RewardModelCard, read_json(folder / CARD_FILE), str(folder / CARD_FILE))


class StoredRewardModel:
    """A trained reward model, as `rewards.judges.reward_models.ScalarGrader` asks it (a `ScalarRewardModel`).

    A pairwise model gives rewards in units of what it saw in its held-out data: (reward - mean) / standard deviation of
    the held-out responses. A point-wise model gives P(safe), 0 to 1. The prompt's template is the model's own; how long
    a prompt or response is does not matter as long as both fit the model's context.
    """

    def __init__(
        self,
        model: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        card: RewardModelCard,
        mesh: Mesh,
        batch_size: int,
    ) -> None:
        """Compiles nothing yet. ConfigError if the mesh does not divide `batch_size`."""
        self.card = card
        self._params = params
        prompt = dataclasses.replace(card.prompt, width=model.max_positions)
        self._reader = Reader(tokenizer, prompt, model.max_positions, "the model's max_positions")
        self._scorer = Scorer(model, mesh, batch_size)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """[N] float32: the reward of each response, already reduced to the model's view, to its question.

        Raises:
          DataError: prompt and response do not fit the model's context; the response is named by its number.
        """
        names = [f"response {i}" for i in range(len(prompts))]
        rewards = self._scorer(self._params, self._reader.encode(names, prompts, responses))
        if self.card.kind == "pointwise":
            return np.asarray(jax.nn.sigmoid(rewards), np.float32)
        return ((rewards - self.card.mean) / self.card.std).astype(np.float32)


def load_reward_model(folder: pathlib.Path, mesh: Mesh, batch_size: int = 32) -> StoredRewardModel:
    """The reward model that a `reward_model` stage left in `folder`.

    Args:
      folder: of the stage.
      mesh: where the parameters go.
      batch_size: responses scored at once, a multiple of the mesh's parts.

    Raises:
      ConfigError: the folder holds no finished reward model, or the mesh does not divide `batch_size`.
    """
    model, tokenizer, card = describe_reward_model(folder)
    _, params, _ = CheckpointStore(folder / PARAMETERS).restore(abstract_scored(model, mesh))
    return StoredRewardModel(model, params, tokenizer, card, mesh, batch_size)
