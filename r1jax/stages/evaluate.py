"""Evaluation of a policy: k samples of every question, pass@1 with its standard error, cons@k (R1v1 section 3).

The paper samples at temperature 0.6 and top-p 0.95 and averages over k answers, since greedy decoding repeats itself.
The questions go in batches; each graded batch is stored, so a stopped evaluation goes on where it was and nothing is
graded twice. Under thinking budgets (test-time scaling) the same answers are cut and gone on with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from r1jax.data.errors import DataError
from r1jax.data.samples import Sample, read_samples
from r1jax.data.sources import SourceConfig
from r1jax.data.tokenizer import Tokenizer
from r1jax.evaluation.benchmarks import BenchmarkConfig
from r1jax.evaluation.budget_curve import budget_curve
from r1jax.evaluation.budgets import Budgeted, BudgetedAnswers, budget_figures, check_closing, without_budget
from r1jax.evaluation.contamination import Document, contamination, documents_of
from r1jax.evaluation.estimators import summarize
from r1jax.evaluation.evaluator import answer_examples, evaluation_of, is_right
from r1jax.evaluation.plots import png
from r1jax.metrics import MetricWriter, Progress
from r1jax.model.config import ModelConfig
from r1jax.model.flops import forward_flops, sampling_flops
from r1jax.processes import by_writer
from r1jax.rewards.answer import ANSWER_OPEN
from r1jax.rewards.combine import RewardConfig
from r1jax.rewards.grading import Grading
from r1jax.rollout import (
    Completer,
    DecodingConfig,
    GradedRollout,
    PromptConfig,
    encode_prompts,
    sample_row,
)
from r1jax.settings import ConfigError
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages.checks import Planned, check_asking, is_planned, known_policy, mesh_sizes, source_of
from r1jax.stages.graders import check_rewards, stage_grading
from r1jax.stages.interruption import Interruption
from r1jax.stages.policy import Policy, PolicySource, describe_source, load_policy
from r1jax.types import Example
from r1jax.workdir import write_atomically

SAMPLES = 16  # k where neither the config nor a benchmark says it
REASONS = 5  # most frequent ones that a summary tells
BUDGET_KEYS = 2**30  # keys of budgets are folded in from here on, far above the numbers of questions


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation."""

    init: PolicySource = dataclasses.field(default_factory=lambda: PolicySource("stage", "../pretrain"))
    source: SourceConfig = dataclasses.field(default_factory=lambda: SourceConfig(split="evaluation", size=256))
    # Instead of a source: the benchmark's questions, suffix, comparison and pattern of answers.
    benchmark: BenchmarkConfig = dataclasses.field(default_factory=BenchmarkConfig)
    samples: int = 0  # k; 0: as many as the benchmark asks for, 16 without one
    seed: int = 0
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    decoding: DecodingConfig = dataclasses.field(
        default_factory=lambda: DecodingConfig(temperature=0.6, top_p=0.95)  # the paper's
    )
    rewards: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    # Thinking budgets in response tokens: the same answers once more, their chains cut there, `budget_closing` put
    # behind and at most `budget_answer_tokens` drawn from there on.
    thinking_budgets: tuple[int, ...] = ()
    budget_closing: str = " </think> <answer>"
    budget_answer_tokens: int = 32
    # What the policy was trained on: files of samples, relative to the workdir, and sources.
    contamination: tuple[str | SourceConfig, ...] = ()

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ValueError(f"samples: {self.samples} answers per question; at least 1, or 0 for the default")
        if self.thinking_budgets:
            self._check_budgets()
        if self.benchmark.name:
            self._check_benchmark()
        if self.thinking_budgets:
            self._check_closing_form()

    def _check_budgets(self) -> None:
        budgets, limit = self.thinking_budgets, self.decoding.max_new_tokens
        if list(budgets) != sorted(set(budgets)) or budgets[0] < 1:
            raise ValueError(f"thinking_budgets: {budgets} must be ascending, and at least 1")
        if budgets[-1] > limit:
            raise ValueError(f"thinking_budgets: no chain has {budgets[-1]} tokens: decoding.max_new_tokens = {limit}")
        try:
            check_closing(self.budget_closing)
        except ValueError as error:
            raise ValueError(f"budget_closing: {error}") from error
        if self.budget_answer_tokens < 1:
            raise ValueError(f"budget_answer_tokens: {self.budget_answer_tokens}; at least 1")
        if self.rewards.on_device:
            raise ValueError("thinking_budgets: rewards.on_device grades no longer responses than max_new_tokens")

    def _check_closing_form(self) -> None:
        """That no answer is closed in a form in which nobody looks for it: it would count as wrong at every budget."""
        patterns = {mix.pattern for mix in self.asked().rewards.mixes}
        without = sorted(patterns & {"boxed", "reply"})
        if ANSWER_OPEN in self.budget_closing and without:
            raise ValueError(
                f"budget_closing: {self.budget_closing!r} begins an answer in tags, which the pattern {without[0]!r} "
                "does not read; ' </think>' and the beginning of an answer in its own form are allowed"
            )

    def _check_benchmark(self) -> None:
        """That nothing which the benchmark decides is given beside it."""
        protocol = self.benchmark.protocol()
        if self.source != SourceConfig(split="evaluation", size=256):
            raise ValueError("source: is given beside benchmark; only one of them can hold")
        if self.prompt.suffix:
            raise ValueError(f"prompt.suffix: {self.prompt.suffix!r}; beside a benchmark it is benchmark.suffix")
        for field in ("comparison", "pattern"):
            own, wanted, usual = (getattr(of, field) for of in (self.rewards, protocol, RewardConfig()))
            if own not in (wanted, usual):
                raise ValueError(f"rewards.{field}: {own!r}; beside a benchmark it is benchmark.{field}")
        self.asked()  # says what of it does not go together

    def asked(self) -> Asked:
        """What is asked, with what a benchmark decides filled in."""
        if not self.benchmark.name:
            return Asked(self.samples or SAMPLES, self.prompt, self.rewards)
        protocol = self.benchmark.protocol()
        return Asked(
            self.samples or protocol.samples,
            dataclasses.replace(self.prompt, suffix=protocol.suffix),
            dataclasses.replace(self.rewards, comparison=protocol.comparison, pattern=protocol.pattern),
        )


