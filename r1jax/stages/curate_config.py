"""What a stage of curation can be told."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from r1jax.data.decontamination import WORDS_OF_OVERLAP
from r1jax.data.selection import RULES
from r1jax.data.sources import SourceConfig
from r1jax.data.world_replies import Quality
from r1jax.rewards.combine import RewardConfig
from r1jax.rewards.filters import FilterConfig
from r1jax.rollout import DecodingConfig, PromptConfig
from r1jax.sharding import MeshConfig
from r1jax.stages.policy import PolicySource
from r1jax.stages.rewriting import WriterConfig

GENERAL = "general"  # the name of what is joined, where `proportions` does not name its domain


@dataclasses.dataclass(frozen=True)
class GeneralData:
    """Samples of other tasks, joined as they are: the paper's 200k of writing, QA, translation and so on."""

    kind: str = "samples"  # 'samples': a file as `data.samples` reads it; 'world': made by `data.world`
    path: str = ""  # samples: of the file, relative to the stage's own folder
    size: int = 0  # world: how many; samples: the first ones, 0 = all
    seed: int = 0  # world
    split: str = ""  # world: of the requests; empty: 'rl'
    quality: Quality | None = None  # world: of the replies; None: the defaults of `Quality`
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # world: which requests (`world.shares_of`)

    def __post_init__(self) -> None:
        if self.kind not in ("samples", "world"):
            raise ValueError(f"kind: {self.kind!r} is not one of ['samples', 'world']")
        if (self.kind == "samples") != bool(self.path):
            raise ValueError(f"path: {self.path!r}; general data of kind 'samples' needs one, and of 'world' has none")
        if self.size < (self.kind == "world"):
            raise ValueError(f"size: {self.size}; at least {int(self.kind == 'world')}")
        for name in ("seed", "split", "quality", "params"):
            if self.kind == "samples" and getattr(self, name):
                raise ValueError(f"{name}: general data of kind 'samples' does not use this field")


@dataclasses.dataclass(frozen=True)
class DecontaminationConfig:
    """Which evaluation sets nothing may overlap with (`data.decontamination`)."""

    sources: tuple[SourceConfig, ...] = ()
    n: int = WORDS_OF_OVERLAP
    completions: bool = True  # what is said is held against them as well as what is asked

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n: {self.n}; at least 1")


@dataclasses.dataclass(frozen=True)
class CurateConfig:
    """One curation: `samples` answers to each question, of which the good ones are kept."""

    init: PolicySource = dataclasses.field(default_factory=lambda: PolicySource("stage", "../r1_zero"))
    source: SourceConfig = dataclasses.field(default_factory=lambda: SourceConfig(split="rl", size=1024))
    samples: int = 16  # k
    per_prompt: int = 4  # n: at most so many of a question are kept
    selection: str = "random"  # a key of data.selection.RULES: which n of those that passed
    near_duplicates: float | None = None  # least overlap (`data.selection`) that makes two answers the same; None: off
    seed: int = 0
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)  # temperature 1, as in the paper
    rewards: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    filters: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    rewrite: WriterConfig | None = None
    general: tuple[GeneralData, ...] = ()
    # Domain -> weight, of which the largest mixture is taken; "reasoning" and "general" stand for the domains that are
    # not named, of what is sampled and of what is joined. The paper: {"reasoning": 3, "general": 1}. Empty: all is.
    proportions: Mapping[str, float] = dataclasses.field(default_factory=dict)
    decontaminate: DecontaminationConfig = dataclasses.field(default_factory=DecontaminationConfig)
    show_dropped: int = 8  # samples of each filter in dropped_samples.jsonl

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("per_prompt", 1), ("show_dropped", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)}; at least {least}")
        if self.per_prompt > self.samples:
            raise ValueError(f"per_prompt: {self.per_prompt}; there are only samples = {self.samples} of each question")
        if self.selection not in RULES:
            raise ValueError(f"selection: {self.selection!r} is not one of {list(RULES)}")
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise ValueError(f"near_duplicates: {self.near_duplicates} is not a share above 0 and up to 1")
        for group, weight in self.proportions.items():
            if not 0 < weight < math.inf:
                raise ValueError(f"proportions: the weight of {group!r} is {weight}; more than 0")
