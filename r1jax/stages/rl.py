"""Reinforcement learning with verifiable rewards: R1-Zero (R1v1 section 2.2) and every later RL phase, by config.

The paper: a group of answers to each question is sampled from the current policy, graded by rules, and the policy is
moved by GRPO; a rollout is cut into mini-batches, each one update; every so many updates the reference model becomes
the policy. Here: the same, in one program. A rollout is stored as soon as it is graded, so no score is ever computed
twice. Left out: the MTP module is not trained in RL and the balancing bias stays as it is unless `router_bias_rate` says
otherwise (the papers are silent on both).

    collect -> advantages -> old and reference log-probs -> updates -> log, evaluate, save
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from r1jax.algorithms.grpo import (
    GRPO_PRESETS,
    GRPOConfig,
    finalize_metrics,
    group_advantages,
    grpo_loss,
    keep_informative,
    length_limit,
    overlong_penalty,
    token_weights,
)
from r1jax.algorithms.logprobs import token_logprobs
from r1jax.algorithms.router_bias import is_router_bias
from r1jax.checkpoint import CheckpointStore
from r1jax.data import reasoning_tasks
from r1jax.data.errors import DataError
from r1jax.data.packing import PackedPolicy, pack_policy, split_microbatches
from r1jax.data.pipelines import BatchIterator, example_iterator
from r1jax.data.shared_prompts import pack_shared_prompts
from r1jax.data.sources import SourceConfig
from r1jax.data.tokenizer import Tokenizer
from r1jax.evaluation.evaluator import evaluate_examples
from r1jax.metrics import CompileCounter, MetricWriter, Progress, StepTimer, check_finite, write_atomically
from r1jax.model.config import ModelConfig
from r1jax.model.heads import unembedding
from r1jax.model.outputs import Output
from r1jax.model.transformer import Transformer
from r1jax.optim import OptimizerConfig, learning_rate_schedule, make_optimizer
from r1jax.rewards.combine import RewardConfig, totals_and_mask
from r1jax.rollout import (
    Completer,
    DecodingConfig,
    GradedRollout,
    PromptConfig,
    grade,
    join,
    load_arrays,
    load_graded,
    measure,
    sample_row,
    save_arrays,
    save_graded,
    select_groups,
)
from r1jax.settings import ConfigError, from_config
from r1jax.sharding import MeshConfig, make_mesh, shard_batch
from r1jax.stages.checks import Planned, check_asking, check_divides, known_policy, source_of
from r1jax.stages.interruption import Interruption
from r1jax.stages.policy import Policy, PolicySource, describe_policy, describe_source, load_policy, save_policy
from r1jax.stages.pretrain import expert_load_metrics
from r1jax.stages.state import (
    Accumulated,
    GradientAccumulator,
    TrainState,
    abstract_state,
    apply_gradients,
    forward,
    state_from_params,
)
from r1jax.types import Array, Example, PackedBatch, Params, PolicyBatch, Rollout


@dataclasses.dataclass(frozen=True)
class InRunEvaluation:
    """A small evaluation now and then, for the curves; the stage `evaluate` makes the figures that count."""

    source: SourceConfig = dataclasses.field(default_factory=lambda: SourceConfig(split="evaluation", size=64, seed=1))
    every: int = 10  # rollouts; 0: never; every question gets group_size answers, as in training


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """One RL run."""

    rollouts: int = 60
    init: PolicySource = dataclasses.field(default_factory=lambda: PolicySource("stage", "../pretrain"))
    seed: int = 0
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    source: SourceConfig = dataclasses.field(default_factory=lambda: SourceConfig(split="rl", size=20_000))
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    length_schedule: tuple[tuple[int, int], ...] = ()  # (first update, response limit); empty: decoding.max_new_tokens
    prompts: int = 32  # questions of one rollout
    group_size: int = 16  # G, answers to each
    minibatches: int = 1  # updates of one pass over a rollout
    inner_epochs: int = 1
    row_length: int = 256  # packed rows of the trainer
    micro_rows: int = 16
    shared_prompts: bool = False  # a row holds a prompt once for all its responses: pays where prompts are long
    preset: str = "r1_zero"  # a key of GRPO_PRESETS
    grpo: dict[str, Any] = dataclasses.field(default_factory=dict)  # fields of GRPOConfig that differ from the preset
    max_draws: int = 10  # dynamic sampling: draws of `prompts` questions for one rollout before giving up
    rewards: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    shuffle_rewards: bool = False  # control: rewards are permuted within each group, so that they carry no information
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    reference_every: int = 400  # updates between two refreshes of the reference model; 0: never
    router_bias_rate: float = 0.0  # 0: the balancing bias is frozen
    sequence_loss: float = 0.0  # weight of the sequence-wise balance loss
    evaluation: InRunEvaluation = dataclasses.field(default_factory=InRunEvaluation)
    log_samples: int = 16  # completions of each rollout that go to samples.jsonl
    checkpoint_every: int = 10  # rollouts
    keep: int = 2
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if self.preset not in GRPO_PRESETS:
            raise ValueError(f"preset: {self.preset!r} is not one of {sorted(GRPO_PRESETS)}")
        if self.prompts * self.group_size % self.minibatches:
            raise ValueError(
                f"minibatches: {self.minibatches} does not divide "
                f"prompts x group_size = {self.prompts * self.group_size}"
            )
        needed = self.prompt.width + self.decoding.max_new_tokens - 1
        if needed > self.row_length:
            raise ValueError(
                f"row_length: {self.row_length} is too short for prompt.width + decoding.max_new_tokens - 1 = {needed}"
            )
        if self.shared_prompts and self.sequence_loss:
            raise ValueError(
                "sequence_loss: the sequence-wise balance loss needs whole sequences; not with shared_prompts"
            )
        if not self.decoding.temperature > 0:
            raise ValueError(f"decoding.temperature: {self.decoding.temperature}; RL needs samples, so more than 0")
        for _, limit in self.length_schedule:
            if limit > self.decoding.max_new_tokens:
                raise ValueError(
                    f"length_schedule: {limit} exceeds decoding.max_new_tokens = {self.decoding.max_new_tokens}"
                )
        if self.grpo_config.overlong_cache >= self.decoding.max_new_tokens:
            raise ValueError(
                f"grpo.overlong_cache: {self.grpo_config.overlong_cache} leaves no room below max_new_tokens"
            )

    @property
    def grpo_config(self) -> GRPOConfig:
        """The preset with the fields of `grpo` replaced."""
        fields = {**dataclasses.asdict(GRPO_PRESETS[self.preset]), **self.grpo}
        try:
            return from_config(GRPOConfig, fields, "grpo")
        except ConfigError as error:  # a plain ValueError gets the path of this config in front
            raise ValueError(str(error)) from error

    @property
    def updates_per_rollout(self) -> int:
        """Updates made on one rollout."""
        return self.minibatches * self.inner_epochs

    def response_limit(self, update: int) -> int:
        """Longest response, in tokens, of a rollout that starts at this update."""
        return length_limit(update, self.length_schedule) if self.length_schedule else self.decoding.max_new_tokens


def policy_gradients(
    model: Transformer,
    config: GRPOConfig,
    temperature: float,
    num_sequences: int,
    sequence_loss: float,
    params: Params,
    batch: PolicyBatch,
    sequences: Array,
) -> Accumulated:
    """Gradients of one micro-batch: its share of the mini-batch's GRPO loss (`algorithms.grpo`).

    sequences [] float32: sequences of the whole mini-batch, for the balance loss.
    """

    def loss_of(params: Params) -> tuple[Array, tuple[Output, dict[str, Array]]]:
        packed = batch.packed
        output = forward(model, params, packed)
        logprobs, entropy = token_logprobs(output.hidden, unembedding(params, model.cfg), packed.targets, temperature)
        loss, metrics = grpo_loss(logprobs, entropy, batch, config, num_sequences)
        if sequence_loss:
            loss = loss + sequence_loss * output.aux.balance_loss * output.aux.num_sequences / sequences
        return loss, (output, metrics)

    grads, (output, metrics) = jax.grad(loss_of, has_aux=True)(params)
    return Accumulated(
        grads=grads,
        sums={name: value for name, value in metrics.items() if not name.endswith("_max")},
        maxima={name: value for name, value in metrics.items() if name.endswith("_max")},
        load=output.aux.expert_load,
        mtp_load=None,
    )


def score_tokens(model: Transformer, temperature: float, params: Params, packed: PackedBatch) -> tuple[Array, Array]:
    """Log-probs [R, T] of the targets and the chosen experts [R, T, M, A] of rows."""
    output = forward(model, params, packed)
    logprobs, _ = token_logprobs(output.hidden, unembedding(params, model.cfg), packed.targets, temperature)
    return logprobs, jnp.moveaxis(output.aux.experts, 0, 2)


@struct.dataclass
class RLState:
    """What a checkpoint of an RL run holds as arrays."""

    train: TrainState
    reference: Params


@dataclasses.dataclass(frozen=True)
class MiniBatch:
    """One update's share of a rollout."""

    rows: np.ndarray  # [n] indices of its sequences in the rollout
    policy: PackedPolicy
    batch: PolicyBatch