@dataclasses.dataclass(frozen=True)
class Asked:
    """How often and how questions are asked, and how answers are read."""

    samples: int
    prompt: PromptConfig
    rewards: RewardConfig


def check(config: EvaluateConfig, workdir: pathlib.Path, planned: Planned) -> None:
    """Everything that can be known to be wrong before the stage starts."""
    model, tokenizer = known_policy(config.init, workdir, planned)
    examples = examples_of(config)
    _check_fit(config, make_mesh(mesh_sizes(config.mesh, model)), model, tokenizer, examples)
    for index, source in enumerate(config.contamination):
        if isinstance(source, SourceConfig):
            source_of(f"contamination[{index}]", source)
        elif not is_planned(workdir / source, planned):
            _samples(index, workdir / source)
    # Runs programs and asks judges: once, not in `run`.
    check_rewards(config.asked().rewards, {"source": examples}, workdir, planned)


def examples_of(config: EvaluateConfig) -> Sequence[Example]:
    """The questions, without what the prompt adds to them."""
    if not config.benchmark.name:
        return source_of("source", config.source)
    try:
        sources = config.benchmark.sources()
        return config.benchmark.chosen([e for source in sources for e in source_of("benchmark", source)])
    except DataError as error:
        said = str(error).removeprefix("benchmark: ")
        raise DataError(f"benchmark: {said}") from error


def _check_fit(
    config: EvaluateConfig,
    mesh: Mesh,
    model: ModelConfig,
    tokenizer: Tokenizer | None,
    examples: Sequence[Example],
) -> None:
    asked = config.asked()
    field = "benchmark" if config.benchmark.name else "source"
    check_asking(asked.prompt, config.decoding, mesh, model, tokenizer, {field: examples}, asked.samples)
    if not config.thinking_budgets:
        return
    closing = 1 if tokenizer is None else len(tokenizer.encode(config.budget_closing))
    longest = config.prompt.width + config.thinking_budgets[-1] + closing + config.budget_answer_tokens
    if longest > model.max_positions:
        raise ConfigError(
            f"prompt.width + the largest of thinking_budgets + budget_closing + budget_answer_tokens = {longest} "
            f"tokens exceed the model's context, max_positions = {model.max_positions}"
        )


