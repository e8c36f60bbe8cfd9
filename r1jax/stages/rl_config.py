"""What an RL run is made of."""

from __future__ import annotations

import dataclasses
from typing import Any

from r1jax.algorithms.grpo import GRPO_PRESETS, GRPOConfig, length_limit
from r1jax.data.sources import SourceConfig
from r1jax.optim import OptimizerConfig
from r1jax.rewards.combine import RewardConfig
from r1jax.rollout import DecodingConfig, PromptConfig
from r1jax.settings import ConfigError, from_config
from r1jax.sharding import MeshConfig
from r1jax.stages.policy import PolicySource


@dataclasses.dataclass(frozen=True)
class InRunEvaluation:
    """A small evaluation now and then, for the curves; the stage `evaluate` makes the figures that count."""

    source: SourceConfig = dataclasses.field(default_factory=lambda: SourceConfig(split="validation", size=64, seed=1))
    every: int = 10  # rollouts; 0: never; every question gets group_size answers, as in training


@dataclasses.dataclass(frozen=True)
class LatePhase:
    """Other questions from some rollout on: the paper's last RL phase brings general data, and with it the preference
    rewards, only in the last 400 of its 1,700 updates (R1v2 3.2.2)."""

    from_rollout: int
    source: SourceConfig

    def __post_init__(self) -> None:
        if self.from_rollout < 1:
            raise ValueError(f"from_rollout: {self.from_rollout}; at least 1, else `source` is never asked")


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """One RL run."""

    rollouts: int = 60
    init: PolicySource = dataclasses.field(default_factory=lambda: PolicySource("stage", "../pretrain"))
    seed: int = 0
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    source: SourceConfig = dataclasses.field(default_factory=lambda: SourceConfig(split="rl", size=20_000))
    late: LatePhase | None = None  # instead of `source` from one of the rollouts on
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    length_schedule: tuple[tuple[int, int], ...] = ()  # (first update, response limit); empty: decoding.max_new_tokens
    prompts: int = 32  # questions of one rollout
    group_size: int = 16  # G, answers to each
    minibatches: int = 1  # updates of one pass over a rollout
    inner_epochs: int = 1
    # Of MoE models: measures how often the trainer chooses other experts than the sampler. Every host then holds layers
    # x active experts numbers for each token of a rollout: off where responses are long and models large.
    record_experts: bool = True
    row_length: int = 256  # packed rows of the trainer
    micro_rows: int = 16
    shared_prompts: bool = False  # a row holds a prompt once for all its responses: pays where prompts are long
    preset: str = "r1_zero"  # a key of GRPO_PRESETS
    grpo: dict[str, Any] = dataclasses.field(default_factory=dict)  # fields of GRPOConfig that differ from the preset
    max_draws: int = 10  # dynamic sampling: draws of `prompts` questions for one rollout before giving up
    rewards: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    shuffle_rewards: bool = False  # control: rewards are permuted within each group, so that they carry no information
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    reference_every: int = 400  # updates between two refreshes of the reference, from the next rollout on; 0: never
    # 'device', or 'host': the reference's parameters come to the device only while they score a mini-batch
    reference_memory: str = "device"
    router_bias_rate: float = 0.0  # 0: the balancing bias is frozen
    sequence_loss: float = 0.0  # weight of the sequence-wise balance loss
    evaluation: InRunEvaluation = dataclasses.field(default_factory=InRunEvaluation)
    log_samples: int = 16  # completions of each rollout that go to samples.jsonl
    checkpoint_every: int = 10  # rollouts
    keep: int = 2
    tensorboard: bool = True
    wandb_project: str = ""  # also log to this project of Weights & Biases (extra `wandb`); empty: do not

    def __post_init__(self) -> None:
        if self.preset not in GRPO_PRESETS:
            raise ValueError(f"preset: {self.preset!r} is not one of {sorted(GRPO_PRESETS)}")
        if self.reference_memory not in ("device", "host"):
            raise ValueError(f"reference_memory: {self.reference_memory!r} is neither 'device' nor 'host'")
        self._check_counts()
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
        if self.late is not None and self.late.from_rollout >= self.rollouts:
            raise ValueError(
                f"late.from_rollout: {self.late.from_rollout} is not one of the rollouts 0 to {self.rollouts - 1}"
            )
        if self.shared_prompts and self.sequence_loss:
            raise ValueError(
                "sequence_loss: the sequence-wise balance loss needs whole sequences; not with shared_prompts"
            )
        if not self.decoding.temperature > 0:
            raise ValueError(f"decoding.temperature: {self.decoding.temperature}; RL needs samples, so more than 0")
        shortest = self.response_limit(0)  # refuses a schedule that does not start at 0 or does not ascend
        for _, limit in self.length_schedule:
            shortest = min(shortest, limit)
            if limit > self.decoding.max_new_tokens:
                raise ValueError(
                    f"length_schedule: {limit} exceeds decoding.max_new_tokens = {self.decoding.max_new_tokens}"
                )
        if self.grpo_config.overlong_cache >= shortest:
            raise ValueError(
                f"grpo.overlong_cache: {self.grpo_config.overlong_cache} leaves no room below the shortest response "
                f"limit, {shortest}"
            )

    def _check_counts(self) -> None:
        least = dict.fromkeys(("rollouts", "prompts", "minibatches", "inner_epochs", "row_length", "micro_rows"), 1)
        least |= dict.fromkeys(("max_draws", "checkpoint_every", "keep"), 1)
        least |= {"group_size": 2, "reference_every": 0, "log_samples": 0}  # of one answer every advantage is 0
        for name, allowed in least.items():
            if getattr(self, name) < allowed:
                raise ValueError(f"{name}: {getattr(self, name)}; at least {allowed}")

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

    @property
    def longest_response(self) -> int:
        """Longest response, in tokens, of any rollout."""
        return max((limit for _, limit in self.length_schedule), default=self.decoding.max_new_tokens)