class Trainer:
    """The compiled programs of one RL run."""

    def __init__(self, config: RLConfig, model: ModelConfig, mesh: Mesh) -> None:
        self.config = config
        self.mesh = mesh
        self.optimizer = make_optimizer(
            config.optimizer, freeze=lambda path: is_router_bias(path) or path.startswith("mtp/")
        )
        self.sequences = config.prompts * config.group_size // config.minibatches
        module, temperature = Transformer(model, mesh), config.decoding.temperature
        self._accumulate = GradientAccumulator(
            partial(policy_gradients, module, config.grpo_config, temperature, self.sequences, config.sequence_loss)
        )
        self._score = jax.jit(partial(score_tokens, module, temperature))
        schedule = learning_rate_schedule(config.optimizer)

        def apply(state: TrainState, total: Accumulated) -> tuple[TrainState, dict[str, Array]]:
            new, metrics = apply_gradients(state, total, self.optimizer, config.router_bias_rate)
            means = finalize_metrics(total.sums | total.maxima)
            return new, means | metrics | expert_load_metrics(total.load) | {"learning_rate": schedule(state.step)}

        self._apply = jax.jit(apply, donate_argnums=0)

    def score(self, params: Params, packed: PackedBatch) -> tuple[np.ndarray, np.ndarray]:
        """Trainer log-probs [R, T] and experts [R, T, M, A] of packed rows, micro-batch by micro-batch."""
        parts = [
            jax.device_get(self._score(params, shard_batch(self.mesh, micro)))
            for micro in split_microbatches(packed, self.config.micro_rows)
        ]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def update(self, state: TrainState, batch: PolicyBatch) -> tuple[TrainState, dict[str, Array]]:
        """One update on a mini-batch."""
        sequences = np.float32(self.sequences)
        total = None
        for micro in split_microbatches(batch, self.config.micro_rows):
            total = self._accumulate(total, state.params, shard_batch(self.mesh, micro), sequences)
        assert total is not None
        return self._apply(state, total)


