"""From files of samples to the documents of a fine-tuning run: read, encode, mix, hold out. All of it is counted."""

from __future__ import annotations

import dataclasses
import fractions
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from r1jax.data.chat import Chat, Message
from r1jax.data.conversations import encode_conversation
from r1jax.data.errors import DataError
from r1jax.data.packing import Documents
from r1jax.data.samples import Sample, read_samples
from r1jax.data.sources import normalized
from r1jax.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from r1jax.rollout import CHAT, prompt_encoder
from r1jax.settings import ConfigError
from r1jax.stages.sft_config import REFUSE, SFTConfig, SFTData

Encoded = tuple[list[int], list[int]]
"""A sample's tokens, and for each 1 if it is learnt."""


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """What a run learns from, and what became of every sample of every file."""

    train: Documents
    held_out: Documents | None
    # Of every file: rows, and what they are the sum of: beyond_limit, too_long, beyond_share, held_out, trained.
    counts: tuple[dict[str, int], ...]


class SampleEncoder:
    """Encodes samples as the policy will see them: prompts as when it is asked, completions as when it answers."""

    def __init__(self, config: SFTConfig, tokenizer: Tokenizer) -> None:
        """Raises ConfigError if the tokenizer does not have the chat format's markers."""
        self.config, self.tokenizer = config, tokenizer
        name = config.chat_format or config.prompt.chat_format
        try:
            self.chat = _chat(tokenizer, name) if name else None
            self.prompt = prompt_encoder(tokenizer, config.prompt)
        except ValueError as error:
            raise ConfigError(f"chat_format: {error}") from error

    def __call__(self, sample: Sample) -> Encoded | str:
        """The sample as a document, or why it is too long. Raises ValueError if it cannot be one at all."""
        if sample.messages:
            if self.chat is None:
                raise ValueError("it has messages, and chat_format, which says how they are written, is empty")
            tokens, mask = encode_conversation(self.chat, sample.messages)
        else:
            prompt = self.prompt(sample.question, sample.language)
            if len(prompt) > self.config.prompt.width:
                return f"its prompt has {len(prompt)} tokens, more than prompt.width = {self.config.prompt.width}"
            tokens, mask = self._answered(prompt, sample)
        slots, row_length = len(tokens) - 1, self.config.row_length
        if slots > row_length:
            return f"its {len(tokens)} tokens take {slots} slots, more than row_length = {row_length}"
        return tokens, mask

    def _answered(self, prompt: list[int], sample: Sample) -> Encoded:
        if self.config.prompt.template == CHAT:
            assert self.chat is not None  # the prompt has its format
            asked = Message("user", sample.question + self.config.prompt.suffix)
            return encode_conversation(self.chat, [asked, Message("assistant", sample.completion)])
        completion = [*self.tokenizer.encode(sample.completion), self.tokenizer.eos_id]
        if self.tokenizer.eos_id in completion[:-1]:
            raise ValueError("its completion contains the token that ends a text")
        return prompt + completion, [0] * len(prompt) + [1] * len(completion)


def _chat(tokenizer: Tokenizer, name: str) -> Chat:
    assert isinstance(tokenizer, HuggingFaceTokenizer | SentencePieceTokenizer)  # a policy has no other
    return Chat(tokenizer, name)


@dataclasses.dataclass(frozen=True)
class _File:
    samples: list[Sample]  # those that fit
    documents: list[Encoded]
    counts: dict[str, int]


def encode_file(data: SFTData, workdir: pathlib.Path, encode: SampleEncoder) -> _File:
    """A file's samples as documents.

    Raises:
      DataError: a row is no sample; a sample cannot be encoded; or it is too long and `too_long` is 'refuse'. The file
        and the sample are named.
    """
    rows = read_samples(workdir / data.path)
    samples, documents, too_long = [], [], []
    for sample in rows[: data.limit or None]:
        try:
            encoded = encode(sample)
        except ValueError as error:
            raise DataError(f"{data.path}: sample {sample.id!r}: {error}") from error
        if isinstance(encoded, str):
            too_long.append(f"sample {sample.id!r}: {encoded}")
            continue
        samples.append(sample)
        documents.append(encoded)
    if too_long and encode.config.too_long == REFUSE:
        more = f" (and {len(too_long) - 1} more)" if len(too_long) > 1 else ""
        raise DataError(f"{data.path}: {too_long[0]}{more}; too_long = 'drop' leaves such samples out")
    if not samples:
        raise DataError(f"{data.path}: no sample is left; {too_long[0]}")
    limited = len(samples) + len(too_long)
    counts = {"rows": len(rows), "beyond_limit": len(rows) - limited, "too_long": len(too_long)}
    return _File(samples, documents, counts)


def make_training_set(config: SFTConfig, workdir: pathlib.Path, tokenizer: Tokenizer) -> TrainingSet:
    """The documents to train on and those held out.

    Raises:
      DataError: see `encode_file`; or shares that leave no sample of a file, or a split that leaves none to train on.
      ConfigError: the tokenizer cannot write the chat format.
    """
    encode = SampleEncoder(config, tokenizer)
    files = [encode_file(data, workdir, encode) for data in config.data]
    mixed = mix([len(file.samples) for file in files], [data.share for data in config.data])
    if 0 in mixed:
        raise DataError(f"{config.data[mixed.index(0)].path}: its share of the mix comes to less than one sample")
    chosen = [
        _draw(len(file.samples), count, (config.seed, 1, i))
        for i, (file, count) in enumerate(zip(files, mixed, strict=True))
    ]
    parts = list(zip(files, chosen, strict=True))
    keys = [question_key(file.samples[j]) for file, indices in parts for j in indices]
    apart = hold_out(keys, config.validation_share, config.seed)
    train: list[Encoded] = []
    held_out: list[Encoded] = []
    for file, indices in parts:
        before = len(held_out)
        for j in indices:
            (held_out if question_key(file.samples[j]) in apart else train).append(file.documents[j])
        file.counts["beyond_share"] = len(file.samples) - len(indices)
        file.counts["held_out"] = len(held_out) - before
        file.counts["trained"] = len(indices) - file.counts["held_out"]
    return TrainingSet(
        Documents.from_pairs(train),
        Documents.from_pairs(held_out) if held_out else None,
        tuple(file.counts for file in files),
    )


def mix(counts: Sequence[int], shares: Sequence[float | None]) -> list[int]:
    """How many samples of each file: the most that keep the proportions, rounded down; without shares all of them."""
    given = [fractions.Fraction(str(share)) for share in shares if share is not None]
    if not given:
        return list(counts)
    whole = min(count / share for count, share in zip(counts, given, strict=True))
    return [math.floor(whole * share) for share in given]


def _draw(total: int, count: int, seed: tuple[int, ...]) -> list[int]:
    """`count` different ones of 0..total-1, in order."""
    return sorted(np.random.default_rng(seed).permutation(total)[:count].tolist())


def question_key(sample: Sample) -> str:
    """The same for samples that ask the same question, or whose conversations begin with the same one."""
    asked = [message.content for message in sample.messages if message.role == "user"]
    return normalized(sample.question or (asked[0] if asked else sample.messages[0].content))


def hold_out(keys: Sequence[str], share: float, seed: int) -> set[str]:
    """A share of the different keys, at least one of them. Raises DataError if none would be left to train on."""
    if not share:
        return set()
    different = list(dict.fromkeys(keys))
    count = max(1, round(share * len(different)))
    if count >= len(different):
        raise DataError(f"validation_share: {share} of {len(different)} questions leaves none to train on")
    return {different[i] for i in _draw(len(different), count, (seed, 2))}
