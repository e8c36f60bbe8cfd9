"""Next-token pretraining of a small base model on the synthetic corpus.

The paper starts from DeepSeek-V3-Base (V3 section 4); here a base is made from nothing, in minutes: a sentencepiece
model of the corpus, packed documents that do not see each other, AdamW, the multi-token prediction loss (V3 eq. 24-25),
the auxiliary-loss-free balancing of experts with its small sequence-wise loss (V3 section 2.1.2). Left out: the
fill-in-the-middle documents and the batch-size ramp of V3. Unlike V3, which let documents of a row see each other,
they are masked apart; lambda of the MTP loss and the speed of the bias are constant, where V3 lowers them at the end.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from r1jax.algorithms.cross_entropy import mtp_acceptance, mtp_loss, next_token_loss
from r1jax.algorithms.router_bias import expert_load_metrics, is_router_bias
from r1jax.checkpoint import CheckpointStore
from r1jax.data.corpus import CorpusConfig, Document, write_corpus
from r1jax.data.packing import Documents, split_microbatches
from r1jax.data.pipelines import BatchIterator, packed_iterator
from r1jax.data.tokenizer import SentencePieceTokenizer, Tokenizer, train_sentencepiece
from r1jax.metrics import CompileCounter, MetricWriter, Progress, check_finite, read_rows
from r1jax.model.config import ModelConfig
from r1jax.model.heads import unembedding
from r1jax.model.outputs import Output
from r1jax.model.transformer import Transformer, param_count
from r1jax.optim import OptimizerConfig, learning_rate_schedule, make_optimizer
from r1jax.settings import ConfigError
from r1jax.sharding import MeshConfig, make_mesh, shard_batch
from r1jax.stages.checks import Planned, check_divides, check_trainable
from r1jax.stages.interruption import Interruption
from r1jax.stages.policy import ModelChoice, save_policy
from r1jax.stages.state import (
    Accumulated,
    GradientAccumulator,
    TrainState,
    abstract_state,
    apply_gradients,
    create_state,
    forward,
)
from r1jax.types import Array, PackedBatch, Params
from r1jax.weights.policy_folder import write_description
from r1jax.workdir import write_atomically


@dataclasses.dataclass(frozen=True)
class BalanceConfig:
    """Expert balancing (V3 section 4.2: rate 0.001 for most of training, alpha 1e-4)."""

    router_bias_rate: float = 0.001
    sequence_loss: float = 1e-4


def pretrain_gradients(
    model: Transformer, mtp_weight: float, sequence_loss: float, params: Params, batch: PackedBatch, totals: Array
) -> Accumulated:
    """Gradients and sums of one micro-batch.

    totals: [2] float32, trained tokens and sequences of the whole batch, so that micro-batches simply add up.
    """
    tokens, sequences = totals[0], totals[1]

    def loss_of(params: Params) -> tuple[Array, tuple[Output, dict[str, Array]]]:
        output = forward(model, params, batch)
        unembed = unembedding(params, model.cfg)
        loss, sums = next_token_loss(output.hidden, unembed, batch)
        if output.aux.mtp_hidden is not None:
            second, mtp_sums = mtp_loss(output.aux.mtp_hidden, unembed, batch)
            loss = loss + mtp_weight * second
            sums |= mtp_sums | mtp_acceptance(output.aux.mtp_hidden, output.hidden, unembed, batch)
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


TAG_TOKENS = (" <think>", " </think>", " <answer>", " </answer>")
"""The tags of the R1-Zero template, with the space that stands before them in the corpus, are one token each."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The sentencepiece model that is trained on the corpus."""

    vocab_size: int = 640
    sentences: int = 20_000  # documents of the corpus it learns from


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run; `configs/r1_zero.py` has one."""

    steps: int = 1000
    rows: int = 16  # packed rows of one update
    micro_rows: int = 0  # rows of one forward and backward pass; 0: all
    row_length: int = 160
    seed: int = 0
    model: ModelChoice = dataclasses.field(default_factory=ModelChoice)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    corpus: CorpusConfig = dataclasses.field(default_factory=CorpusConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    balance: BalanceConfig = dataclasses.field(default_factory=BalanceConfig)
    mtp_weight: float = 0.3  # lambda of V3 eq. 25
    log_every: int = 10
    checkpoint_every: int = 100
    keep: int = 2
    tensorboard: bool = True
    wandb_project: str = ""  # also log to this project of Weights & Biases (extra `wandb`); empty: do not

    def __post_init__(self) -> None:
        if self.rows % (self.micro_rows or self.rows):
            raise ValueError(f"micro_rows: {self.micro_rows} does not divide rows = {self.rows}")


def check(config: PretrainConfig, workdir: pathlib.Path, planned: Planned) -> ModelConfig:
    """Everything that can be known to be wrong before the stage starts. Returns the model it will leave."""
    model = config.model.build(vocab_size=config.tokenizer.vocab_size)
    check_trainable(model)
    if config.row_length > model.max_positions:
        raise ConfigError(
            f"row_length: {config.row_length} exceeds the model's context, max_positions = {model.max_positions}"
        )
    field, rows = ("micro_rows", config.micro_rows) if config.micro_rows else ("rows", config.rows)
    check_divides(field, rows, make_mesh(config.mesh))
    return model


def run(
    config: PretrainConfig,
    workdir: pathlib.Path,
    described: Callable[[ModelConfig, Tokenizer], None] = lambda model, tokenizer: None,
) -> None:
    """Trains, and leaves the policy, metrics and `summary.json` in `workdir`.

    `described` is called before training starts, once the tokenizer is known; it may refuse by an error.
    """
    mesh = make_mesh(config.mesh)
    check(config, workdir, {})
    documents = list(write_corpus(config.corpus))
    tokenizer = corpus_tokenizer(config, documents, workdir)
    model = config.model.build(vocab_size=tokenizer.vocab_size)
    write_description(workdir, model, tokenizer)
    described(model, tokenizer)
    packed = tokenize(documents, tokenizer)
    batches = packed_iterator(packed, config.row_length, config.rows, config.seed)
    trainer = Trainer(config, model, mesh)
    store = CheckpointStore(workdir / "checkpoints", config.keep)
    with MetricWriter(workdir, config.tensorboard, config.wandb_project) as writer, Interruption() as interruption:
        if store.latest() is None:
            writer.rewind(None)
            state = create_state(model, trainer.optimizer, jax.random.key(config.seed), mesh)
        else:
            _, state, saved = store.restore(abstract_state(model, trainer.optimizer, mesh))
            writer.rewind(saved["writer"])
            batches.set_state(saved["batches"])
        state = train(config, workdir, state, batches, trainer, writer, store, interruption)
    save_policy(workdir, state.params, config.steps)
    last = read_rows(workdir / "metrics.jsonl")[-1]
    summary = {
        "stage": "pretrain",
        "steps": config.steps,
        "documents": corpus_shares(documents),
        "tokens": len(packed.tokens),
        "parameters": param_count(model),
        "last": {name: value for name, value in last.items() if name != "time"},
    }
    write_atomically(workdir / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    interruption.pass_on()


def train(
    config: PretrainConfig,
    workdir: pathlib.Path,
    state: TrainState,
    batches: BatchIterator[PackedBatch],
    trainer: Trainer,
    writer: MetricWriter,
    store: CheckpointStore,
    interruption: Interruption,
) -> TrainState:
    """The loop: batch, update, log, save."""
    start = int(state.step)
    tokens_seen, compiled, since = 0, 0, time.monotonic()
    with Progress("pretrain", config.steps, start) as progress, CompileCounter() as compiles:
        watch = LossWatch(workdir)
        for step in range(start + 1, config.steps + 1):
            batch = next(batches)
            state, metrics = trainer.update(state, batch)
            watch(step, metrics, batch)
            tokens_seen += int(np.sum(batch.loss_mask))
            if step % config.log_every == 0 or step == config.steps:
                watch.settle()
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                rate = tokens_seen / (time.monotonic() - since)
                clock = {"tokens_per_second": rate, "compilations": compiles.count - compiled}  # since the last row
                compiled = compiles.count
                writer.write(step, values, clock)
                progress.update(step, loss=values["loss"], tokens_per_second=rate)
                tokens_seen, since = 0, time.monotonic()
            if step % config.checkpoint_every == 0 or step == config.steps or interruption.requested:
                watch.settle()  # nothing is saved before its loss is known to be finite
                store.save(step, state, {"writer": writer.state(), "batches": batches.get_state()})
            if interruption.requested and step < config.steps:
                interruption.stop(f"step {step} of {config.steps}")
    return state


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


class Trainer:
    """The compiled update of one pretraining run."""

    def __init__(self, config: PretrainConfig, model: ModelConfig, mesh: Mesh) -> None:
        self.config = config
        self.mesh = mesh
        self.optimizer = make_optimizer(config.optimizer, freeze=is_router_bias)
        schedule = learning_rate_schedule(config.optimizer)
        gradients = partial(
            pretrain_gradients, Transformer(model, mesh), config.mtp_weight, config.balance.sequence_loss
        )
        self._accumulate = GradientAccumulator(gradients)

        def apply(state: TrainState, total: Accumulated) -> tuple[TrainState, dict[str, Array]]:
            new, metrics = apply_gradients(
                state, total, self.optimizer, config.balance.router_bias_rate, is_router_bias
            )
            return new, metrics | pretrain_metrics(total) | {"learning_rate": schedule(state.step)}

        self._apply = jax.jit(apply, donate_argnums=0)

    def update(self, state: TrainState, batch: PackedBatch) -> tuple[TrainState, dict[str, Array]]:
        """One optimiser update on a host batch [rows, row_length]; the metrics stay on the device."""
        sequences = sum(len(np.unique(row[row > 0])) for row in batch.segment_ids)
        totals = np.array([np.sum(batch.loss_mask), max(sequences, 1)], np.float32)
        total = None
        for micro in split_microbatches(batch, self.config.micro_rows or self.config.rows):
            total = self._accumulate(total, state.params, shard_batch(self.mesh, micro), totals)
        assert total is not None
        return self._apply(state, total)


def pretrain_metrics(total: Accumulated) -> dict[str, Array]:
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


def corpus_tokenizer(config: PretrainConfig, documents: Sequence[Document], workdir: pathlib.Path) -> Tokenizer:
    """The stored tokenizer of this workdir, or a new one trained on the corpus."""
    path = workdir / "tokenizer.model"
    if path.exists():
        return SentencePieceTokenizer(path)
    texts = [document.text for document in documents[: config.tokenizer.sentences]]
    partial = path.with_name(path.name + ".partial")
    train_sentencepiece(texts, partial, config.tokenizer.vocab_size, TAG_TOKENS, split_digits=False)
    partial.replace(path)
    return SentencePieceTokenizer(path)


def tokenize(documents: Sequence[Document], tokenizer: Tokenizer) -> Documents:
    """Every document between bos and eos."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return Documents.from_pairs([([*bos, *tokenizer.encode(d.text), tokenizer.eos_id], None) for d in documents])


def corpus_shares(documents: Sequence[Document]) -> dict[str, float]:
    """Share of each document kind."""
    counts = collections.Counter(document.kind for document in documents)
    return {kind: count / len(documents) for kind, count in sorted(counts.items())}
