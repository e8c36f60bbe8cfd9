"""Prompts -> G samples each -> texts -> scores: what RL, rejection sampling and evaluation share.

N = P x G sequences, those of one prompt consecutive; L response width.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r1jax.data.chat import FORMATS, OWN, Chat, Message
from r1jax.data.errors import DataError
from r1jax.data.templates import TEMPLATES, render_prompt
from r1jax.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from r1jax.model.config import ModelConfig
from r1jax.processes import by_writer, gather_dicts, own_part
from r1jax.rewards.combine import Scores, summarize
from r1jax.rewards.grading import Batch, Grading
from r1jax.rewards.languages.language import reflection_count
from r1jax.sampling.decode import SamplingConfig
from r1jax.sampling.sampler import Sampler, left_pad
from r1jax.types import Array, Example, Params, Rollout, Score, Status
from r1jax.workdir import WorkdirError

CHAT = "chat"  # the template's name where a chat format makes the prompt


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How a question becomes a prompt."""

    template: str = "r1_zero"  # a key of data.templates.TEMPLATES, or "chat"
    chat_format: str = ""  # template "chat": a key of data.chat.FORMATS, or "own" for the checkpoint's
    suffix: str = ""  # put behind every question, such as "\nPlease put your final answer within \\boxed{}."
    few_shot: str = ""  # put before the template as it is
    bos: bool = True  # begin with the tokenizer's bos token, if it has one; a chat format has its own beginning
    width: int = 256  # longest prompt in tokens; a longer one is refused

    def __post_init__(self) -> None:
        if self.template not in (*TEMPLATES, CHAT):
            raise ValueError(f"template: {self.template!r} is not one of {sorted((*TEMPLATES, CHAT))}")
        if (self.template == CHAT) != bool(self.chat_format):
            raise ValueError(f"chat_format: {self.chat_format!r}; the template {CHAT!r} needs one, and no other does")
        if self.chat_format and self.chat_format not in (*FORMATS, OWN):
            raise ValueError(f"chat_format: {self.chat_format!r} is not one of {sorted((*FORMATS, OWN))}")
        if self.few_shot and self.template == CHAT:
            raise ValueError("few_shot: a chat has no text before it")


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How responses are drawn, in words of the user; `Completer` turns it into a SamplingConfig."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_strings: tuple[str, ...] = ()
    chunk: int = 32  # decode steps between two growths of the cache
    batch_size: int = 256  # sequences decoded at once
    # Bring the parameters that are not experts' whole to every device before drawing: once a rollout, where a mesh that
    # splits them (fsdp, sequence, expert) collects them in every decode step. Costs their bytes on every device.
    collect_weights: bool = False

    def sampling(self, stop_tokens: tuple[int, ...], record_experts: bool) -> SamplingConfig:
        """The same in words of the sampler."""
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "stop_strings", "chunk", "collect_weights")
        fields = {name: getattr(self, name) for name in names}
        return SamplingConfig(stop_tokens=stop_tokens, record_experts=record_experts, **fields)

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed: the last stage's before the first one."""
        for name in ("max_new_tokens", "chunk", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: {self.temperature}; 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k: {self.top_k}; 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p}; more than 0 and at most 1")