def trained_on(config: EvaluateConfig, workdir: pathlib.Path) -> dict[str, Iterable[Document]]:
    """What the policy was trained on, by the names of files and sources."""
    found: dict[str, Iterable[Document]] = {}
    for index, source in enumerate(config.contamination):
        field = f"contamination[{index}]"
        if isinstance(source, SourceConfig):
            found[f"{field}: {source.kind} {source.task or source.path}".rstrip()] = documents_of(
                source_of(field, source)
            )
            continue
        found[f"{field}: {source}"] = documents_of(_samples(index, workdir / source))
    return found


def _samples(index: int, path: pathlib.Path) -> list[Sample]:
    try:
        return read_samples(path)
    except DataError as error:
        raise DataError(f"contamination[{index}]: {error}") from error


def run(config: EvaluateConfig, workdir: pathlib.Path) -> None:
    """Evaluates the policy of `config.init`; leaves `samples.jsonl` (every answer) and `summary.json`."""
    examples = examples_of(config)
    model, tokenizer = describe_source(config.init, workdir)
    mesh = make_mesh(mesh_sizes(config.mesh, model))
    _check_fit(config, mesh, model, tokenizer, examples)
    summary: dict[str, Any] = {"stage": "evaluate"}
    if config.contamination:
        summary["contamination"] = contamination(examples, trained_on(config, workdir))
    policy = load_policy(config.init, workdir, mesh)
    prompt = config.asked().prompt
    prompts = encode_prompts(examples, policy.tokenizer, prompt)
    clock = _Clock(workdir / "seconds.json")
    budgets: dict[int | None, list[Budgeted]] = {}
    with (
        Interruption() as interruption,
        stage_grading(config.asked().rewards, workdir, mesh, policy, config.decoding) as grading,
    ):
        parts = _answers(config, workdir, mesh, policy, examples, grading, clock, interruption)
        if config.thinking_budgets:
            budgets = _budgeted(config, workdir, mesh, policy, parts, grading, clock, interruption)
    with MetricWriter(workdir, tensorboard=False) as writer:
        writer.rewind(None)
        for part in parts:
            writer.write_samples(0, (sample_row(part, i, 0, prompt) for i in range(len(part.texts))))
    summary |= _figures(config, parts, budgets)
    if budgets:
        figure = budget_curve(summary["budgets"])
        if figure is not None:
            by_writer(lambda: (workdir / "budgets.png").write_bytes(png(figure)))()
    summary |= {
        "prompts_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "cost": _cost(model, parts, budgets),
    }
    summary["seconds"] = summary["cost"]["seconds"] = clock.seconds
    write_atomically(workdir / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    interruption.pass_on()


def _answers(
    config: EvaluateConfig,
    workdir: pathlib.Path,
    mesh: Mesh,
    policy: Policy,
    examples: Sequence[Example],
    grading: Grading,
    clock: _Clock,
    interruption: Interruption,
) -> list[GradedRollout]:
    """Graded answers to all questions, some questions together."""
    asked = config.asked()
    completer = Completer(policy.model, mesh, policy.tokenizer, asked.prompt, config.decoding, group_size=asked.samples)
    per_batch = max(1, config.decoding.batch_size // asked.samples)
    key = jax.random.key(config.seed)
    parts: list[GradedRollout] = []
    right: list[bool] = []
    with Progress("evaluate", len(examples)) as progress:
        for start in range(0, len(examples), per_batch):
            path = workdir / "rollouts" / f"{start:06d}.npz"
            batch = examples[start : start + per_batch]
            own_key = jax.random.fold_in(key, start)
            parts.append(answer_examples(completer, policy.params, batch, asked.samples, own_key, grading, path))
            clock.save()
            done = start + len(batch)
            accuracies = [scores.parts["accuracy"] for scores in parts[-1].scores if "accuracy" in scores.parts]
            right += [is_right(score) for score in accuracies if score.graded]
            progress.update(done, **({"pass_at_1": sum(right) / len(right)} if right else {}))
            if done < len(examples) and interruption.requested():
                interruption.stop(f"question {done} of {len(examples)}")
    return parts


def _budgeted(
    config: EvaluateConfig,
    workdir: pathlib.Path,
    mesh: Mesh,
    policy: Policy,
    parts: Sequence[GradedRollout],
    grading: Grading,
    clock: _Clock,
    interruption: Interruption,
) -> dict[int | None, list[Budgeted]]:
    """Budget -> the answers under it, batch by batch; at last None -> the answers as they were sampled."""
    maker = BudgetedAnswers(
        config.budget_closing,
        config.budget_answer_tokens,
        config.asked().prompt,
        config.decoding,
        policy.model,
        mesh,
        policy.tokenizer,
    )
    thoughts = [maker.thoughts(part) for part in parts]
    found: dict[int | None, list[Budgeted]] = {}
    count = len(config.thinking_budgets)
    with Progress("thinking budgets", count * len(parts)) as progress:
        for number, budget in enumerate(config.thinking_budgets):
            found[budget] = []
            key = jax.random.fold_in(jax.random.key(config.seed), BUDGET_KEYS + budget)
            for index, (part, thought) in enumerate(zip(parts, thoughts, strict=True)):
                path = workdir / "budgets" / f"{budget:06d}_{index:06d}.npz"
                own_key = jax.random.fold_in(key, index)
                found[budget].append(maker.answer(policy.params, part, thought, budget, own_key, grading, path))
                clock.save()
                progress.update(number * len(parts) + index + 1)
                if (number, index) != (count - 1, len(parts) - 1) and interruption.requested():
                    interruption.stop(f"budget {budget}, batch {index + 1} of {len(parts)}")
    return found | {None: [without_budget(*of) for of in zip(parts, thoughts, strict=True)]}


def _figures(
    config: EvaluateConfig, parts: Sequence[GradedRollout], budgets: Mapping[int | None, Sequence[Budgeted]]
) -> dict[str, Any]:
    """All that was measured, and how it was asked."""
    asked = config.asked()
    reasons = Counter(
        f"{name}: {score.reason}"
        for part in parts
        for scores in part.scores
        for name, score in scores.parts.items()
        if not score.graded
    )
    figures = summarize(evaluation_of(parts, asked.rewards), seed=config.seed)
    if budgets:
        figures["budgets"] = [
            budget_figures(answers, budget, asked.rewards, config.seed) for budget, answers in budgets.items()
        ]
    if config.benchmark.name:
        protocol = dataclasses.asdict(config.benchmark.protocol())
        figures["benchmark"] = {"name": config.benchmark.name, "path": config.benchmark.path, **protocol}
    return figures | {
        "ungradable_reasons": dict(reasons.most_common(REASONS)),
        "temperature": config.decoding.temperature,
        "top_p": config.decoding.top_p,
        "decoding": dataclasses.asdict(config.decoding),
        "template": asked.prompt.template,
        "suffix": asked.prompt.suffix,
        "few_shot": bool(asked.prompt.few_shot),
        "comparison": asked.rewards.comparison,
        "pattern": asked.rewards.pattern,
    }


def _cost(
    model: ModelConfig, parts: Sequence[GradedRollout], budgets: Mapping[int | None, Sequence[Budgeted]]
) -> dict[str, float]:
    """Tokens and operations of all sampling: prompts are read once for all answers, a cut chain once for its own."""
    tokens, flops = 0, 0.0
    for part in parts:
        lengths, prompts = part.rollout.response_lengths, part.rollout.prompt_lengths
        read = prompts[:: part.samples]
        tokens += int(lengths.sum())
        flops += forward_flops(model, int(read.sum()), float(read.mean()))
        flops += sampling_flops(model, int(lengths.sum()), float(lengths.mean()), float(prompts.mean()))
    for answers in budgets.values():
        for answer in answers:
            rollout, cut = answer.graded.rollout, answer.cut
            if not cut.any():
                continue
            drawn = answer.drawn[cut]
            read = rollout.prompt_lengths[cut] + rollout.response_lengths[cut] - drawn
            tokens += int(drawn.sum())
            flops += forward_flops(model, int(read.sum()), float(read.mean()))
            flops += sampling_flops(model, int(drawn.sum()), float(drawn.mean()), float(read.mean()))
    return {"tokens_trained": 0, "tokens_sampled": tokens, "flops": flops}


class _Clock:
    """Seconds that an evaluation took, those of processes that were stopped included."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._before = float(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else 0.0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Until now."""
        return self._before + time.monotonic() - self._began

    def save(self) -> None:
        """Called when a part is stored: what comes after it and is lost will be done again."""
        write_atomically(self._path, json.dumps(self.seconds))
