"""Next-token training of packed documents: the update, the loop, what it leaves. Pretraining and SFT are made of it.

A batch's loss is the sum over its trained tokens divided by their number, so neither micro-batches nor the way in which
documents share rows change it. The multi-token prediction loss comes on top (V3 eq. 24-25), and the balancing of
experts: the bias by rule, a small sequence-wise loss by gradient (V3 section 2.1.2).
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from r1jax.algorithms.cross_entropy import mtp_acceptance, mtp_loss, next_token_loss
from r1jax.algorithms.router_bias import expert_load_metrics, is_router_bias
from r1jax.checkpoint import CheckpointStore
from r1jax.data.packing import Documents, split_microbatches
from r1jax.data.pipelines import BatchIterator, packed_iterator, tokens_drawn
from r1jax.metrics import CompileCounter, MetricWriter, Progress, check_finite
from r1jax.model.config import ModelConfig
from r1jax.model.flops import training_flops
from r1jax.model.outputs import Output
from r1jax.model.transformer import Transformer
from r1jax.optim import OptimizerConfig, learning_rate_schedule, make_optimizer
from r1jax.settings import ConfigError
from r1jax.sharding import shard_batch
from r1jax.stages.checks import check_training_rows
from r1jax.stages.interruption import Interruption
from r1jax.stages.state import (
    Accumulated,
    GradientAccumulator,
    TrainState,
    abstract_state,
    apply_gradients,
    forward,
    placed_abstract_params,
)
from r1jax.stages.token_chunks import collected_unembedding, tokens_at_once
from r1jax.types import Array, PackedBatch, Params


@dataclasses.dataclass(frozen=True)
class BalanceConfig:
    """Expert balancing (V3 section 4.2: rate 0.001 for most of training, alpha 1e-4)."""

    router_bias_rate: float = 0.001
    sequence_loss: float = 1e-4


@dataclasses.dataclass(frozen=True)
class Training:
    """What the loop has to know of a stage's configuration; the fields are explained there."""

    name: str  # the stage's kind
    steps: int
    rows: int
    micro_rows: int  # 0: all
    row_length: int
    seed: int
    optimizer: OptimizerConfig
    balance: BalanceConfig
    mtp_weight: float  # 0: the multi-token prediction module is neither run nor changed
    log_every: int
    checkpoint_every: int
    keep: int
    tensorboard: bool
    wandb_project: str

    @property
    def rows_at_once(self) -> int:
        """Rows of one forward and backward pass."""
        return self.micro_rows or self.rows

    def is_frozen(self, path: str) -> bool:
        """Whether the optimiser leaves a parameter alone: the balancing bias has its own rule."""
        return is_router_bias(path) or (not self.mtp_weight and path.startswith("mtp/"))

    def trained_part(self, model: ModelConfig) -> ModelConfig:
        """The model without a module that is not trained."""
        return model if self.mtp_weight else dataclasses.replace(model, mtp_depth=0)


def check_rows(rows: int, micro_rows: int, row_length: int, model: ModelConfig, mesh: Mesh) -> None:
    """That rows fit the model's context and can be split over the mesh. Raises ConfigError naming the field."""
    if row_length > model.max_positions:
        raise ConfigError(
            f"row_length: {row_length} exceeds the model's context, max_positions = {model.max_positions}"
        )
    field, at_once = ("micro_rows", micro_rows) if micro_rows else ("rows", rows)
    check_training_rows(field, at_once, row_length, False, model, mesh)


