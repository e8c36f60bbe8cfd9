"""Training of a reward model (R1, Nature version, methods): a scalar head on a policy, from preferences or labels.

Pairwise, as R1's helpfulness model: 66,000 pairs, the final summary only. Point-wise, as its safety model: 106,000
labelled responses, seen whole. Both one epoch, batch 256, learning rate 6e-6, at most 8,192 tokens in training and no
limit in use (here: the model's context). All parameters are trained; the balancing bias of experts stays as it is.

A share of the prompts, chosen by a hash, is held out with all their responses: from them come accuracy, calibration and
length bias, and the mean and standard deviation by which a pairwise model's rewards are scaled in use.

A response of which the view sees nothing (a thought that never ends) is read as the empty response, as it is in use. It
is trained on, and has no part in those figures.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from r1jax.algorithms.preference import pairwise_loss, pointwise_loss
from r1jax.algorithms.router_bias import expert_load_metrics, is_router_bias
from r1jax.checkpoint import CheckpointStore
from r1jax.data.errors import DataError
from r1jax.data.packing import split_microbatches
from r1jax.data.scored_rows import ScoredRows, pack_units
from r1jax.data.tokenizer import Tokenizer
from r1jax.evaluation.held_out_rewards import HeldOut, empty_figures, figures_of, split_empty, write_plots
from r1jax.metrics import MetricWriter, Progress, check_finite, elapsed_seconds, read_rows
from r1jax.model.config import ModelConfig
from r1jax.model.flops import BACKWARD, training_flops
from r1jax.model.outputs import Output
from r1jax.model.transformer import Transformer
from r1jax.optim import OptimizerConfig, learning_rate_schedule, make_optimizer
from r1jax.processes import from_writer
from r1jax.rollout import PromptConfig
from r1jax.settings import ConfigError
from r1jax.sharding import MeshConfig, make_mesh, shard_batch
from r1jax.stages.checks import (
    Planned,
    check_divides,
    check_trainable,
    check_training_rows,
    is_planned,
    known_policy,
    mesh_sizes,
)
from r1jax.stages.interruption import Interruption
from r1jax.stages.policy import Policy, PolicySource, describe_policy, describe_source, load_policy
from r1jax.stages.reward_data import Batches, Units, encode_units, read_data, split_by_prompt
from r1jax.stages.scalar_model import (
    KINDS,
    VIEWS,
    Reader,
    RewardModelCard,
    Scorer,
    abstract_scored,
    add_head,
    score_hidden,
    scored_model,
    write_card,
)
from r1jax.stages.state import (
    Accumulated,
    GradientAccumulator,
    TrainState,
    abstract_state_of,
    apply_gradients,
    state_from_params,
)
from r1jax.types import Array, Params
from r1jax.weights.policy_folder import PARAMETERS
from r1jax.workdir import write_atomically


@dataclasses.dataclass(frozen=True)
class RewardModelConfig:
    """One reward model; the defaults of epochs, batch, learning rate and length are the paper's."""

    init: PolicySource = dataclasses.field(default_factory=lambda: PolicySource("stage", "../dev3"))
    kind: str = "pairwise"  # 'pairwise': files of `data.preferences.Pair`; 'pointwise': of `data.preferences.Labelled`
    view: str = "helpfulness"  # what it sees of a response: 'helpfulness' its final summary, 'safety' the whole
    data: tuple[str, ...] = ("../preferences/pairs.jsonl",)  # relative to this stage's folder
    prompt: PromptConfig = dataclasses.field(default_factory=lambda: PromptConfig(width=8192))
    held_out: float = 0.1  # share of the prompts
    epochs: int = 1
    batch: int = 256  # pairs, or labelled responses, of one update; an epoch's last update takes what is left
    max_length: int = 8192  # tokens of prompt, response and eos in training: a longer one is refused; a row's length
    micro_rows: int = 8  # rows of one forward and backward pass; both responses of a pair together count as one row
    margin: float = 0.0  # pairwise: by how much the preferred response should be ahead
    smoothing: float = 0.0  # assumed share of wrong labels
    score_batch: int = 32  # held-out responses scored at once
    seed: int = 0  # of the split and of the order
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig(learning_rate=6e-6))
    log_every: int = 1
    checkpoint_every: int = 50
    keep: int = 2
    tensorboard: bool = True
    wandb_project: str = ""  # also log to this project of Weights & Biases (extra `wandb`); empty: do not

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        for name, value, allowed in (("kind", self.kind, sorted(KINDS)), ("view", self.view, sorted(VIEWS))):
            if value not in allowed:
                raise ValueError(f"{name}: {value!r} is not one of {allowed}")
        if not self.data:
            raise ValueError("data: is empty; at least one file")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out: {self.held_out}; between 0 and 1: without held-out data nothing is measured")
        if not 0 <= self.smoothing < 0.5:
            raise ValueError(f"smoothing: {self.smoothing}; 0 to below 0.5")
        if self.kind == "pointwise" and self.margin:
            raise ValueError(f"margin: {self.margin}; only a pairwise model has one")
        for name in ("epochs", "batch", "max_length", "micro_rows", "score_batch", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; at least 1")

    def paths(self, workdir: pathlib.Path) -> list[pathlib.Path]:
        """The files of the data; `workdir` need not be there yet."""
        return [(workdir / path).resolve() for path in self.data]

    def reader(self, tokenizer: Tokenizer) -> Reader:
        """How its data becomes tokens."""
        return Reader(tokenizer, self.prompt, self.max_length, "max_length")


def check(config: RewardModelConfig, workdir: pathlib.Path, planned: Planned) -> ModelConfig:
    """Everything that can be known to be wrong before the stage starts. Returns the shape of the model it will leave.

    Data that exists is read, and tokenized where the tokenizer is known.
    """
    model, tokenizer = known_policy(config.init, workdir, planned)
    check_trainable(model, config.optimizer)
    if config.max_length > model.max_positions:
        raise ConfigError(
            f"max_length: {config.max_length} exceeds the model's context, max_positions = {model.max_positions}"
        )
    mesh = make_mesh(mesh_sizes(config.mesh, model))
    check_training_rows("micro_rows", config.micro_rows, config.max_length, False, model, mesh)
    check_divides("score_batch", config.score_batch, mesh)
    if not any(is_planned(path, planned) for path in config.paths(workdir)):
        items = read_data(config.kind, config.paths(workdir))
        held_out = split_by_prompt(items, config.held_out, config.seed)
        if tokenizer is not None:
            units = encode_units(items, VIEWS[config.view], config.reader(tokenizer))
            if not (units.lengths[held_out] > 0).all(axis=1).any():
                raise DataError(
                    f"data: view {config.view!r} sees nothing of the held-out responses; nothing is measured"
                )
    return scored_model(model)


# The update -----------------------------------------------------------------------------------------------------------


def reward_gradients(
    model: Transformer, kind: str, margin: float, smoothing: float, params: Params, batch: ScoredRows, total: Array
) -> Accumulated:
    """Gradients and sums of one micro-batch; `total` [] is the number of units of the whole batch."""

    def loss_of(params: Params) -> tuple[Array, tuple[Output, dict[str, Array]]]:
        flat = [x.reshape(-1, x.shape[-1]) for x in (batch.tokens, batch.positions, batch.segment_ids)]
        output = model.apply({"params": params["policy"]}, *flat)
        assert isinstance(output, Output)
        rewards = score_hidden(output.hidden, params).reshape(batch.tokens.shape)
        ends = jax.numpy.take_along_axis(rewards, batch.ends, axis=2)  # [R, W, T], where a unit begins
        if kind == "pairwise":
            loss, sums = pairwise_loss(ends[:, 0], ends[:, 1], batch.mask, margin, smoothing)
        else:
            loss, sums = pointwise_loss(ends[:, 0], batch.labels, batch.mask, smoothing)
        return loss / total, (output, sums)

    grads, (output, sums) = jax.grad(loss_of, has_aux=True)(params)
    return Accumulated(grads=grads, sums=sums, maxima={}, load=output.aux.expert_load, mtp_load=None)


def is_frozen(path: str) -> bool:
    """Leaves that are not trained: the balancing bias, and the language-model head, which has no part in a reward."""
    return is_router_bias(path) or path.startswith("policy/lm_head/")


class Trainer:
    """The compiled update of one reward model."""

    def __init__(self, config: RewardModelConfig, model: ModelConfig, mesh: Mesh) -> None:
        self.config, self.model, self.mesh = config, model, mesh
        self.optimizer = make_optimizer(config.optimizer, freeze=is_frozen)
        gradients = partial(reward_gradients, Transformer(model, mesh), config.kind, config.margin, config.smoothing)
        self.accumulate = GradientAccumulator(gradients, abstract_scored(model, mesh))
        schedule = learning_rate_schedule(config.optimizer)

        def apply(state: TrainState, total: Accumulated) -> tuple[TrainState, dict[str, Array]]:
            new, metrics = apply_gradients(state, total, self.optimizer, 0.0, is_frozen)
            return new, metrics | batch_metrics(total) | {"learning_rate": schedule(state.step)}

        self.apply = jax.jit(apply, donate_argnums=0)

    def update(self, state: TrainState, rows: ScoredRows) -> tuple[TrainState, dict[str, Array]]:
        """One optimiser update on host rows; the metrics stay on the device."""
        total, units = None, np.float32(np.sum(rows.mask))
        for micro in split_microbatches(rows, self.config.micro_rows):
            total = self.accumulate(total, state.params, shard_batch(self.mesh, micro), units)
        assert total is not None
        return self.apply(state, total)

    def abstract(self) -> Any:
        """Shapes and shardings of the state: what a checkpoint is restored into."""
        return abstract_state_of(abstract_scored(self.model, self.mesh), self.optimizer, self.mesh)


def batch_metrics(total: Accumulated) -> dict[str, Array]:
    """Means of a whole batch out of its sums."""
    sums = total.sums
    names = {
        "loss": "preference_sum",
        "accuracy": "right",
        "difference": "difference_sum",
        "safe": "safe_sum",
        "p_safe": "probability_sum",
    }
    means = {name: sums[source] / sums["items"] for name, source in names.items() if source in sums}
    return means | expert_load_metrics(total.load)


# The stage ------------------------------------------------------------------------------------------------------------


def run(config: RewardModelConfig, workdir: pathlib.Path) -> None:
    """Trains, and leaves the reward model, its calibration and `summary.json` in `workdir`."""
    check(config, workdir, {})
    model, tokenizer = describe_source(config.init, workdir)
    mesh = make_mesh(mesh_sizes(config.mesh, model))
    model = scored_model(model)
    items = read_data(config.kind, config.paths(workdir))
    held_out = split_by_prompt(items, config.held_out, config.seed)
    units = encode_units(items, VIEWS[config.view], config.reader(tokenizer))
    training = np.flatnonzero(~held_out)
    batches = Batches(len(training), config.batch, config.epochs, config.seed)
    trainer = Trainer(config, model, mesh)
    store = CheckpointStore(workdir / "checkpoints", config.keep)
    with (
        MetricWriter(workdir, config.tensorboard, config.wandb_project) as writer,
        Interruption() as interruption,
    ):
        if store.latest() is None:
            writer.rewind(None)
            policy = load_policy(config.init, workdir, mesh)
            describe_policy(workdir, Policy(model, None, tokenizer, policy.released))
            state = state_from_params(trainer.optimizer, add_head(policy.params, model, mesh), mesh)
        else:
            _, state, saved = store.restore(trainer.abstract())
            writer.rewind(saved["writer"])
        state = train(config, workdir, state, (units, training, batches), trainer, writer, store, interruption)
    CheckpointStore(workdir / PARAMETERS, keep=1).save(batches.steps, state.params)
    held = score_held_out(units, np.flatnonzero(held_out), Scorer(model, mesh, config.score_batch), state.params)
    held, empty = split_empty(held)
    figures = figures_of(held)
    figures["held_out"]["with_empty"] = empty_figures(empty)
    write_plots(workdir, held)
    write_card(workdir, RewardModelCard(config.kind, config.view, config.prompt, **figures["rewards"]))
    summary = {
        "stage": "reward_model",
        "kind": config.kind,
        "view": config.view,
        "steps": batches.steps,
        "counts": counts_of(units, held_out),
        **figures,
        "cost": cost_of(config, model, units, training, from_writer(lambda: read_rows(workdir / "metrics.jsonl"))),
    }
    write_atomically(workdir / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    interruption.pass_on()


def train(
    config: RewardModelConfig,
    workdir: pathlib.Path,
    state: TrainState,
    data: tuple[Units, np.ndarray, Batches],
    trainer: Trainer,
    writer: MetricWriter,
    store: CheckpointStore,
    interruption: Interruption,
) -> TrainState:
    """The loop: batch, update, log, save."""
    units, training, batches = data
    start, steps = int(state.step), batches.steps
    with Progress("reward model", steps, start) as progress:
        for step in range(start + 1, steps + 1):
            chosen = training[batches[step]]
            rows = pack_units(
                [units.sequences[i] for i in chosen],
                [units.labels[i] for i in chosen],
                config.max_length,
                config.micro_rows,
            )
            state, metrics = trainer.update(state, rows)
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            _refuse_nan(values, step, workdir, rows)
            if step % config.log_every == 0 or step == steps:
                fill = float(np.mean(np.asarray(rows.segment_ids) > 0))
                writer.write(step, values | {"fill": fill})
                progress.update(step, loss=values["loss"], accuracy=values["accuracy"])
            stopping = interruption.requested()
            if step % config.checkpoint_every == 0 or step == steps or stopping:
                store.save(step, state, {"writer": writer.state()})
            if stopping and step < steps:
                interruption.stop(f"step {step} of {steps}")
    return state


def _refuse_nan(values: Mapping[str, float], step: int, workdir: pathlib.Path, rows: ScoredRows) -> None:
    """Raises NonFiniteError, with the step's rows saved."""
    check_finite({name: values[name] for name in ("loss", "grad_norm")}, step, workdir, lambda: rows)


def score_held_out(units: Units, members: np.ndarray, scorer: Scorer, params: Params) -> HeldOut:
    """The rewards of the held-out units."""
    sequences = [sequence for i in members for sequence in units.sequences[i]]
    return HeldOut(
        rewards=scorer(params, sequences).astype(np.float64).reshape(len(members), -1),
        lengths=units.lengths[members],
        safe=np.array([units.labels[i] > 0 for i in members]),
        prompts=[units.prompts[i] for i in members],
    )


def counts_of(units: Units, held_out: np.ndarray) -> dict[str, int]:
    """How much data there is on both sides: pairs or labelled responses, and prompts."""
    prompts = [len({units.prompts[i] for i in np.flatnonzero(side)}) for side in (~held_out, held_out)]
    return {
        "trained": int(np.sum(~held_out)),
        "trained_prompts": prompts[0],
        "held_out": int(np.sum(held_out)),
        "held_out_prompts": prompts[1],
        "empty_views": units.empty,  # responses of which nothing is seen, read as empty ones
    }


def cost_of(
    config: RewardModelConfig,
    model: ModelConfig,
    units: Units,
    training: np.ndarray,
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """What training took; scoring the held-out data is not in it. The language-model head is not computed."""
    lengths = np.array([len(sequence) for i in training for sequence in units.sequences[i]], np.float64)
    tokens = int(lengths.sum()) * config.epochs
    mean_length = float(np.sum(lengths**2) / np.sum(lengths))  # of a token's sequence: attention is quadratic
    head = (1 + BACKWARD) * 2.0 * tokens * model.width * model.vocab_size
    return {
        "tokens_trained": tokens,
        "tokens_sampled": 0,
        "seconds": elapsed_seconds(rows),
        "flops": training_flops(model, tokens, mean_length) - head,
    }
