"""Supervised fine-tuning: cold start, second SFT, distillation (R1v2 B.4.2, R1v1 sections 2.3 and 2.4).

The paper: two to three epochs from the base model, a cosine from 5e-5 to a tenth of it, packed samples that do not see
each other (V3 section 5.1). The loss is on completions only, each with the token that ends it, and every trained token
of a batch counts the same. The papers are silent on the balancing bias and the MTP module: both stay as they are unless
`balance` and `mtp_weight` say otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r1jax.algorithms.cross_entropy import next_token_loss
from r1jax.data.packing import Documents, documents_by_row, split_microbatches
from r1jax.data.samples import read_samples
from r1jax.data.tokenizer import Tokenizer
from r1jax.metrics import read_rows
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import Transformer, param_count
from r1jax.processes import from_writer
from r1jax.settings import ConfigError
from r1jax.sharding import make_mesh, shard_batch
from r1jax.stages.checks import Planned, check_trainable, is_planned, known_policy, mesh_sizes
from r1jax.stages.interruption import Interruption
from r1jax.stages.next_token import Trainer, Training, check_rows, fit, training_cost
from r1jax.stages.policy import describe_policy, describe_source, load_policy, save_policy
from r1jax.stages.sft_config import SFTConfig
from r1jax.stages.sft_data import SampleEncoder, TrainingSet, encode_file, make_training_set
from r1jax.stages.state import TrainState, forward, state_from_params
from r1jax.stages.token_chunks import collected_unembedding, tokens_at_once
from r1jax.types import Array, PackedBatch, Params
from r1jax.workdir import RUN_FILES, write_atomically

VALIDATION_LOSS = "eval/loss"
"""In metrics.jsonl: mean over the tokens that are learnt in the held-out samples, in nats."""


def check(config: SFTConfig, workdir: pathlib.Path, planned: Planned) -> ModelConfig:
    """Everything that can be known to be wrong before the stage starts. Returns the model it will leave."""
    model, tokenizer = known_policy(config.init, workdir, planned)
    check_model(config, model, make_mesh(mesh_sizes(config.mesh, model)))
    check_data(config, workdir, planned, tokenizer)
    return model


def check_data(config: SFTConfig, workdir: pathlib.Path, planned: Planned, tokenizer: Tokenizer | None) -> None:
    """That the samples can be trained on, as far as they are there and the tokenizer is known.

    Files that an earlier stage has yet to write, and encodings with a tokenizer that it has yet to make, are left to
    `run`, which looks at them before it trains. Errors are those of `check_paths`, `read_samples` and `prepare`.
    """
    check_paths(config, workdir)
    known = [data for data in config.data if not is_planned(workdir / data.path, planned)]
    if tokenizer is None:
        for data in known:
            read_samples(workdir / data.path)
    elif len(known) < len(config.data):
        encode = SampleEncoder(config, tokenizer)
        for data in known:
            encode_file(data, workdir, encode)
    else:
        prepare(config, workdir, tokenizer)


def check_model(config: SFTConfig, model: ModelConfig, mesh: Mesh) -> None:
    """That the model can be trained in this way. Raises ConfigError naming the field."""
    check_trainable(model, config.optimizer_config(2**31))
    check_rows(config.rows, config.micro_rows, config.row_length, model, mesh)
    if config.mtp_weight and not model.mtp_depth:
        raise ConfigError(f"mtp_weight: {config.mtp_weight}, but the model has no MTP module")


def check_paths(config: SFTConfig, workdir: pathlib.Path) -> None:
    """That no file of samples is one that a run overwrites. Raises ConfigError naming it."""
    own = {(workdir / name).resolve() for name in RUN_FILES}
    for data in config.data:
        if (workdir / data.path).resolve() in own:
            raise ConfigError(f"data: {data.path} is a file that the run itself writes; keep samples elsewhere")


def prepare(config: SFTConfig, workdir: pathlib.Path, tokenizer: Tokenizer) -> tuple[TrainingSet, Training]:
    """The data, and the length of the run that follows from them.

    Raises:
      DataError: the data cannot be used (`make_training_set`).
      ConfigError: they fill fewer rows than one update takes, or the run is too short for its schedule.
    """
    data = make_training_set(config, workdir, tokenizer)
    packed_rows = data.train.plan(config.row_length).num_rows
    if packed_rows < config.rows:
        raise ConfigError(
            f"rows: {config.rows} of one update, but the data fill {packed_rows} of row_length = {config.row_length}"
        )
    steps = config.steps if config.epochs is None else math.ceil(config.epochs * packed_rows / config.rows)
    assert steps is not None  # the config has either
    try:
        optimizer = config.optimizer_config(steps)
    except ValueError as error:
        raise ConfigError(f"{error} (the run has {steps} steps)") from error
    same = ("rows", "micro_rows", "row_length", "seed", "balance", "mtp_weight", "log_every", "checkpoint_every")
    fields = {name: getattr(config, name) for name in (*same, "keep", "tensorboard", "wandb_project")}
    return data, Training(name="sft", steps=steps, optimizer=optimizer, **fields)


class HeldOut:
    """The held-out samples, packed once, and the loss on all of them."""

    def __init__(self, documents: Documents, training: Training, model: ModelConfig, mesh: Mesh) -> None:
        self.mesh, self.rows_at_once = mesh, training.rows_at_once
        plan = documents.plan(training.row_length, self.rows_at_once)
        self.batch = documents.fill_rows(plan, np.arange(plan.num_rows), documents_by_row(plan))
        module = Transformer(dataclasses.replace(model, mtp_depth=0), mesh)

        def sums(params: Params, batch: PackedBatch) -> Array:
            hidden = forward(module, params, batch).hidden
            unembed = collected_unembedding(module, params)
            loss, _ = next_token_loss(hidden, unembed, batch, tokens_at_once(mesh))
            return jnp.stack([loss, jnp.sum(batch.loss_mask)])

        self._sums = jax.jit(sums)

    def loss(self, params: Params) -> float:
        """Mean over the tokens that are learnt."""
        parts = [
            self._sums(params, shard_batch(self.mesh, m)) for m in split_microbatches(self.batch, self.rows_at_once)
        ]
        loss, tokens = np.stack(jax.device_get(parts)).astype(np.float64).sum(axis=0)
        return float(loss / tokens)


def run(config: SFTConfig, workdir: pathlib.Path) -> None:
    """Trains the policy of `config.init`; leaves the new policy, metrics and `summary.json`."""
    model, tokenizer = describe_source(config.init, workdir)
    mesh = make_mesh(mesh_sizes(config.mesh, model))
    check_model(config, model, mesh)
    check_paths(config, workdir)
    data, training = prepare(config, workdir, tokenizer)
    trainer = Trainer(training, model, mesh)
    held_out = HeldOut(data.held_out, training, model, mesh) if data.held_out is not None else None

    def start() -> TrainState:
        policy = load_policy(config.init, workdir, mesh)
        describe_policy(workdir, policy)
        return state_from_params(trainer.optimizer, policy.params, mesh)

    def measure(step: int, state: TrainState) -> dict[str, float]:
        due = step % config.validation_every == 0 or step == training.steps
        return {VALIDATION_LOSS: held_out.loss(state.params)} if held_out is not None and due else {}

    with Interruption() as interruption:
        state = fit(training, workdir, model, data.train, trainer, start, interruption, measure)
        save_policy(workdir, state.params, training.steps)
        summary = summarize(config, training, model, data, from_writer(lambda: read_rows(workdir / "metrics.jsonl")))
        write_atomically(workdir / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        interruption.pass_on()


def summarize(
    config: SFTConfig, training: Training, model: ModelConfig, data: TrainingSet, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What a whole run says of itself."""
    paths = [file.path for file in config.data]
    plan = data.train.plan(training.row_length)
    losses = [row[VALIDATION_LOSS] for row in rows if VALIDATION_LOSS in row]
    last = next(row for row in reversed(rows) if "loss" in row)
    return {
        "stage": "sft",
        "steps": training.steps,
        "epochs": training.steps * training.rows / plan.num_rows,
        "data": [{"path": path, **counts} for path, counts in zip(paths, data.counts, strict=True)],
        "samples": len(data.train),
        "held_out": len(data.held_out) if data.held_out is not None else 0,
        "packed_rows": plan.num_rows,
        "fill": plan.fill,
        "tokens": len(data.train.tokens),
        "learnt_tokens": int(np.sum(data.train.loss_mask)),
        "parameters": param_count(model),
        "validation": {"first": losses[0], "last": losses[-1], "best": min(losses)} if losses else None,
        "last": {name: value for name, value in last.items() if name != "time"},
        "cost": training_cost(training, model, data.train, rows),
    }