def next_token_gradients(
    model: Transformer, mtp_weight: float, sequence_loss: float, params: Params, batch: PackedBatch, totals: Array
) -> Accumulated:
    """Gradients and sums of one micro-batch.

    totals: [2] float32, trained tokens and sequences of the whole batch, so that micro-batches simply add up.
    """
    tokens, sequences = totals[0], totals[1]

    def loss_of(params: Params) -> tuple[Array, tuple[Output, dict[str, Array]]]:
        output = forward(model, params, batch)
        unembed, chunk = collected_unembedding(model, params), tokens_at_once(model.mesh)
        loss, sums = next_token_loss(output.hidden, unembed, batch, chunk)
        if output.aux.mtp_hidden is not None:
            second, mtp_sums = mtp_loss(output.aux.mtp_hidden, unembed, batch, chunk)
            loss = loss + mtp_weight * second
            sums |= mtp_sums
            sums |= mtp_acceptance(output.aux.mtp_hidden, output.hidden, unembed, batch, chunk)
        balance = output.aux.balance_loss
        if output.aux.mtp_balance_loss is not None:
            balance = balance + output.aux.mtp_balance_loss
        balance = balance * output.aux.num_sequences / sequences
        sums["balance_loss"] = balance
        return loss / tokens + sequence_loss * balance, (output, sums)

    grads, (output, sums) = jax.grad(loss_of, has_aux=True)(params)
    return Accumulated(
        grads=grads, sums=sums, maxima={}, load=output.aux.expert_load, mtp_load=output.aux.mtp_expert_load
    )


def batch_metrics(total: Accumulated) -> dict[str, Array]:
    """Means of a whole batch out of its sums."""
    sums = total.sums
    metrics = {
        "loss": sums["ce_sum"] / sums["ce_tokens"],
        "entropy": sums["entropy_sum"] / sums["ce_tokens"],
        "balance_loss": sums["balance_loss"],
    }
    if "mtp_sum" in sums:
        metrics |= {
            "mtp_loss": sums["mtp_sum"] / sums["mtp_tokens"],
            "mtp_accuracy": sums["mtp_correct"] / sums["mtp_tokens"],
            "mtp_acceptance": sums["accept_greedy"] / sums["accept_tokens"],
            "mtp_acceptance_sampled": sums["accept_sampled"] / sums["accept_tokens"],
        }
    return metrics | expert_load_metrics(total.load)


class Trainer:
    """The compiled update of one run."""

    def __init__(self, training: Training, model: ModelConfig, mesh: Mesh) -> None:
        self.rows_at_once = training.rows_at_once
        self.mesh = mesh
        self.optimizer = make_optimizer(training.optimizer, freeze=training.is_frozen)
        schedule = learning_rate_schedule(training.optimizer)
        module, balance = Transformer(training.trained_part(model), mesh), training.balance
        gradients = partial(next_token_gradients, module, training.mtp_weight, balance.sequence_loss)
        self.accumulate = GradientAccumulator(gradients, placed_abstract_params(model, mesh))

        def apply(state: TrainState, total: Accumulated) -> tuple[TrainState, dict[str, Array]]:
            new, metrics = apply_gradients(state, total, self.optimizer, balance.router_bias_rate, training.is_frozen)
            return new, metrics | batch_metrics(total) | {"learning_rate": schedule(state.step)}

        self.apply = jax.jit(apply, donate_argnums=0)

    def update(self, state: TrainState, batch: PackedBatch) -> tuple[TrainState, dict[str, Array]]:
        """One optimiser update on a host batch [rows, row_length]; the metrics stay on the device."""
        sequences = sum(len(np.unique(row[row > 0])) for row in batch.segment_ids)
        totals = np.array([np.sum(batch.loss_mask), max(sequences, 1)], np.float32)
        total = None
        for micro in split_microbatches(batch, self.rows_at_once):
            total = self.accumulate(total, state.params, shard_batch(self.mesh, micro), totals)
        assert total is not None
        return self.apply(state, total)


Measure = Callable[[int, TrainState], Mapping[str, float]]
"""After a step (0: before the first): figures that make a row of their own, or none."""


def fit(
    training: Training,
    workdir: pathlib.Path,
    model: ModelConfig,
    documents: Documents,
    trainer: Trainer,
    start: Callable[[], TrainState],
    interruption: Interruption,
    measure: Measure = lambda step, state: {},
) -> TrainState:
    """Trains from the last checkpoint in `workdir`, or from `start()` if there is none; returns the last state."""
    batches = packed_iterator(documents, training.row_length, training.rows, training.seed)
    store = CheckpointStore(workdir / "checkpoints", training.keep)
    with MetricWriter(workdir, training.tensorboard, training.wandb_project) as writer:
        if store.latest() is None:
            writer.rewind(None)
            state = start()
            _write_measured(writer, measure, 0, state)
        else:
            _, state, saved = store.restore(abstract_state(model, trainer.optimizer, trainer.mesh))
            writer.rewind(saved["writer"])
            batches.set_state(saved["batches"])
        return train(training, workdir, state, batches, trainer, writer, store, interruption, measure)


