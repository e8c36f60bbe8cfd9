"""Makes what reward models learn from: pairs of responses with a preference, and responses labelled safe or unsafe.

Prompts of the domain "helpful" become pairs as in R1 (Nature version, methods): a judge compares two responses four
times in random order, the scores are averaged, and pairs with a difference above 1 and comparable lengths are kept.
What "comparable" means is not in the paper; here the longer final summary has at most `max_ratio` times the tokens of
the shorter one. Prompts of the domain "harmless" become labels of whole responses. The judge is a model, or the rule of
the made-up world with stated errors.

Responses first, then judgements, both stored batch by batch: a stopped stage goes on where it was, and nothing is
sampled or asked twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from r1jax.data.errors import DataError
from r1jax.data.sources import SourceConfig
from r1jax.data.tokenizer import Tokenizer
from r1jax.metrics import Progress
from r1jax.model.config import ModelConfig
from r1jax.model.flops import forward_flops, sampling_flops
from r1jax.processes import from_writer
from r1jax.rewards.instructions import instruction_score
from r1jax.rewards.judges.judge import JudgeConfig, PairwiseJudge
from r1jax.rewards.judges.rule_judge import RuleJudge, RuleLabeller
from r1jax.rewards.judges.safety_judge import SafetyJudge
from r1jax.rollout import Completer, DecodingConfig, PromptConfig
from r1jax.settings import ConfigError
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages.checks import Planned, check_asking, known_policy, mesh_sizes, source_of
from r1jax.stages.graders import check_judge, open_shared_chat_model
from r1jax.stages.interruption import Interruption
from r1jax.stages.policy import PolicySource, describe_source, load_policy
from r1jax.stages.preference_data import (
    HARMLESS,
    HELPFUL,
    Answered,
    Judges,
    ModelJudges,
    PairRules,
    RuleJudges,
    card_of,
    empty_pairs,
    judge_pairs,
    judge_safety,
    markdown,
)
from r1jax.types import Example
from r1jax.workdir import write_atomically


@dataclasses.dataclass(frozen=True)
class RuleConfig:
    """The rule of the made-up world as a judge, and its errors (`rewards.judges.rule_judge`)."""

    noise: float = 0.5  # standard deviation of a vote, in grades; the five grades are one apart
    length_bias: float = 0.0  # what a response gains in a vote by being the only one with words
    place_bias: float = 0.0  # what a response gains in a vote by being shown first
    flip: float = 0.05  # share of safety labels that are wrong

    def __post_init__(self) -> None:
        """Raises ValueError naming the field that is out of range."""
        RuleJudge(self.noise, length_bias=self.length_bias, place_bias=self.place_bias)
        RuleLabeller(self.flip)


@dataclasses.dataclass(frozen=True)
class PreferencesConfig:
    """Pairs and labels from one policy; `times` and `min_gap` are the paper's."""

    init: PolicySource = dataclasses.field(default_factory=lambda: PolicySource("stage", "../dev3"))
    source: SourceConfig = dataclasses.field(default_factory=lambda: SourceConfig("world", size=256))
    samples: int = 4  # responses to each prompt
    pairs_per_prompt: int = 4  # pairs of one prompt that are judged, at most
    max_ratio: float = 1.5  # longer over shorter final summary of a pair, in tokens
    times: int = 4  # votes on each pair, half of them in either order
    min_gap: float = 1.0  # pairs whose mean grade (-2..2) is farther from 0 than this are kept
    # Kept pairs, as a share, of which a copy is added with the empty response as the rejected one. Not in the paper: it
    # keeps a policy from being rewarded for no summary, of which the reward model would know nothing.
    empty_share: float = 0.0
    judge: JudgeConfig | None = None  # the model that is asked; None: `rule`
    rule: RuleConfig = dataclasses.field(default_factory=RuleConfig)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    seed: int = 0
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        for name, least in (("samples", 2), ("pairs_per_prompt", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)}; at least {least}")
        if self.times < 2 or self.times % 2:
            raise ValueError(f"times: {self.times}; an even number, at least 2, so that both orders come equally often")
        if not 1 <= self.max_ratio < math.inf:
            raise ValueError(f"max_ratio: {self.max_ratio}; 1 or more")
        if not 0 <= self.min_gap < 2:
            raise ValueError(f"min_gap: {self.min_gap}; 0 to below 2, the largest grade")
        if not 0 <= self.empty_share <= 1:
            raise ValueError(f"empty_share: {self.empty_share}; 0 to 1")
        if self.judge is not None and self.rule != RuleConfig():
            raise ValueError("rule: has no use beside judge; only one of them decides")