@dataclasses.dataclass(frozen=True)
class GradedRollout:
    """A rollout with what was asked, what was said and how it was graded. Stored once; never graded again."""

    rollout: Rollout
    examples: tuple[Example, ...]  # [P]
    texts: tuple[str, ...]  # [N]
    scores: tuple[Scores, ...]  # [N]

    @property
    def samples(self) -> int:
        """G, completions per prompt."""
        return len(self.texts) // len(self.examples)

    def example_of(self, index: int) -> Example:
        """What completion `index` answers."""
        return self.examples[index // self.samples]


def encode_prompts(examples: Sequence[Example], tokenizer: Tokenizer, config: PromptConfig) -> list[list[int]]:
    """Token ids of each example's prompt.

    Raises:
      DataError: a prompt is longer than `config.width` or cannot be a chat's; names the example and what is wrong.
      ValueError: the tokenizer does not have the chat format's markers.
    """
    encode = prompt_encoder(tokenizer, config)
    prompts = []
    for example in examples:
        try:
            ids = encode(example.question, example.language)
        except ValueError as error:
            raise DataError(f"the prompt of example {example.id!r}: {error}") from error
        if len(ids) > config.width:
            raise DataError(
                f"the prompt of example {example.id!r} has {len(ids)} tokens, more than prompt.width = {config.width}"
            )
        prompts.append(ids)
    return prompts


def prompt_encoder(tokenizer: Tokenizer, config: PromptConfig) -> Callable[[str, str], list[int]]:
    """(question, its language) -> the token ids of its prompt."""
    if config.template == CHAT:
        assert isinstance(tokenizer, HuggingFaceTokenizer | SentencePieceTokenizer)  # a policy has no other
        chat = Chat(tokenizer, config.chat_format)
        return lambda question, language: [*chat.prompt([Message("user", question + config.suffix)]).tokens]
    bos = [tokenizer.bos_id] if config.bos and tokenizer.bos_id is not None else []

    def encode(question: str, language: str) -> list[int]:
        text = render_prompt(config.template, question + config.suffix, config.few_shot, language)
        return [*bos, *tokenizer.encode(text)]

    return encode


def stop_tokens(tokenizer: Tokenizer, config: PromptConfig) -> tuple[int, ...]:
    """The tokens that end a response: eos, and what ends a turn of the chat format."""
    if config.template != CHAT:
        return (tokenizer.eos_id,)
    assert isinstance(tokenizer, HuggingFaceTokenizer | SentencePieceTokenizer)
    return Chat(tokenizer, config.chat_format).stop_tokens


def shown_prompt(example: Example, config: PromptConfig) -> str:
    """The prompt as text; of a chat what the user says."""
    question = example.question + config.suffix
    if config.template == CHAT:
        return question
    return render_prompt(config.template, question, config.few_shot, example.language)


@jax.jit
def _fold_in_each(key: Array, indices: Array) -> Array:
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


class Completer:
    """Samples completions of examples with one compiled sampler."""

    def __init__(
        self,
        model: ModelConfig,
        mesh: Mesh,
        tokenizer: Tokenizer,
        prompt: PromptConfig,
        decoding: DecodingConfig,
        record_experts: bool = False,
        group_size: int = 1,
    ) -> None:
        """Compiles nothing yet; `group_size` completions of each example come together and share its prompt's pass."""
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.decoding = decoding
        token_bytes = None
        if decoding.stop_strings:
            token_bytes = [tokenizer.token_bytes(i) for i in range(model.vocab_size)]
        self.sampler = Sampler(
            model,
            mesh,
            decoding.sampling(stop_tokens(tokenizer, prompt), record_experts),
            prompt.width,
            decoding.batch_size,
            token_bytes,
            group_size,
        )

    def lay_out(self, params: Params) -> Params:
        """The parameters where drawing wants them (`Sampler.lay_out`)."""
        return self.sampler.lay_out(params)

    def complete(
        self,
        params: Params,
        examples: Sequence[Example],
        samples: int,
        key: Array,
        limit: int | None = None,
        batch: Batch | None = None,
    ) -> tuple[Rollout, tuple[str, ...]]:
        """`samples` completions of each example, and their texts. Completion i draws with fold_in(key, i).

        What is complete goes to `batch` at once, to be graded while the rest is drawn; of several processes, to that
        of the one on whose devices it was drawn.
        """
        prompts = encode_prompts(examples, self.tokenizer, self.prompt)
        tokens, lengths = left_pad([p for p in prompts for _ in range(samples)], self.prompt.width)
        keys = _fold_in_each(key, jnp.arange(len(lengths)))
        # All rows in one call: the sampler regroups unfinished ones across its blocks.
        texts: dict[int, str] = {}

        def finished(rollout: Rollout, rows: np.ndarray) -> None:
            for i in rows.tolist():
                response = rollout.response_tokens[i, : rollout.response_lengths[i]].tolist()
                texts[i] = self.tokenizer.decode(response)
                if batch is not None:
                    batch.add(i, texts[i], response, examples[i // samples])

        rollout = self.sampler.sample(params, tokens, lengths, keys, limit, finished)
        return rollout, tuple(gather_dicts(texts).values())


def grade(rollout: Rollout, texts: Sequence[str], examples: Sequence[Example], grading: Grading) -> GradedRollout:
    """Scores completions that are there already."""
    samples, batch = len(texts) // len(examples), grading.begin()
    for i, text in own_part(texts):
        response = rollout.response_tokens[i, : rollout.response_lengths[i]].tolist()
        batch.add(i, text, response, examples[i // samples])
    return GradedRollout(rollout, tuple(examples), tuple(texts), batch.scores())


def select_groups(graded: GradedRollout, keep: np.ndarray) -> GradedRollout:
    """The groups [P] marked by `keep`."""
    rows = np.repeat(keep, graded.samples)
    return GradedRollout(
        rollout=jax.tree.map(lambda x: x[rows], graded.rollout),
        examples=tuple(e for e, k in zip(graded.examples, keep, strict=True) if k),
        texts=tuple(t for t, k in zip(graded.texts, rows, strict=True) if k),
        scores=tuple(s for s, k in zip(graded.scores, rows, strict=True) if k),
    )


def join(parts: Sequence[GradedRollout]) -> GradedRollout:
    """Several rollouts of the same shape as one."""
    return GradedRollout(
        rollout=jax.tree.map(lambda *arrays: np.concatenate(arrays), *(p.rollout for p in parts)),
        examples=tuple(e for p in parts for e in p.examples),
        texts=tuple(t for p in parts for t in p.texts),
        scores=tuple(s for p in parts for s in p.scores),
    )


def measure(graded: GradedRollout) -> dict[str, float]:
    """Metrics of a rollout: mean total and rewards, lengths, truncation, reflection words, grades that failed."""
    lengths = np.asarray(graded.rollout.response_lengths)
    domains = [graded.example_of(i).domain for i in range(len(graded.texts))]
    return summarize(graded.scores, domains) | {
        "length_mean": float(lengths.mean()),
        "length_std": float(lengths.std()),
        "length_max": float(lengths.max()),
        "truncation_rate": float(1.0 - np.mean(graded.rollout.finished)),
        "reflection_words": float(np.mean([reflection_count(text) for text in graded.texts])),
    }


def sample_row(graded: GradedRollout, index: int, step: int, prompt: PromptConfig) -> dict[str, Any]:
    """One completion as a row of samples.jsonl."""
    example, scores = graded.example_of(index), graded.scores[index]
    return {
        "step": step,
        "id": example.id,
        "task": example.task,
        **({"domain": example.domain} if example.domain else {}),
        "prompt": shown_prompt(example, prompt),
        "completion": graded.texts[index],
        "answer": example.answer,
        "rewards": {name: _score_json(score) for name, score in scores.parts.items()},
        "total": scores.total,
        "length": int(graded.rollout.response_lengths[index]),
        "finished": bool(graded.rollout.finished[index]),
    }


def _score_json(score: Score) -> dict[str, Any]:
    return {"value": score.value, "status": score.status.value, "reason": score.reason}


def _score_from_json(data: dict[str, Any]) -> Score:
    return Score(data["value"], Status(data["status"]), data["reason"])


def save_graded(path: pathlib.Path, graded: GradedRollout, extra: dict[str, Any]) -> None:
    """Writes a graded rollout in one step: a kill leaves the whole file or none. `extra` is JSON to go with it."""
    arrays = {
        field.name: np.asarray(getattr(graded.rollout, field.name))
        for field in dataclasses.fields(graded.rollout)
        if getattr(graded.rollout, field.name) is not None
    }
    text = {
        "examples": [dataclasses.asdict(example) for example in graded.examples],
        "texts": graded.texts,
        "scores": [
            {"total": s.total, "parts": {name: _score_json(score) for name, score in s.parts.items()}}
            for s in graded.scores
        ],
        "extra": extra,
    }
    save_arrays(path, arrays, text)


def load_graded(path: pathlib.Path) -> tuple[GradedRollout, dict[str, Any]]:
    """What `save_graded` wrote."""
    arrays, text = load_arrays(path)
    graded = GradedRollout(
        rollout=Rollout(**arrays),
        examples=tuple(Example(**example) for example in text["examples"]),
        texts=tuple(text["texts"]),
        scores=tuple(
            Scores(s["total"], {name: _score_from_json(score) for name, score in s["parts"].items()})
            for s in text["scores"]
        ),
    )
    return graded, text["extra"]


@by_writer
def save_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray], text: dict[str, Any]) -> None:
    """An .npz file with arrays and a JSON object, written beside its place, synced and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    encoded = np.frombuffer(json.dumps(text, ensure_ascii=False).encode(), np.uint8)
    named: Any = {"__text__": encoded, **arrays}
    np.savez(buffer, **named)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def load_arrays(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `save_arrays` wrote. Raises WorkdirError if the file is damaged."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            text = json.loads(file["__text__"].tobytes().decode())
            return {name: file[name] for name in file.files if name != "__text__"}, text
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, zlib.error) as error:
        raise WorkdirError(f"{path} is damaged ({error}). Remove it, and what it holds is made again.") from error
