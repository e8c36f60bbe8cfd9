"""Evaluation of a policy: k samples of every question, pass@1 with its standard error, cons@k (R1v1 section 3).

The paper samples at temperature 0.6 and top-p 0.95 and averages over k answers, since greedy decoding repeats itself.
The questions go in batches; each graded batch is stored, so a stopped evaluation goes on where it was and nothing is
graded twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import time
from collections import Counter
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from r1jax.data.sources import SourceConfig
from r1jax.data.tokenizer import Tokenizer
from r1jax.evaluation.estimators import summarize
from r1jax.evaluation.evaluator import answer_examples, evaluation_of, is_right
from r1jax.metrics import MetricWriter, Progress
from r1jax.model.config import ModelConfig
from r1jax.rewards.combine import RewardConfig
from r1jax.rollout import (
    Completer,
    DecodingConfig,
    GradedRollout,
    PromptConfig,
    encode_prompts,
    sample_row,
)
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages.checks import Planned, check_asking, known_policy, source_of
from r1jax.stages.graders import check_comparable, check_rewards, stage_grading
from r1jax.stages.interruption import Interruption
from r1jax.stages.policy import PolicySource, describe_source, load_policy
from r1jax.types import Example
from r1jax.workdir import write_atomically

REASONS = 5  # most frequent ones that a summary tells


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation."""

    init: PolicySource = dataclasses.field(default_factory=lambda: PolicySource("stage", "../pretrain"))
    source: SourceConfig = dataclasses.field(default_factory=lambda: SourceConfig(split="evaluation", size=256))
    samples: int = 16  # k
    seed: int = 0
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    decoding: DecodingConfig = dataclasses.field(
        default_factory=lambda: DecodingConfig(temperature=0.6, top_p=0.95)  # the paper's
    )
    rewards: RewardConfig = dataclasses.field(default_factory=RewardConfig)

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples: {self.samples} answers per question; at least 1")


def check(config: EvaluateConfig, workdir: pathlib.Path, planned: Planned) -> None:
    """Everything that can be known to be wrong before the stage starts."""
    model, tokenizer = known_policy(config.init, workdir, planned)
    examples = source_of("source", config.source)
    _check_fit(config, make_mesh(config.mesh), model, tokenizer, examples)
    check_rewards(config.rewards, {"source": examples}, workdir)  # runs programs and asks judges: once, not in `run`


def _check_fit(
    config: EvaluateConfig,
    mesh: Mesh,
    model: ModelConfig,
    tokenizer: Tokenizer | None,
    examples: Sequence[Example],
) -> None:
    check_comparable("source", config.rewards, examples)
    check_asking(config.prompt, config.decoding, mesh, model, tokenizer, {"source": examples}, config.samples)


def run(config: EvaluateConfig, workdir: pathlib.Path) -> None:
    """Evaluates the policy of `config.init`; leaves `samples.jsonl` (every answer) and `summary.json`."""
    mesh = make_mesh(config.mesh)
    examples = source_of("source", config.source)
    model, tokenizer = describe_source(config.init, workdir)
    _check_fit(config, mesh, model, tokenizer, examples)
    policy = load_policy(config.init, workdir, mesh)
    prompts = encode_prompts(examples, policy.tokenizer, config.prompt)
    completer = Completer(
        policy.model, mesh, policy.tokenizer, config.prompt, config.decoding, group_size=config.samples
    )
    per_batch = max(1, config.decoding.batch_size // config.samples)
    key = jax.random.key(config.seed)
    began = time.monotonic()
    parts: list[GradedRollout] = []
    right: list[bool] = []
    with (
        Interruption() as interruption,
        Progress("evaluate", len(examples)) as progress,
        stage_grading(config.rewards, workdir, mesh, policy, config.decoding) as grading,
    ):
        for start in range(0, len(examples), per_batch):
            path = workdir / "rollouts" / f"{start:06d}.npz"
            batch = examples[start : start + per_batch]
            own_key = jax.random.fold_in(key, start)
            parts.append(answer_examples(completer, policy.params, batch, config.samples, own_key, grading, path))
            done = start + len(batch)
            accuracies = [scores.parts["accuracy"] for scores in parts[-1].scores]
            right += [is_right(score) for score in accuracies if score.graded]
            progress.update(done, **({"pass_at_1": sum(right) / len(right)} if right else {}))
            if interruption.requested and done < len(examples):
                interruption.stop(f"question {done} of {len(examples)}")
    with MetricWriter(workdir, tensorboard=False) as writer:
        writer.rewind(None)
        for part in parts:
            writer.write_samples(0, (sample_row(part, i, 0, config.prompt) for i in range(len(part.texts))))
    decoding = dataclasses.asdict(config.decoding)
    reasons = Counter(
        f"{name}: {score.reason}"
        for part in parts
        for scores in part.scores
        for name, score in scores.parts.items()
        if not score.graded
    )
    summary = {
        "stage": "evaluate",
        **summarize(evaluation_of(parts), seed=config.seed),
        "ungradable_reasons": dict(reasons.most_common(REASONS)),
        "temperature": config.decoding.temperature,
        "top_p": config.decoding.top_p,
        "decoding": decoding,
        "template": config.prompt.template,
        "few_shot": bool(config.prompt.few_shot),
        "prompts_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "seconds": time.monotonic() - began,
    }
    write_atomically(workdir / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    interruption.pass_on()
