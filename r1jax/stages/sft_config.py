"""What a fine-tuning run is made of."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from r1jax.data.chat import FORMATS, OWN
from r1jax.optim import OptimizerConfig
from r1jax.rollout import PromptConfig
from r1jax.settings import ConfigError, from_config
from r1jax.sharding import MeshConfig
from r1jax.stages.next_token import BalanceConfig
from r1jax.stages.policy import PolicySource

REFUSE, DROP = "refuse", "drop"


@dataclasses.dataclass(frozen=True)
class SFTData:
    """One file of samples and its part in the mix."""

    path: str  # of a file that `data.samples.read_samples` reads, relative to the stage's workdir
    # Proportion of the mix, in samples: 3 and 1 are three quarters and one. None, of all files: everything is used.
    share: float | None = None
    limit: int = 0  # the first ones only; 0: all

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path: a file of samples is needed")
        if self.share is not None and not 0 < self.share < math.inf:
            raise ValueError(f"share: {self.share} is not positive")
        if self.limit < 0:
            raise ValueError(f"limit: {self.limit} is negative")


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """One fine-tuning run. The defaults of epochs and optimiser are R1's (R1v2 B.4.2), sizes are a laptop's."""

    data: tuple[SFTData, ...]
    init: PolicySource = dataclasses.field(default_factory=lambda: PolicySource("stage", "../pretrain"))
    epochs: float | None = 2.0  # rounded up to whole updates; None: `steps` says how long
    steps: int | None = None  # updates; None: `epochs` says how long
    rows: int = 16  # packed rows of one update
    micro_rows: int = 0  # rows of one forward and backward pass; 0: all
    row_length: int = 160
    too_long: str = REFUSE  # a sample that does not fit a row, or its prompt not prompt.width: 'refuse' or 'drop'
    seed: int = 0
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)  # of samples with question and completion
    # Of samples with messages: a key of data.chat.FORMATS, or 'own' for the checkpoint's; empty: prompt.chat_format.
    chat_format: str = ""
    # Fields of OptimizerConfig that differ from a cosine from 5e-5 to a tenth; total_steps is the run's own length.
    optimizer: dict[str, Any] = dataclasses.field(default_factory=dict)
    balance: BalanceConfig = dataclasses.field(default_factory=lambda: BalanceConfig(0.0, 0.0))  # bias frozen, no loss
    mtp_weight: float = 0.0  # lambda of V3 eq. 25; 0: the module stays as it is
    validation_share: float = 0.0  # of the mix's questions, all samples of each: held out for a validation loss
    validation_every: int = 50  # steps; also before the first and after the last
    log_every: int = 10
    checkpoint_every: int = 100
    keep: int = 2
    tensorboard: bool = True
    wandb_project: str = ""  # also log to this project of Weights & Biases (extra `wandb`); empty: do not

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data: at least one file of samples is needed")
        shares = [data.share for data in self.data]
        if None in shares and any(share is not None for share in shares):
            raise ValueError(f"data: either every file has a share or none: {shares}")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"epochs, steps: {self.epochs}, {self.steps}; one of them says how long, the other is None"
            )
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs: {self.epochs} is not positive")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps: {self.steps}; at least 1")
        for name in ("rows", "row_length", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; at least 1")
        if self.micro_rows < 0:
            raise ValueError(f"micro_rows: {self.micro_rows}; at least 1, or 0 for all rows")
        if self.rows % (self.micro_rows or self.rows):
            raise ValueError(f"micro_rows: {self.micro_rows} does not divide rows = {self.rows}")
        if self.too_long not in (REFUSE, DROP):
            raise ValueError(f"too_long: {self.too_long!r} is not one of {REFUSE!r}, {DROP!r}")
        if self.chat_format not in ("", OWN, *FORMATS):
            raise ValueError(f"chat_format: {self.chat_format!r} is not one of {sorted((*FORMATS, OWN))}")
        if self.chat_format and self.prompt.chat_format not in ("", self.chat_format):
            raise ValueError(f"chat_format: {self.chat_format!r}, but prompt.chat_format = {self.prompt.chat_format!r}")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share: {self.validation_share} is not in 0..1")
        if self.validation_every < 1:
            raise ValueError(f"validation_every: {self.validation_every}; at least 1")
        if "total_steps" in self.optimizer:
            raise ValueError("optimizer.total_steps: follows from epochs or steps, leave it out")
        self.optimizer_config(2**31)  # refuses fields that are wrong whatever the length

    def optimizer_config(self, total_steps: int) -> OptimizerConfig:
        """The optimiser of a run of so many updates."""
        fields = {"learning_rate": 5e-5, "schedule": "cosine", "final_fraction": 0.1, **self.optimizer}
        try:
            return from_config(OptimizerConfig, {**fields, "total_steps": total_steps}, "optimizer")
        except ConfigError as error:  # a plain ValueError gets the path of this config in front
            raise ValueError(str(error)) from error
