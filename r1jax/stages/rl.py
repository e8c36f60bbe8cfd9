"""Reinforcement learning with verifiable rewards: R1-Zero (R1v1 section 2.2) and every later RL phase, by config.

The paper: a group of answers to each question is sampled from the current policy, graded by rules, and the policy is
moved by GRPO; a rollout is cut into mini-batches, each one update; every so many updates the reference model becomes
the policy. Here: the same, in one program. A rollout is stored as soon as it is graded, so no score is ever computed
twice. Left out: the MTP module is not trained in RL, and the balancing bias stays as it is unless `router_bias_rate`
says otherwise (the papers are silent on both).

    collect -> advantages -> old and reference log-probs -> updates -> log, evaluate, save
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from r1jax.algorithms.grpo import (
    GRPOConfig,
    finalize_metrics,
    grpo_loss,
)
from r1jax.algorithms.logprobs import token_logprobs
from r1jax.algorithms.router_bias import expert_load_metrics, is_router_bias
from r1jax.checkpoint import CheckpointStore
from r1jax.data.packing import split_microbatches
from r1jax.data.tokenizer import Tokenizer
from r1jax.evaluation.estimators import summarize
from r1jax.evaluation.evaluator import answer_examples, evaluation_of
from r1jax.metrics import (
    CompileCounter,
    MetricWriter,
    Progress,
    StepTimer,
    check_finite,
    matrix_product_rate,
    read_rows,
)
from r1jax.model.config import ModelConfig
from r1jax.model.outputs import Output
from r1jax.model.transformer import Transformer
from r1jax.optim import in_device_memory, in_host_memory, learning_rate_schedule, make_optimizer, move
from r1jax.processes import by_writer, from_writer, here, whole
from r1jax.rewards.grading import Grading
from r1jax.rollout import (
    Completer,
    GradedRollout,
    measure,
    sample_row,
)
from r1jax.settings import ConfigError
from r1jax.sharding import make_mesh, shard_batch
from r1jax.stages.checks import (
    Planned,
    check_asking,
    check_trainable,
    check_training_rows,
    known_policy,
    mesh_sizes,
    source_of,
)
from r1jax.stages.experience import Collector, MiniBatch, Questions, attach_logprobs, make_minibatches, remove_stored
from r1jax.stages.graders import check_comparable, check_rewards, stage_grading
from r1jax.stages.interruption import Interruption
from r1jax.stages.policy import Policy, describe_policy, describe_source, load_policy, save_policy
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.rl_summary import cost_of, evaluation_row, summarize_rows
from r1jax.stages.state import (
    Accumulated,
    GradientAccumulator,
    TrainState,
    abstract_state,
    apply_gradients,
    forward,
    placed_abstract_params,
    state_from_params,
)
from r1jax.stages.token_chunks import collected_unembedding, tokens_at_once
from r1jax.types import Array, Example, PackedBatch, Params, PolicyBatch
from r1jax.workdir import write_atomically


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
        unembed, chunk = collected_unembedding(model, params), tokens_at_once(model.mesh)
        logprobs, entropy = token_logprobs(output.hidden, unembed, packed.targets, temperature, chunk)
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
    unembed, chunk = collected_unembedding(model, params), tokens_at_once(model.mesh)
    logprobs, _ = token_logprobs(output.hidden, unembed, packed.targets, temperature, chunk)
    return logprobs, jnp.moveaxis(output.aux.experts, 0, 2)


def is_frozen(path: str) -> bool:
    """Whether RL leaves a parameter alone: the balancing bias has its own rule, the MTP module stays as pretrained."""
    return is_router_bias(path) or path.startswith("mtp/")


@jax.jit
def copy_params(params: Params) -> Params:
    """The same values in buffers of their own: an update gives the policy's buffers away."""
    return jax.tree.map(jnp.copy, params)


@struct.dataclass
class RLState:
    """What a checkpoint of an RL run holds as arrays."""

    train: TrainState
    reference: Params


