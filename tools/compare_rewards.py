r"""Rewards on token ids against rewards on text: format and exact match must be equal, language as close as can be.

    python -m tools.compare_rewards [--completions 12000]

A third of the completions are well-formed and right, a third are such ones with a fault or two, and the rest are
attacks of the audit, texts in two languages, splinters of tags, and ids drawn at random. Thoughts are English, Chinese
or both, with code and LaTeX in them, some of it never closed. Half of the completions are cut at random places before
they are encoded, as a sampler may write them. Each tokenizer is a row: the tiny models' own, and a byte-level BPE
(SmolLM2's where the extra `smollm2` is installed). Status 1 if format or match differ anywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import pathlib
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from r1jax.data.corpus import CorpusConfig, write_corpus, write_drill, write_reading
from r1jax.data.tasks import TaskConfig, make_examples
from r1jax.data.templates import render_completion
from r1jax.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer, train_sentencepiece
from r1jax.rewards import on_device
from r1jax.rewards.answer import TAGS, exact_match, parse_response
from r1jax.rewards.audit.attacks import make_attacks, make_language_texts
from r1jax.rewards.format import format_reward
from r1jax.rewards.languages import token_language
from r1jax.rewards.languages.language import NO_LANGUAGE, language_reward, thought_of
from r1jax.stages.pretrain import TAG_TOKENS
from r1jax.types import Example, Score
from r1jax.weights.gguf import gguf_tokenizer, locate_smollm2
from tools.command_line import run_tool

BATCH = 512
KINDS = ("passing", "near miss", "mixed")
ORNAMENTS = (
    "$x^2 + \\frac{a}{b}$", "\\(n \\bmod 3\\)", "\\[ \\sum_{i=1}^{n} i \\]", "$$\\text{total} = 12$$", "$我们先算$",
    "`print(total)`", "```python\nfor number in numbers:\n    total += number\n```", "```\n先算\n```",
    "\\boxed{12}", "from $5 to $6", "don't", "it’s", "naïve café", "Ångström", "ＡＢＣ", "да нет", "はい", "안녕",
    "😀", "½ + ¼", "x = y", "A. B. C.", "\n\n", "\t", "，", "《九章算术》", "a < b", "</", "<thin", "ＯＫ。",
)  # fmt: skip
OPENINGS = ("$", "`", "```", "\\[", "\\(", "$$")
SPLINTERS = (
    *TAGS, *TAGS, "<", "</", "<<", "<think", "think>", "<answer ", "answer>", "<Think>", "< think >", "＜think＞",
    " ", "\n", "\u3000", "\xa0", "\0", "\x85", "9", "3 8", "我们", "we add", "é", "𠮷", *OPENINGS,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Completion:
    """What is graded; without a text it is drawn from the tokenizer's ids."""

    kind: str
    text: str | None
    example: Example


def write_thought(draw: random.Random, rng: np.random.Generator) -> str:
    """Some sentences of the corpus and of the audit, and ornaments between them."""
    pieces = [write_drill(rng) if draw.random() < 0.5 else write_reading(rng, CorpusConfig())[0]]
    mixed = parse_response(make_language_texts(2, seed=draw.randrange(10**6))[1].text).thought
    pieces += [mixed or "", *draw.choices(ORNAMENTS, k=draw.randint(0, 6))]
    if draw.random() < 0.1:
        pieces.append(draw.choice(OPENINGS))
    draw.shuffle(pieces)
    return " ".join(pieces)


def spoil(draw: random.Random, text: str) -> str:
    """One or two faults: something lost, doubled, swapped, put in, or cut off."""

    def at() -> int:
        return draw.randrange(len(text) + 1)

    for _ in range(draw.randint(1, 2)):
        start, tag = at(), draw.choice(TAGS)
        end = min(len(text), start + draw.randint(1, 8))
        text = draw.choice(
            (
                text[:start] + text[end:],
                text[:start] + draw.choice(SPLINTERS) + text[start:],
                text[:end] + text[start:],
                text[:start],
                text.replace(tag, ""),
                text.replace(tag, draw.choice(SPLINTERS)),
                text.replace("</answer>", f"{draw.randint(0, 9)} </answer>"),
            )
        )
    return text


