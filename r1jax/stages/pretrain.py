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
from collections.abc import Callable, Sequence

import jax

from r1jax.data.corpus import CorpusConfig, Document, write_corpus
from r1jax.data.packing import Documents
from r1jax.data.tokenizer import SentencePieceTokenizer, Tokenizer, train_sentencepiece
from r1jax.metrics import read_rows
from r1jax.model.config import ModelConfig
from r1jax.model.transformer import param_count
from r1jax.optim import OptimizerConfig
from r1jax.processes import from_writer
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages.checks import Planned, check_trainable, mesh_sizes
from r1jax.stages.interruption import Interruption
from r1jax.stages.next_token import BalanceConfig, Trainer, Training, check_rows, fit, training_cost
from r1jax.stages.policy import ModelChoice, save_policy
from r1jax.stages.state import TrainState, create_state
from r1jax.weights.policy_folder import write_description
from r1jax.workdir import write_atomically

TAG_TOKENS = (" <think>", " </think>", " <answer>", " </answer>")
"""The tags of the R1-Zero template, with the space that stands before them in the corpus, are one token each."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The sentencepiece model that is trained on the corpus."""

    vocab_size: int = 640
    sentences: int = 20_000  # documents of the corpus it learns from
    words: tuple[str, ...] = ()  # that are one token each wherever a blank stands before them, in the corpus or not

    def __post_init__(self) -> None:
        for word in self.words:
            if not word or word != "".join(word.split()):
                raise ValueError(f"words: {word!r} is not one word")


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
        for name in ("steps", "rows", "row_length", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; at least 1")
        if self.micro_rows < 0:
            raise ValueError(f"micro_rows: {self.micro_rows}; at least 1, or 0 for all rows")
        if self.rows % (self.micro_rows or self.rows):
            raise ValueError(f"micro_rows: {self.micro_rows} does not divide rows = {self.rows}")


def check(config: PretrainConfig, workdir: pathlib.Path, planned: Planned) -> ModelConfig:
    """Everything that can be known to be wrong before the stage starts. Returns the model it will leave."""
    model = config.model.build(vocab_size=config.tokenizer.vocab_size)
    check_trainable(model, config.optimizer)
    check_rows(config.rows, config.micro_rows, config.row_length, model, make_mesh(mesh_sizes(config.mesh, model)))
    return model


def run(
    config: PretrainConfig,
    workdir: pathlib.Path,
    described: Callable[[ModelConfig, Tokenizer], None] = lambda model, tokenizer: None,
) -> None:
    """Trains, and leaves the policy, metrics and `summary.json` in `workdir`.

    `described` is called before training starts, once the tokenizer is known; it may refuse by an error.
    """
    mesh = make_mesh(mesh_sizes(config.mesh, check(config, workdir, {})))
    documents = list(write_corpus(config.corpus))
    tokenizer = corpus_tokenizer(config, documents, workdir)
    model = config.model.build(vocab_size=tokenizer.vocab_size)
    write_description(workdir, model, tokenizer)
    described(model, tokenizer)
    packed = tokenize(documents, tokenizer)
    training = training_of(config)
    trainer = Trainer(training, model, mesh)

    def start() -> TrainState:
        return create_state(model, trainer.optimizer, jax.random.key(config.seed), mesh)

    with Interruption() as interruption:
        state = fit(training, workdir, model, packed, trainer, start, interruption)
        save_policy(workdir, state.params, config.steps)
        rows = from_writer(lambda: read_rows(workdir / "metrics.jsonl"))
        summary = {
            "stage": "pretrain",
            "steps": config.steps,
            "documents": corpus_shares(documents),
            "tokens": len(packed.tokens),
            "parameters": param_count(model),
            "last": {name: value for name, value in rows[-1].items() if name != "time"},
            "cost": training_cost(training, model, packed, rows),
        }
        write_atomically(workdir / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        interruption.pass_on()


def training_of(config: PretrainConfig) -> Training:
    """What the loop has to know."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(Training) if field.name != "name"}
    return Training(name="pretrain", **fields)


def corpus_tokenizer(config: PretrainConfig, documents: Sequence[Document], workdir: pathlib.Path) -> Tokenizer:
    """The stored tokenizer of this workdir, or a new one trained on the corpus."""
    path = workdir / "tokenizer.model"
    if not from_writer(path.exists):
        from_writer(lambda: _train_tokenizer(config, documents, path))
    return SentencePieceTokenizer(path)


def _train_tokenizer(config: PretrainConfig, documents: Sequence[Document], path: pathlib.Path) -> None:
    texts = [document.text for document in documents[: config.tokenizer.sentences]]
    partial = path.with_name(path.name + ".partial")
    words = tuple(f" {word}" for word in config.tokenizer.words)
    train_sentencepiece(texts, partial, config.tokenizer.vocab_size, (*TAG_TOKENS, *words), split_digits=False)
    partial.replace(path)


def tokenize(documents: Sequence[Document], tokenizer: Tokenizer) -> Documents:
    """Every document between bos and eos."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return Documents.from_pairs([([*bos, *tokenizer.encode(d.text), tokenizer.eos_id], None) for d in documents])


def corpus_shares(documents: Sequence[Document]) -> dict[str, float]:
    """Share of each document kind."""
    counts = collections.Counter(document.kind for document in documents)
    return {kind: count / len(documents) for kind, count in sorted(counts.items())}