class Trainer:
    """The compiled programs of one RL run."""

    def __init__(self, config: RLConfig, model: ModelConfig, mesh: Mesh) -> None:
        self.config = config
        self.mesh = mesh
        self.optimizer = make_optimizer(config.optimizer, freeze=is_frozen)
        self.sequences = config.prompts * config.group_size // config.minibatches
        module, temperature = Transformer(model, mesh), config.decoding.temperature
        self.accumulate = GradientAccumulator(
            partial(policy_gradients, module, config.grpo_config, temperature, self.sequences, config.sequence_loss),
            placed_abstract_params(model, mesh),
        )
        self.score_rows = jax.jit(partial(score_tokens, module, temperature))
        schedule = learning_rate_schedule(config.optimizer)

        def apply(state: TrainState, total: Accumulated) -> tuple[TrainState, dict[str, Array]]:
            new, metrics = apply_gradients(state, total, self.optimizer, config.router_bias_rate, is_frozen)
            means = finalize_metrics(total.sums | total.maxima)
            return new, means | metrics | expert_load_metrics(total.load) | {"learning_rate": schedule(state.step)}

        self.apply = jax.jit(apply, donate_argnums=0)

    def score(self, params: Params, packed: PackedBatch) -> tuple[np.ndarray, np.ndarray]:
        """Trainer log-probs [R, T] and experts [R, T, M, A] of packed rows, micro-batch by micro-batch.

        Experts are large: each process has those of the rows on its devices, and -1 elsewhere.
        """
        params = move(params, in_device_memory)  # a reference may lie in the host's
        logprobs, experts = [], []
        for micro in split_microbatches(packed, self.config.micro_rows):
            scored = self.score_rows(params, shard_batch(self.mesh, micro))
            logprobs.append(whole(scored[0]))
            experts.append(here(scored[1], fill=-1))
        return np.concatenate(logprobs), np.concatenate(experts)

    def keep(self, params: Params) -> Params:
        """A reference model with these values, in buffers of its own, in the memory that the config names."""
        return move(params, in_host_memory) if self.config.reference_memory == "host" else copy_params(params)

    def abstract_reference(self, params: Params) -> Params:
        """Shapes and shardings of the reference, given those of the policy."""
        if self.config.reference_memory == "device":
            return params
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=in_host_memory(leaf.sharding)), params
        )

    def update(self, state: TrainState, batch: PolicyBatch) -> tuple[TrainState, dict[str, Array]]:
        """One update on a mini-batch."""
        sequences = np.float32(self.sequences)
        total = None
        for micro in split_microbatches(batch, self.config.micro_rows):
            total = self.accumulate(total, state.params, shard_batch(self.mesh, micro), sequences)
        assert total is not None
        return self.apply(state, total)


def run(config: RLConfig, workdir: pathlib.Path) -> None:
    """Runs RL from the policy of `config.init`; leaves the new policy, metrics, samples and `summary.json`."""
    sources = sources_of(config)
    model, tokenizer = describe_source(config.init, workdir)
    mesh = make_mesh(mesh_sizes(config.mesh, model))
    check_fit(config, mesh, sources, model, tokenizer)
    policy = load_policy(config.init, workdir, mesh)
    if config.reference_memory == "host":  # it is the first reference
        policy = dataclasses.replace(policy, params=move(policy.params, in_host_memory))
    describe_policy(workdir, policy)
    questions = Questions(config, sources)
    with stage_grading(config.rewards, workdir, mesh, policy, config.decoding) as grading:
        Loop(config, workdir, policy, mesh, questions, sources.get("evaluation.source"), grading).run()


def check(config: RLConfig, workdir: pathlib.Path, planned: Planned) -> ModelConfig:
    """Everything that can be known to be wrong before the stage starts. Returns the model it will leave."""
    model, tokenizer = known_policy(config.init, workdir, planned)
    sources = sources_of(config)
    check_fit(config, make_mesh(mesh_sizes(config.mesh, model)), sources, model, tokenizer)
    check_rewards(
        config.rewards, sources, workdir, planned
    )  # runs programs and asks judges: once, and not again in `run`
    return model


def sources_of(config: RLConfig) -> dict[str, Sequence[Example]]:
    """The examples to train on and, if there is an in-run evaluation, its examples, by the names of the fields."""
    sources = {"source": source_of("source", config.source)}
    if config.late is not None:
        sources["late.source"] = source_of("late.source", config.late.source)
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
    for name in ("source", "late.source"):
        if len(sources.get(name, range(config.prompts))) < config.prompts:
            raise ConfigError(f"{name}: {len(sources[name])} examples are fewer than prompts = {config.prompts}")
    check_trainable(model, config.optimizer)
    check_training_rows("micro_rows", config.micro_rows, config.row_length, config.shared_prompts, model, mesh)
    check_asking(config.prompt, config.decoding, mesh, model, tokenizer, sources, config.group_size)
    check_comparable("evaluation.source", config.rewards, sources.get("evaluation.source", ()))