def make_completions(count: int, seed: int = 0) -> list[Completion]:
    """`count` completions, as many of each kind; the same seed gives the same ones."""
    draw, rng = random.Random(f"completions {seed}"), np.random.default_rng(seed)
    examples = make_examples(TaskConfig(size=min(count, 1000), seed=seed))
    attacks = make_attacks(count // 6, "canary", seed)
    texts = make_language_texts(count // 6 + 1, seed)

    def passing(example: Example) -> str:
        gap = draw.choice((" ", "\n", " \t\n"))
        thought = write_thought(draw, rng).replace("</", "< /")
        return render_completion(thought, example.answer.replace(" ", gap)).replace("> <", f">{gap}<")

    def mixed(example: Example) -> Completion:
        kind = draw.randrange(4)
        if kind == 0:
            attack = draw.choice(attacks)
            return Completion("mixed", attack.text, attack.example)
        if kind == 1:
            text = draw.choice(texts)
            return Completion("mixed", text.text, text.example)
        splinters = draw.choices((*SPLINTERS, *ORNAMENTS, example.answer), k=draw.randint(0, 16))
        return Completion("mixed", "".join(splinters) if kind == 2 else None, example)

    completions = []
    for index in range(count):
        example = draw.choice(examples)
        kind = KINDS[index % 3]
        if kind == "mixed":
            completions.append(mixed(example))
        else:
            text = passing(example)
            completions.append(Completion(kind, text if kind == "passing" else spoil(draw, text), example))
    return completions


def tiny_tokenizer(documents: int = 4000) -> SentencePieceTokenizer:
    """As the tiny configurations train theirs, on fewer documents."""
    texts = [document.text for document in write_corpus(CorpusConfig(documents=documents))]
    with tempfile.TemporaryDirectory() as folder:
        return train_sentencepiece(texts, pathlib.Path(folder) / "tiny.model", 640, TAG_TOKENS, split_digits=False)


def train_byte_level(texts: Sequence[str]) -> HuggingFaceTokenizer:
    """A byte-level BPE of 2,000 tokens."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return HuggingFaceTokenizer(bpe, "<eos>")


def byte_level_tokenizer(texts: Sequence[str]) -> tuple[str, HuggingFaceTokenizer]:
    """(name, SmolLM2's tokenizer), or where it is not installed one of the same kind, trained on `texts`."""
    try:
        return "SmolLM2", gguf_tokenizer(locate_smollm2())
    except ImportError:
        return "byte-level BPE, trained here", train_byte_level(texts)


def encode(tokenizer: Tokenizer, completions: Sequence[Completion], seed: int = 0) -> list[list[int]]:
    """Ids of each completion."""
    rng = np.random.default_rng(seed)
    common = [*tokenizer.encode("<think> 9 </think> <answer> 我们 é </answer> so"), tokenizer.eos_id]

    @functools.cache
    def of_byte(byte: int) -> int:
        return next(i for i in reversed(range(tokenizer.vocab_size)) if tokenizer.token_bytes(i) == bytes([byte]))

    def of_part(part: bytes) -> list[int]:
        try:
            return tokenizer.encode(part.decode("utf-8"))
        except UnicodeDecodeError:
            return [of_byte(byte) for byte in part]

    def one(text: str | None) -> list[int]:
        if text is None:
            drawn = [*rng.integers(0, tokenizer.vocab_size + 3, size=20), *rng.choice(common, size=20)]
            return [int(i) for i in rng.permutation(drawn)[: rng.integers(1, 40)]]
        raw = text.encode("utf-8")
        cuts = int(rng.integers(1, 8)) if rng.random() < 0.5 else 0
        places = [0, *sorted(int(cut) for cut in rng.integers(0, len(raw) + 1, size=cuts)), len(raw)]
        return [i for start, end in itertools.pairwise(places) for i in of_part(raw[start:end])]

    return [one(completion.text) for completion in completions]


def decode(tokenizer: Tokenizer, id_lists: Sequence[Sequence[int]]) -> list[str]:
    """Texts of the completions."""
    return [tokenizer.decode(ids) for ids in id_lists]


def leaves_open(completion: str) -> bool:
    """Whether the thought has an opening of code or mathematics that is closed nowhere."""

    def rest(span: re.Match[str]) -> str:
        return "$" if span.group() == "$$" else " "  # an empty formula is the opening of a displayed one

    return re.search(r"[$`]|\\\(|\\\[", NO_LANGUAGE.sub(rest, thought_of(completion))) is not None


@dataclasses.dataclass(frozen=True)
class Rewards:
    """Of all completions, [N] float32 each."""

    format: np.ndarray
    match: np.ndarray
    language: np.ndarray


def batches(id_lists: Sequence[Sequence[int]], filler: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """(which, ids [BATCH, L], lengths [BATCH]): L is a power of two, so that few shapes are compiled."""
    for start in range(0, len(id_lists), BATCH):
        part = id_lists[start : start + BATCH]
        width = 1 << (max(map(len, part)) - 1).bit_length()
        tokens = np.full((BATCH, width), filler, np.int32)
        for row, ids in enumerate(part):
            tokens[row, : len(ids)] = ids
        lengths = np.array([*map(len, part), *[0] * (BATCH - len(part))], np.int32)
        yield slice(start, start + len(part)), tokens, lengths


class Stopwatch:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, function: Callable[..., Any], *arguments: Any) -> np.ndarray:
        """What the function returns, as an array."""
        began = time.monotonic()
        values = np.asarray(function(*arguments))
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began
        return values


def grade_on_device(
    tokenizer: Tokenizer, id_lists: Sequence[Sequence[int]], examples: Sequence[Example]
) -> tuple[Rewards, dict[str, float]]:
    """(rewards, seconds of each); the second call for the same completions compiles nothing."""
    size = tokenizer.vocab_size + 3  # as where the logits are padded
    byte_table = on_device.make_byte_table(tokenizer.token_bytes, size)
    language_table = token_language.make_language_table(tokenizer.token_bytes, size)
    found = np.zeros((3, len(id_lists)), np.float32)
    watch = Stopwatch()
    for part, tokens, lengths in batches(id_lists, filler=tokenizer.encode(">")[-1]):
        count = part.stop - part.start
        batch = [*examples[part], *[examples[0]] * (BATCH - count)]
        gold = on_device.make_gold([example.answer for example in batch], width=32)
        targets = token_language.target_ids([example.language for example in batch])
        formed = watch("format", on_device.format_reward, tokens, lengths, byte_table)
        right = watch("match", on_device.exact_match_reward, tokens, lengths, byte_table, gold)
        share = watch("language", token_language.language_reward, tokens, lengths, formed, targets, language_table)
        found[:, part] = np.stack([formed, right, share])[:, :count]
    return Rewards(*found), watch.seconds


def grade_on_host(
    tokenizer: Tokenizer, id_lists: Sequence[Sequence[int]], examples: Sequence[Example]
) -> tuple[Rewards, dict[str, float]]:
    """The same from text, which has to be decoded first; one thread."""
    watch = Stopwatch()
    texts = watch("decoding", lambda: np.array(decode(tokenizer, id_lists), object))

    def values(reward: Callable[[str, Example], Score]) -> list[float]:
        return [reward(text, example).value for text, example in zip(texts, examples, strict=True)]

    rewards = {"format": format_reward, "match": exact_match, "language": language_reward}
    return Rewards(*(watch(name, values, reward) for name, reward in rewards.items())), watch.seconds


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One tokenizer's rewards, on device and on the host."""

    name: str
    kinds: np.ndarray  # [N] of KINDS
    open: np.ndarray  # [N] bool, see `leaves_open`
    device: Rewards
    host: Rewards
    device_seconds: dict[str, float]
    host_seconds: dict[str, float]

    @property
    def unequal(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the completions whose format and whose exact match differ."""
        device, host = self.device, self.host
        return np.flatnonzero(device.format != host.format), np.flatnonzero(device.match != host.match)

    @property
    def language_gaps(self) -> np.ndarray:
        """[N] absolute differences of the language reward; what float32 rounds away is none."""
        gaps = np.abs(self.device.language - self.host.language)
        return np.where(gaps < 1e-6, 0.0, gaps)


def compare(name: str, tokenizer: Tokenizer, completions: Sequence[Completion]) -> Comparison:
    """Grades everything both ways."""
    id_lists, examples = encode(tokenizer, completions), [completion.example for completion in completions]
    grade_on_device(tokenizer, id_lists, examples)
    device, device_seconds = grade_on_device(tokenizer, id_lists, examples)
    host, host_seconds = grade_on_host(tokenizer, id_lists, examples)
    kinds = np.array([completion.kind for completion in completions])
    is_open = np.array([leaves_open(text) for text in decode(tokenizer, id_lists)])
    return Comparison(name, kinds, is_open, device, host, device_seconds, host_seconds)


def table(comparisons: Sequence[Comparison]) -> str:
    """Markdown: equality for each tokenizer and kind, then completions per second."""
    lines = [
        "| tokenizer, completions | number | well-formed | right | format differs | match differs "
        "| language: equal | mean gap | 99th percentile | largest |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in comparisons:
        parts = {kind: one.kinds == kind for kind in KINDS}
        parts |= {"all": one.kinds != "", "all that leave nothing open": ~one.open}
        for part, of in parts.items():
            gaps = one.language_gaps[of]
            format_differs, match_differs = (int(of[indices].sum()) for indices in one.unequal)
            lines.append(
                f"| {one.name}, {part} | {of.sum()} | {int(one.host.format[of].sum())} | "
                f"{int(one.host.match[of].sum())} | {format_differs} | {match_differs} | {int((gaps == 0).sum())} | "
                f"{gaps.mean():.5f} | {np.quantile(gaps, 0.99):.3f} | {gaps.max():.3f} |"
            )
    lines += ["", "| tokenizer | where | format/s | match/s | language/s | decoding/s |", "|---|---|---|---|---|---|"]
    for one in comparisons:
        for where, seconds in (("device", one.device_seconds), ("host", one.host_seconds)):
            rates = (seconds.get(part) for part in ("format", "match", "language", "decoding"))
            shown = ("-" if rate is None else f"{len(one.kinds) / rate:,.0f}" for rate in rates)
            lines.append(f"| {one.name} | {where} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table, and what differs; ends with status 1 where format or match do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=0, help="so many of the completions whose language differs most")
    arguments = parser.parse_args()
    if arguments.completions < len(KINDS):
        raise ValueError(f"--completions {arguments.completions}: at least {len(KINDS)}")
    completions = make_completions(arguments.completions, arguments.seed)
    texts = [completion.text for completion in completions if completion.text is not None]
    chosen: list[tuple[str, Tokenizer]] = [("tiny", tiny_tokenizer()), byte_level_tokenizer(texts)]
    comparisons = [compare(name, tokenizer, completions) for name, tokenizer in chosen]
    for one in comparisons:
        for part, indices in zip(("format", "match"), one.unequal, strict=True):
            for index in indices:
                print(f"{one.name}: {part} differs: {completions[index].text!r} {completions[index].example.answer!r}")
        for index in np.argsort(-one.language_gaps)[: arguments.show]:
            gap, text = one.language_gaps[index], completions[index].text
            print(f"{one.name}: language differs by {gap:.3f}: {'random ids' if text is None else repr(text)}")
    print(table(comparisons))
    if any(indices.size for one in comparisons for indices in one.unequal):
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main)