def check(config: PreferencesConfig, workdir: pathlib.Path, planned: Planned) -> None:
    """Everything that can be known to be wrong before the stage starts; a judge behind an endpoint is asked once."""
    model, tokenizer = known_policy(config.init, workdir, planned)
    examples = source_of("source", config.source)
    _check_fit(config, make_mesh(mesh_sizes(config.mesh, model)), model, tokenizer, examples)
    if config.judge is not None:
        try:
            check_judge(config.judge, workdir, planned)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"judge: {str(error).removeprefix('init.')}") from error


def _check_fit(
    config: PreferencesConfig, mesh: Mesh, model: ModelConfig, tokenizer: Tokenizer | None, examples: Sequence[Example]
) -> None:
    for example in examples:
        if example.domain not in (HELPFUL, HARMLESS):
            raise DataError(
                f"source: example {example.id!r} is of domain {example.domain!r}; pairs are made of {HELPFUL!r} and "
                f"labels of {HARMLESS!r}"
            )
        if config.judge is None and not (score := instruction_score("", example)).graded:
            raise DataError(f"source: example {example.id!r} cannot be judged by the rule: {score.reason}")
    check_asking(config.prompt, config.decoding, mesh, model, tokenizer, {"source": examples}, config.samples)


def run(config: PreferencesConfig, workdir: pathlib.Path) -> None:
    """Leaves `pairs.jsonl`, `labels.jsonl` (what there are of them), the card, and `summary.json`."""
    examples = source_of("source", config.source)
    model, tokenizer = describe_source(config.init, workdir)
    mesh = make_mesh(mesh_sizes(config.mesh, model))
    _check_fit(config, mesh, model, tokenizer, examples)
    with Interruption() as interruption:
        answered, sampling = respond(config, workdir, mesh, examples, interruption)
        records, judging = judge_all(config, workdir, mesh, answered, tokenizer, interruption)
    added = empty_pairs(records[0], config.empty_share, config.seed)
    card = {
        "settings": settings_of(config),
        "prompts": prompts_of(examples),
        **card_of(*records),
        "empty_pairs": len(added),
    }
    for name, found, more in zip(("pairs", "labels"), records, (added, []), strict=True):
        rows = [*(record["row"] for record in found if "row" in record), *more]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(workdir / f"{name}.jsonl", text)
    write_atomically(workdir / "preferences_card.json", json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    write_atomically(workdir / "preferences_card.md", markdown(card))
    summary = {
        "stage": "preferences",
        "prompts": card["prompts"],
        "pairs": card["pairs"]["total"],
        "empty_pairs": len(added),
        "labels": card["labels"]["total"],
        "cost": cost_of(model, answered, sampling + judging),
    }
    write_atomically(workdir / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    interruption.pass_on()


def respond(
    config: PreferencesConfig, workdir: pathlib.Path, mesh: Mesh, examples: Sequence[Example], stop: Interruption
) -> tuple[list[Answered], float]:
    """The responses to all prompts, and the seconds that sampling took. The policy is loaded if any are missing."""
    starts, per_batch = _batches(config, len(examples))
    paths = [workdir / "responses" / f"{start:06d}.json" for start in starts]
    there = from_writer(lambda: [path.exists() for path in paths])
    if not all(there):
        policy = load_policy(config.init, workdir, mesh)
        completer = Completer(
            policy.model, mesh, policy.tokenizer, config.prompt, config.decoding, group_size=config.samples
        )
        key = jax.random.key(config.seed)
        with Progress("responses", len(examples)) as progress:
            for start, path, done in zip(starts, paths, there, strict=True):
                batch = examples[start : start + per_batch]
                if not done:
                    began = time.monotonic()
                    own_key = jax.random.fold_in(key, start)
                    rollout, texts = completer.complete(policy.params, batch, config.samples, own_key)
                    part = {
                        "texts": texts,
                        "lengths": rollout.response_lengths.tolist(),
                        "prompt_lengths": rollout.prompt_lengths.tolist(),
                        "seconds": time.monotonic() - began,
                    }
                    _store(path, part)
                progress.update(start + len(batch))
                if stop.requested():
                    stop.stop(f"prompt {start + len(batch)} of {len(examples)}, answered")
    parts = from_writer(lambda: [json.loads(path.read_text(encoding="utf-8")) for path in paths])
    every = range(0, len(examples) * config.samples, config.samples)
    flat = {name: [x for part in parts for x in part[name]] for name in ("texts", "lengths", "prompt_lengths")}
    answered = [
        Answered(
            example,
            tuple(flat["texts"][i : i + config.samples]),
            tuple(flat["lengths"][i : i + config.samples]),
            flat["prompt_lengths"][i],
        )
        for example, i in zip(examples, every, strict=True)
    ]
    return answered, sum(part["seconds"] for part in parts)


def judge_all(
    config: PreferencesConfig,
    workdir: pathlib.Path,
    mesh: Mesh,
    answered: Sequence[Answered],
    tokenizer: Tokenizer,
    stop: Interruption,
) -> tuple[tuple[list[dict[str, Any]], list[dict[str, Any]]], float]:
    """The records of all pairs and of all labels (`preference_data`), and the seconds that judging took."""
    starts, per_batch = _batches(config, len(answered))
    paths = [workdir / "judged" / f"{start:06d}.json" for start in starts]
    rules = PairRules(config.pairs_per_prompt, config.max_ratio, config.min_gap, config.seed)
    there = from_writer(lambda: [path.exists() for path in paths])
    if not all(there):
        with open_judges(config, workdir, mesh) as judges, Progress("judgements", len(answered)) as progress:
            for start, path, done in zip(starts, paths, there, strict=True):
                batch = answered[start : start + per_batch]
                if not done:
                    began = time.monotonic()
                    helpful = [one for one in batch if one.example.domain == HELPFUL]
                    harmless = [one for one in batch if one.example.domain == HARMLESS]
                    pairs = judge_pairs(helpful, lambda text: len(tokenizer.encode(text)), rules, judges)
                    labels = judge_safety(harmless, judges)
                    _store(path, {"pairs": pairs, "labels": labels, "seconds": time.monotonic() - began})
                progress.update(start + len(batch))
                if start + len(batch) < len(answered) and stop.requested():
                    stop.stop(f"prompt {start + len(batch)} of {len(answered)}, judged")
    parts = from_writer(lambda: [json.loads(path.read_text(encoding="utf-8")) for path in paths])
    pairs, labels = ([record for part in parts for record in part[name]] for name in ("pairs", "labels"))
    return (pairs, labels), sum(part["seconds"] for part in parts)


@contextlib.contextmanager
def open_judges(config: PreferencesConfig, workdir: pathlib.Path, mesh: Mesh) -> Iterator[Judges]:
    """Who judges, while it is needed."""
    if config.judge is None:
        rule = config.rule
        judge = RuleJudge(rule.noise, config.times, config.seed, rule.length_bias, rule.place_bias)
        yield RuleJudges(judge, RuleLabeller(rule.flip, config.seed))
        return
    with open_shared_chat_model(config.judge, workdir, mesh) as model:
        yield ModelJudges(PairwiseJudge(model, config.times, config.seed), SafetyJudge(model, config.seed))


def _batches(config: PreferencesConfig, count: int) -> tuple[range, int]:
    """Where each batch of prompts begins, and how many prompts it has."""
    per_batch = max(1, config.decoding.batch_size // config.samples)
    return range(0, count, per_batch), per_batch


def _store(path: pathlib.Path, part: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(part, ensure_ascii=False) + "\n")


def settings_of(config: PreferencesConfig) -> dict[str, Any]:
    """What the card says of how its numbers came about."""
    if config.judge is None:
        judge = f"the rule of the made-up world, {dataclasses.asdict(config.rule)}"
    else:
        judge = f"{config.judge.kind} {config.judge.model or config.judge.path}"
    names = ("samples", "pairs_per_prompt", "max_ratio", "times", "min_gap", "empty_share")
    return {"judge": judge, **{name: getattr(config, name) for name in names}}


def prompts_of(examples: Sequence[Example]) -> dict[str, int]:
    """Number of prompts by domain."""
    return {domain: sum(example.domain == domain for example in examples) for domain in (HELPFUL, HARMLESS)}


def cost_of(model: ModelConfig, answered: Sequence[Answered], seconds: float) -> dict[str, float]:
    """What the stage took; the operations are the policy's, of what a judge computes nothing is known here."""
    lengths = np.array([length for one in answered for length in one.lengths], np.float64)
    prompts = np.array([one.prompt_length for one in answered], np.float64)
    tokens = int(lengths.sum())
    mean_length = float(np.sum(lengths**2) / tokens)  # of a token's response: attention is quadratic
    flops = sampling_flops(model, tokens, mean_length, float(prompts.mean()))
    flops += forward_flops(model, float(prompts.sum()), float(np.sum(prompts**2) / prompts.sum()))
    return {"tokens_trained": 0, "tokens_sampled": tokens, "seconds": seconds, "flops": flops}