def train(
    training: Training,
    workdir: pathlib.Path,
    state: TrainState,
    batches: BatchIterator[PackedBatch],
    trainer: Trainer,
    writer: MetricWriter,
    store: CheckpointStore,
    interruption: Interruption,
    measure: Measure,
) -> TrainState:
    """The loop: batch, update, measure, log, save."""
    start, steps = int(state.step), training.steps
    tokens_seen, compiled, since = 0, 0, time.monotonic()
    with Progress(training.name, steps, start) as progress, CompileCounter() as compiles:
        watch = LossWatch(workdir)
        for step in range(start + 1, steps + 1):
            batch = next(batches)
            state, metrics = trainer.update(state, batch)
            watch(step, metrics, batch)
            tokens_seen += int(np.sum(batch.loss_mask))
            _write_measured(writer, measure, step, state)
            if step % training.log_every == 0 or step == steps:
                watch.settle()
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                seconds = time.monotonic() - since
                rate = tokens_seen / seconds
                # since the last row
                clock = {"tokens_per_second": rate, "compilations": compiles.count - compiled, "step": seconds}
                compiled = compiles.count
                writer.write(step, values, clock)
                progress.update(step, loss=values["loss"], tokens_per_second=rate)
                tokens_seen, since = 0, time.monotonic()
            stopping = interruption.requested()
            if step % training.checkpoint_every == 0 or step == steps or stopping:
                watch.settle()  # nothing is saved before its loss is known to be finite
                store.save(step, state, {"writer": writer.state(), "batches": batches.get_state()})
            if stopping and step < steps:
                interruption.stop(f"step {step} of {steps}")
    return state


def _write_measured(writer: MetricWriter, measure: Measure, step: int, state: TrainState) -> None:
    values = measure(step, state)
    if values:
        writer.write(step, values)


class LossWatch:
    """Looks at every step's loss and gradient norm, one step late, so that the device never waits for the look."""

    def __init__(self, workdir: pathlib.Path) -> None:
        self.workdir = workdir
        self.pending: tuple[int, dict[str, Array], PackedBatch] | None = None

    def __call__(self, step: int, metrics: dict[str, Array], batch: PackedBatch) -> None:
        """Looks at the step before and remembers this one."""
        self.settle()
        self.pending = step, metrics, batch

    def settle(self) -> None:
        """Looks at the step that is still to be looked at. Raises NonFiniteError, with that step's batch saved."""
        if self.pending is None:
            return
        step, metrics, batch = self.pending
        self.pending = None
        looked_at: dict[str, Array] = {
            name: metrics[name] for name in ("loss", "mtp_loss", "grad_norm") if name in metrics
        }
        check_finite(looked_at, step, self.workdir, lambda: batch)


def training_cost(
    training: Training, model: ModelConfig, documents: Documents, rows: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """What the whole run cost, stops and resumes included.

    Tokens are those that the model read, prompts among them, padding not; the operations are those of the updates. The
    seconds are added up from `rows`, those of metrics.jsonl: compiling is in them, work that a kill undid is not.
    """
    tokens = tokens_drawn(documents, training.row_length, training.rows, training.seed, training.steps)
    lengths = np.diff(documents.starts).astype(np.float64) - 1
    mean_length = float(np.sum(lengths**2) / np.sum(lengths))  # of a token's document: attention is quadratic
    mtp = bool(training.mtp_weight) and model.mtp_depth > 0
    return {
        "tokens_trained": tokens,
        "tokens_sampled": 0,
        "seconds": sum(row["time"].get("step", 0.0) for row in rows),
        "flops": training_flops(model, tokens, mean_length, mtp=mtp),
    }