def rollout_rewards(
    graded: GradedRollout, config: RLConfig, limit: int, seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(rewards [P, G], graded [P, G]): totals with the overlong penalty, permuted within groups in the control run."""
    totals, mask = totals_and_mask(graded.scores)
    cache = config.grpo_config.overlong_cache
    if cache:
        totals = totals + np.asarray(overlong_penalty(graded.rollout.response_lengths, limit, cache))
    rewards, mask = totals.reshape(-1, config.group_size), mask.reshape(-1, config.group_size)
    if config.shuffle_rewards:
        order = np.argsort(np.random.default_rng(seed).random(rewards.shape), axis=1)
        rewards, mask = np.take_along_axis(rewards, order, 1), np.take_along_axis(mask, order, 1)
    return rewards, mask


class Collector:
    """Draws questions, samples and grades answers; every graded rollout is stored before it is used."""

    def __init__(
        self, config: RLConfig, completer: Completer, batches: BatchIterator[Any], folder: pathlib.Path
    ) -> None:
        self.config = config
        self.completer = completer
        self.batches = batches
        self.folder = folder
        self.key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def path(self, index: int) -> pathlib.Path:
        """Where rollout `index` is stored."""
        return self.folder / f"{index:06d}.npz"

    def collect(self, index: int, update: int, params: Params, timer: StepTimer) -> GradedRollout:
        """Rollout `index`: the stored one if it exists, else a new one from `params`."""
        if self.path(index).exists():
            graded, extra = load_graded(self.path(index))
            self.batches.set_state(extra["batches"])
            return graded
        limit = self.config.response_limit(update)
        kept: list[GradedRollout] = []
        for draw in range(self.config.max_draws):
            examples = next(self.batches)
            key = jax.random.fold_in(jax.random.fold_in(self.key, index), draw)
            with timer("rollout"):
                rollout, texts = self.completer.complete(params, examples, self.config.group_size, key, limit)
            with timer("rewards"):
                graded = grade(rollout, texts, examples, self.config.rewards, reasoning_tasks.verify)
            if not self.config.grpo_config.dynamic_sampling:
                kept = [graded]
                break
            rewards, mask = rollout_rewards(graded, self.config, limit, (self.config.seed, index))
            kept.append(select_groups(graded, np.asarray(keep_informative(rewards, mask))))
            if sum(len(part.examples) for part in kept) >= self.config.prompts:
                break
        graded = join(kept)
        if len(graded.examples) < self.config.prompts:
            raise DataError(
                f"dynamic sampling: after max_draws = {self.config.max_draws} draws only {len(graded.examples)} of "
                f"{self.config.prompts} groups have answers of different reward. Easier or harder questions, or more "
                "draws?"
            )
        graded = select_groups(graded, np.arange(len(graded.examples)) < self.config.prompts)
        extra = {"batches": self.batches.get_state(), "draws": draw + 1}
        save_graded(self.path(index), graded, extra)
        return graded

    def forget(self, before: int) -> None:
        """Removes the stored rollouts that no checkpoint needs any more."""
        remove_stored(self.folder, before)


def remove_stored(folder: pathlib.Path, before: int) -> None:
    """Removes the numbered files below `before`."""
    for path in folder.glob("*.npz"):
        if int(path.name.split(".")[0]) < before:
            path.unlink()


def make_minibatches(
    graded: GradedRollout, index: int, limit: int, config: RLConfig
) -> tuple[list[MiniBatch], dict[str, float]]:
    """Advantages, token weights and packed rows of a rollout's mini-batches; log-probs are still zero."""
    rewards, mask = rollout_rewards(graded, config, limit, (config.seed, index))
    grpo = config.grpo_config
    advantages = np.asarray(group_advantages(rewards, grpo, mask)).reshape(-1)
    included = mask.reshape(-1)
    lengths = np.asarray(graded.rollout.response_lengths)
    r = graded.rollout
    order = np.random.default_rng((config.seed, 2, index)).permutation(len(lengths))
    pack = pack_shared_prompts if config.shared_prompts else pack_policy
    minibatches = []
    for rows in np.split(order, config.minibatches):
        weights = np.asarray(token_weights(lengths[rows], grpo.aggregation, float(limit), included[rows]))
        policy = pack(
            r.prompt_tokens[rows],
            r.prompt_lengths[rows],
            r.response_tokens[rows],
            r.response_lengths[rows],
            config.row_length,
            config.micro_rows,
        )
        zeros = np.zeros(policy.tokens.shape, np.float32)
        batch = policy.policy_batch(advantages[rows], weights, r.sampler_logprobs[rows], zeros, zeros)
        minibatches.append(MiniBatch(rows, policy, batch))
    flat = ~np.asarray(keep_informative(rewards, mask))
    return minibatches, {"zero_variance_groups": float(flat.mean()), "advantage_max": float(np.abs(advantages).max())}


def attach_logprobs(
    minibatches: list[MiniBatch], graded: GradedRollout, trainer: Trainer, state: RLState, path: pathlib.Path
) -> tuple[list[MiniBatch], dict[str, float]]:
    """Old and reference log-probs of every mini-batch, by the policy that sampled; stored, for a stop between updates.

    The metrics compare sampler and trainer: |log-prob gap| mean and max, and the share of tokens whose experts differ.
    """
    if path.exists():
        arrays, metrics = load_arrays(path)
    else:
        arrays, gaps, differ, tokens = {}, [], 0, 0
        for j, mini in enumerate(minibatches):
            old, experts = trainer.score(state.train.params, mini.batch.packed)
            arrays[f"old_{j}"] = old
            arrays[f"ref_{j}"], _ = trainer.score(state.reference, mini.batch.packed)
            on = mini.batch.packed.loss_mask > 0
            gaps.append(np.abs(old - mini.batch.sampler_logprobs)[on])
            differ += expert_differences(graded.rollout, mini, experts)
            tokens += int(on.sum())
        gap = np.concatenate(gaps)
        metrics = {"logprob_gap_mean": float(gap.mean()), "logprob_gap_max": float(gap.max())}
        if graded.rollout.experts is not None:
            metrics["expert_difference"] = differ / tokens
        save_arrays(path, arrays, metrics)
    done = []
    for j, mini in enumerate(minibatches):
        on = mini.batch.packed.loss_mask > 0
        batch = mini.batch.replace(  # type: ignore[attr-defined]
            old_logprobs=np.where(on, arrays[f"old_{j}"], np.float32(0)),
            ref_logprobs=np.where(on, arrays[f"ref_{j}"], np.float32(0)),
        )
        done.append(dataclasses.replace(mini, batch=batch))
    return done, metrics


def expert_differences(rollout: Rollout, mini: MiniBatch, experts: np.ndarray) -> int:
    """Tokens for which the trainer chose another set of experts than the sampler, in any layer."""
    if rollout.experts is None:
        return 0
    trained = np.sort(mini.policy.gather_from_rows(experts, fill=-1), axis=-1)
    sampled = np.sort(np.asarray(rollout.experts)[mini.rows], axis=-1)
    valid = mini.policy.to_responses >= 0
    return int(np.any(trained != sampled, axis=(-1, -2))[valid].sum())


def run(config: RLConfig, workdir: pathlib.Path) -> None:
    """Runs RL from the policy of `config.init`; leaves the new policy, metrics, samples and `summary.json`."""
    mesh = make_mesh(config.mesh)
    sources = sources_of(config)
    model, tokenizer = describe_source(config.init, workdir)
    check_fit(config, mesh, sources, model, tokenizer)
    policy = load_policy(config.init, workdir, mesh)
    describe_policy(workdir, policy.model, policy.tokenizer)
    batches = example_iterator(sources["source"], config.seed, config.prompts)
    Loop(config, workdir, policy, mesh, batches, sources.get("evaluation.source")).run()


def check(config: RLConfig, workdir: pathlib.Path, planned: Planned) -> ModelConfig:
    """Everything that can be known to be wrong before the stage starts. Returns the model it will leave."""
    model, tokenizer = known_policy(config.init, workdir, planned)
    check_fit(config, make_mesh(config.mesh), sources_of(config), model, tokenizer)
    return model


def sources_of(config: RLConfig) -> dict[str, Sequence[Example]]:
    """The examples to train on and, if there is an in-run evaluation, its examples."""
    sources = {"source": source_of("source", config.source)}
    if config.evaluation.every:
        sources["evaluation.source"] = source_of("evaluation.source", config.evaluation.source)
    return sources


def check_fit(
    config: RLConfig,
    mesh: Mesh,
    sources: Mapping[str, Sequence[Example]],
    model: ModelConfig,
    tokenizer: Tokenizer | None,
) -> None:
    """That questions, prompts and batches fit the model and the mesh: now, not in the middle of the run."""
    if len(sources["source"]) < config.prompts:
        raise ConfigError(f"source: {len(sources['source'])} examples are fewer than prompts = {config.prompts}")
    check_divides("micro_rows", config.micro_rows, mesh)
    check_asking(config.prompt, config.decoding, mesh, model, tokenizer, sources)


class Loop:
    """One RL run: the pieces, and the loop over rollouts."""

    def __init__(
        self,
        config: RLConfig,
        workdir: pathlib.Path,
        policy: Policy,
        mesh: Mesh,
        batches: BatchIterator[Any],
        evaluation: Sequence[Example] | None,
    ) -> None:
        self.config, self.workdir, self.model, self.mesh, self.batches = config, workdir, policy.model, mesh, batches
        self.trainer = Trainer(config, policy.model, mesh)
        moe = policy.model.num_moe_layers > 0
        self.completer = Completer(
            policy.model, mesh, policy.tokenizer, config.prompt, config.decoding, moe, config.group_size
        )
        self.collector = Collector(config, self.completer, batches, workdir / "rollouts")
        self.store = CheckpointStore(workdir / "checkpoints", config.keep)
        self.evaluation = evaluation
        self.initial = policy.params
        self.timer = StepTimer()
        self.compiles = CompileCounter()

    def run(self) -> None:
        """All rollouts that are left, then the policy and the summary."""
        config = self.config
        with MetricWriter(self.workdir, config.tensorboard) as self.writer, Interruption() as self.interruption:
            state, index, done = self.resume()
            self.completer.sampler.warmup()
            with Progress("rl", config.rollouts, index) as progress, self.compiles:
                if not self.store.steps():
                    self.evaluate(state, 0)
                    if self.interruption.requested:
                        self.save(state, 0, 0)
                        self.interruption.stop("the evaluation before the first rollout")
                for index in range(index, config.rollouts):  # noqa: B020  (continues from where the checkpoint stands)
                    state, shown = self.rollout(state, index, done)
                    done = 0
                    progress.update(index + 1, **shown)
            save_policy(self.workdir, state.train.params, config.rollouts)
            summary = {"stage": "rl", "rollouts": config.rollouts, "updates": int(state.train.step)}
            write_atomically(self.workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
            self.interruption.pass_on()

    def resume(self) -> tuple[RLState, int, int]:
        """(state, rollout index, updates already made on that rollout), from the last checkpoint or the start."""
        if self.store.latest() is None:
            self.writer.rewind(None)
            copy = jax.jit(lambda params: jax.tree.map(jnp.copy, params))
            train = state_from_params(self.trainer.optimizer, copy(self.initial), self.mesh)
            return RLState(train, self.initial), 0, 0
        abstract = abstract_state(self.model, self.trainer.optimizer, self.mesh)
        _, state, saved = self.store.restore(RLState(abstract, abstract.params))
        self.writer.rewind(saved["writer"])
        self.batches.set_state(saved["batches"])
        return state, saved["rollout"], saved["done"]

    def rollout(self, state: RLState, index: int, done: int) -> tuple[RLState, dict[str, float]]:
        """Collects rollout `index` and makes its updates, the first `done` of which were made before a stop."""
        config, timer = self.config, self.timer
        began, compiled = time.monotonic(), self.compiles.count
        first = index * config.updates_per_rollout
        graded = self.collector.collect(index, first, state.train.params, timer)
        if self.interruption.requested and not done:
            self.save(state, index, 0)
            self.interruption.stop(f"rollout {index + 1} of {config.rollouts}, sampled and graded")
        with timer("pack"):
            minibatches, values = make_minibatches(graded, index, config.response_limit(first), config)
        with timer("logprobs"):
            path = self.collector.path(index).with_suffix(".logprobs.npz")
            minibatches, gaps = attach_logprobs(minibatches, graded, self.trainer, state, path)
        values |= gaps | measure(graded)
        sampled = float(np.sum(graded.rollout.response_lengths))
        for number in range(done, config.updates_per_rollout):
            step = first + number + 1
            mini = minibatches[number % config.minibatches]
            with timer("update") as wait:
                train, metrics = wait(self.trainer.update(state.train, mini.batch))
            row = {name: float(value) for name, value in jax.device_get(metrics).items()}
            check_finite(
                {"loss": row["loss"], "grad_norm": row["grad_norm"]},
                step,
                self.workdir,
                partial(jax.tree.map, np.asarray, mini.batch),
            )
            reference = state.reference
            if config.reference_every and step % config.reference_every == 0:
                reference = jax.jit(lambda params: jax.tree.map(jnp.copy, params))(train.params)
            state = RLState(train, reference)
            seconds: dict[str, float] = {}
            if number == config.updates_per_rollout - 1:
                row |= values
                elapsed = time.monotonic() - began
                seconds = timer.take() | {"tokens_per_second": sampled / elapsed}
                seconds |= {"compilations": self.compiles.count - compiled}
                self.log_samples(graded, index, step)
            self.writer.write(step, row, seconds)
            if number < config.updates_per_rollout - 1 and self.interruption.requested:
                self.save(state, index, number + 1)
                self.interruption.stop(f"update {step} of {config.rollouts * config.updates_per_rollout}")
        self.finish_rollout(state, index)
        return state, {name: values[name] for name in ("reward", "accuracy", "length_mean")} | {
            "tokens_per_second": seconds["tokens_per_second"]
        }

    def finish_rollout(self, state: RLState, index: int) -> None:
        """Evaluates and saves where it is due, and stops where it was asked."""
        config, step = self.config, (index + 1) * self.config.updates_per_rollout
        last = index + 1 == config.rollouts
        if config.evaluation.every and ((index + 1) % config.evaluation.every == 0 or last):
            self.evaluate(state, step)
        if (index + 1) % config.checkpoint_every == 0 or last or self.interruption.requested:
            self.save(state, index + 1, 0)
        if self.interruption.requested and not last:
            self.interruption.stop(f"rollout {index + 1} of {config.rollouts}")

    def save(self, state: RLState, index: int, done: int) -> None:
        """A checkpoint after `done` updates on rollout `index`, and removal of rollouts it has left behind."""
        metadata = {"writer": self.writer.state(), "batches": self.batches.get_state(), "rollout": index, "done": done}
        self.store.save(index * self.config.updates_per_rollout + done, state, metadata)
        self.collector.forget(self.oldest_needed())
        remove_stored(self.workdir / "evaluations", min(self.store.steps()))

    def oldest_needed(self) -> int:
        """First rollout that the oldest checkpoint kept would have to repeat."""
        return min(self.store.steps()) // self.config.updates_per_rollout

    def evaluate(self, state: RLState, step: int) -> None:
        """The in-run evaluation; it always draws with the same keys."""
        if self.evaluation is None:
            return
        with self.timer("evaluation"):
            key = jax.random.fold_in(jax.random.key(self.config.seed), 3)
            figures = evaluate_examples(
                self.completer,
                state.train.params,
                self.evaluation,
                self.config.group_size,
                key,
                self.config.rewards,
                self.workdir / "evaluations" / f"{step:06d}.npz",
            )
        names = ("pass_at_1", "pass_at_1_se", "cons_at_k", "length_mean", "format", "language", "truncation_rate")
        self.writer.write(step, {f"eval/{name}": figures[name] for name in names if figures[name] is not None})

    def log_samples(self, graded: GradedRollout, index: int, step: int) -> None:
        """Some completions of the rollout, chosen at random."""
        count = min(self.config.log_samples, len(graded.texts))
        chosen = np.sort(np.random.default_rng((self.config.seed, 4, index)).permutation(len(graded.texts))[:count])
        self.writer.write_samples(step, (sample_row(graded, int(i), step, self.config.prompt) for i in chosen))