class Loop:
    """One RL run: the pieces, and the loop over rollouts."""

    def __init__(
        self,
        config: RLConfig,
        workdir: pathlib.Path,
        policy: Policy,
        mesh: Mesh,
        questions: Questions,
        evaluation: Sequence[Example] | None,
        grading: Grading,
    ) -> None:
        self.config, self.workdir, self.model, self.mesh = config, workdir, policy.model, mesh
        self.questions = questions
        self.trainer = Trainer(config, policy.model, mesh)
        moe = policy.model.num_moe_layers > 0
        self.completer = Completer(
            policy.model,
            mesh,
            policy.tokenizer,
            config.prompt,
            config.decoding,
            record_experts=moe and config.record_experts,
            group_size=config.group_size,
        )
        self.collector = Collector(config, self.completer, questions, workdir / "rollouts", grading)
        self.store = CheckpointStore(workdir / "checkpoints", config.keep)
        self.evaluation = evaluation
        self.initial = policy.params
        self.matrix_product_rate = matrix_product_rate(policy.model.dtype)
        self.timer = StepTimer()
        self.compiles = CompileCounter()
        self.compiled = 0  # compilations that rows have told of

    def run(self) -> None:
        """All rollouts that are left, then the policy and the summary."""
        config = self.config
        writer = MetricWriter(self.workdir, config.tensorboard, config.wandb_project)
        with writer as self.writer, Interruption() as self.interruption:
            state, index, done = self.resume()
            self.completer.sampler.warmup()
            with Progress("rl", config.rollouts, index) as progress, self.compiles:
                if self.is_new:
                    self.evaluate(state, 0)
                    if self.interruption.requested():
                        self.save(state, 0, 0)
                        self.interruption.stop("the evaluation before the first rollout")
                for index in range(index, config.rollouts):  # noqa: B020  (continues from where the checkpoint stands)
                    state, shown = self.rollout(state, index, done)
                    done = 0
                    progress.update(index + 1, **shown)
            save_policy(self.workdir, state.train.params, config.rollouts)
            summary = {"stage": "rl", "rollouts": config.rollouts, "updates": int(state.train.step)}
            rows = from_writer(lambda: read_rows(self.workdir / "metrics.jsonl"))
            summary |= summarize_rows(rows) | {"cost": cost_of(rows, config, self.model)}
            write_atomically(self.workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
            self.interruption.pass_on()

    def resume(self) -> tuple[RLState, int, int]:
        """(state, rollout index, updates already made on that rollout), from the last checkpoint or the start."""
        self.is_new = self.store.latest() is None
        if self.is_new:
            self.writer.rewind(None)
            train = state_from_params(
                self.trainer.optimizer, copy_params(move(self.initial, in_device_memory)), self.mesh
            )
            return RLState(train, self.initial), 0, 0
        abstract = abstract_state(self.model, self.trainer.optimizer, self.mesh)
        _, state, saved = self.store.restore(RLState(abstract, self.trainer.abstract_reference(abstract.params)))
        self.writer.rewind(saved["writer"])
        self.questions.set_state(saved["questions"])
        return state, saved["rollout"], saved["done"]

    def rollout(self, state: RLState, index: int, done: int) -> tuple[RLState, dict[str, float]]:
        """Collects rollout `index` and makes its updates, the first `done` of which were made before a stop."""
        config, began = self.config, time.monotonic()
        first = index * config.updates_per_rollout
        graded, drawn = self.collector.collect(index, first, state.train.params, self.timer)
        if not done and self.interruption.requested():
            self.save(state, index, 0)
            self.interruption.stop(f"rollout {index + 1} of {config.rollouts}, sampled and graded")
        minibatches, values = self.batches_of(state, graded, index)
        values |= measure(graded) | drawn | {"length_limit": float(config.response_limit(first))}
        for number in range(done, config.updates_per_rollout):
            step = first + number + 1
            state, row = self.update(state, minibatches[number % config.minibatches], step)
            if number < config.updates_per_rollout - 1:
                self.writer.write(step, row)
                if self.interruption.requested():
                    self.save(state, index, number + 1)
                    self.interruption.stop(f"update {step} of {config.rollouts * config.updates_per_rollout}")
            else:
                speed = float(np.sum(graded.rollout.response_lengths)) / (time.monotonic() - began)
                self.writer.write(step, row | values, self.clock() | {"tokens_per_second": speed})
                self.log_samples(graded, index, step)
        self.finish_rollout(state, index)
        shown = {name: values[name] for name in ("reward", "accuracy", "length_mean") if name in values}
        return state, shown | {"tokens_per_second": speed}

    def batches_of(self, state: RLState, graded: GradedRollout, index: int) -> tuple[list[MiniBatch], dict[str, float]]:
        """The mini-batches of a rollout, with advantages and log-probs, and their metrics."""
        limit = self.config.response_limit(index * self.config.updates_per_rollout)
        with self.timer("pack"):
            minibatches, values = make_minibatches(graded, index, limit, self.config)
        with self.timer("logprobs"):
            path = self.collector.path(index).with_suffix(".logprobs.npz")
            minibatches, gaps = attach_logprobs(
                minibatches, graded, self.trainer.score, state.train.params, state.reference, path
            )
        return minibatches, values | gaps

    def update(self, state: RLState, mini: MiniBatch, step: int) -> tuple[RLState, dict[str, float]]:
        """One update, and the refresh of the reference where it is due."""
        with self.timer("update") as wait:
            train, metrics = wait(self.trainer.update(state.train, mini.batch))
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        watched = {name: row[name] for name in ("loss", "grad_norm")}
        check_finite(watched, step, self.workdir, partial(jax.tree.map, np.asarray, mini.batch))
        every = self.config.reference_every
        refresh = bool(every) and step % every == 0
        return RLState(train, self.trainer.keep(train.params) if refresh else state.reference), row

    def clock(self) -> dict[str, float]:
        """Seconds of every section and compilations since the last call, also of evaluations and checkpoints."""
        compilations, self.compiled = self.compiles.count - self.compiled, self.compiles.count
        rate = {"matrix_product_rate": self.matrix_product_rate}
        return self.timer.take() | {"compilations": compilations} | rate

    def finish_rollout(self, state: RLState, index: int) -> None:
        """Evaluates and saves where it is due, and stops where it was asked."""
        config, step = self.config, (index + 1) * self.config.updates_per_rollout
        last = index + 1 == config.rollouts
        if config.evaluation.every and ((index + 1) % config.evaluation.every == 0 or last):
            self.evaluate(state, step)
        stopping = self.interruption.requested()
        if (index + 1) % config.checkpoint_every == 0 or last or stopping:
            self.save(state, index + 1, 0)
        if stopping and not last:
            self.interruption.stop(f"rollout {index + 1} of {config.rollouts}")

    def save(self, state: RLState, index: int, done: int) -> None:
        """A checkpoint after `done` updates on rollout `index`, and removal of rollouts it has left behind."""
        metadata = {
            "writer": self.writer.state(),
            "questions": self.questions.get_state(),
            "rollout": index,
            "done": done,
        }
        self.store.save(index * self.config.updates_per_rollout + done, state, metadata)
        self.forget_left_behind()

    @by_writer
    def forget_left_behind(self) -> None:
        """Removes the stored rollouts and evaluations that the oldest checkpoint kept would not have to repeat."""
        oldest = min(self.store.steps())  # the other processes may not see yet which there are
        self.collector.forget(oldest // self.config.updates_per_rollout)
        remove_stored(self.workdir / "evaluations", oldest)

    def evaluate(self, state: RLState, step: int) -> None:
        """The in-run evaluation; it always draws with the same keys."""
        if self.evaluation is None:
            return
        with self.timer("evaluation"):
            key = jax.random.fold_in(jax.random.key(self.config.seed), 3)
            answers = answer_examples(
                self.completer,
                state.train.params,
                self.evaluation,
                self.config.group_size,
                key,
                self.collector.grading,
                self.workdir / "evaluations" / f"{step:06d}.npz",
                self.config.response_limit(step),
            )
        figures = summarize(evaluation_of([answers], self.config.rewards))
        self.writer.write(step, evaluation_row(figures))

    def log_samples(self, graded: GradedRollout, index: int, step: int) -> None:
        """Some completions of the rollout, chosen at random."""
        count = min(self.config.log_samples, len(graded.texts))
        chosen = np.sort(np.random.default_rng((self.config.seed, 4, index)).permutation(len(graded.texts))[:count])
        self.writer.write_samples(step, (sample_row(graded, int(i), step, self.config.prompt) for i in chosen))
