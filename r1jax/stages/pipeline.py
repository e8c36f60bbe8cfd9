"""Several stages in one work directory, one folder each; what is done is skipped.

The paper's phases are such chains: each stage reads the policy that an earlier folder holds (`init.path` is relative to
the stage's own folder). A stage is done when its `summary.json` is there.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console

from r1jax.data.errors import DataError
from r1jax.data.tokenizer import Tokenizer
from r1jax.evaluation.report import write_report
from r1jax.model.config import ModelConfig
from r1jax.rollout import encode_prompts
from r1jax.settings import ConfigError, from_config, to_plain
from r1jax.stages import evaluate, pretrain, rl
from r1jax.stages.checks import Planned, Stage, source_of
from r1jax.workdir import open_workdir

SINGLE_STAGES: Mapping[str, Stage] = {
    "pretrain": Stage(pretrain.PretrainConfig, pretrain.check, pretrain.run),
    "rl": Stage(rl.RLConfig, rl.check, rl.run),
    "evaluate": Stage(evaluate.EvaluateConfig, evaluate.check, evaluate.run),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One stage of a pipeline: its folder's name, its kind, its fields."""

    name: str
    stage: str
    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.stage not in SINGLE_STAGES:
            raise ValueError(f"{self.name!r}: stage: {self.stage!r} is not one of {sorted(SINGLE_STAGES)}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f"name: {self.name!r} cannot be a folder's name")


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Stages in the order in which they run."""

    steps: tuple[Step, ...]
    title: str = ""

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"steps: the name {twice[0]!r} is used twice")
        if not names:
            raise ValueError("steps: a pipeline needs at least one stage")
        stage_configs(self)


def run(config: PipelineConfig, workdir: pathlib.Path) -> None:
    """Runs the stages that are not done, then writes `report.html`."""
    console = rich.console.Console(stderr=True)
    configs = stage_configs(config)
    for index, (step, stage_config) in enumerate(zip(config.steps, configs, strict=True)):
        folder = open_workdir(workdir / step.name, {"stage": step.stage, **to_plain(stage_config)})
        if (folder / "summary.json").exists():
            console.print(f"[green]{step.name}[/green]: done before", highlight=False)
            continue
        console.print(f"[bold]{step.name}[/bold] ({step.stage})", highlight=False)
        began = time.monotonic()
        if isinstance(stage_config, pretrain.PretrainConfig):
            pretrain.run(stage_config, folder, _PromptCheck(config, configs, workdir, index))
        else:
            SINGLE_STAGES[step.stage].run(stage_config, folder)
        console.print(f"[green]{step.name}[/green]: done in {time.monotonic() - began:.0f} s", highlight=False)
    report = write_report(workdir, [step.name for step in config.steps], title=config.title)
    console.print(f"report: {report}", highlight=False)


def check(config: PipelineConfig, workdir: pathlib.Path, before: Planned) -> None:
    """Everything that can be known to be wrong with any stage, before the first one starts."""
    planned = dict(before)
    for step, stage_config in zip(config.steps, stage_configs(config), strict=True):
        folder = workdir / step.name
        model = _checked(step, stage_config, folder, planned) if not (folder / "summary.json").exists() else None
        if model is not None:
            planned[folder.resolve()] = model


def _checked(step: Step, stage_config: Any, folder: pathlib.Path, planned: Planned) -> ModelConfig | None:
    try:
        return SINGLE_STAGES[step.stage].check(stage_config, folder, planned)
    except DataError as error:
        raise DataError(f"steps[{step.name}].config: {error}") from error
    except ValueError as error:
        raise ConfigError(f"steps[{step.name}].config: {error}") from error


class _PromptCheck:
    """Once a base model's tokenizer is made: whether the prompts of later stages that start from it fit."""

    def __init__(self, config: PipelineConfig, configs: Sequence[Any], workdir: pathlib.Path, index: int) -> None:
        self.config, self.configs, self.workdir, self.index = config, configs, workdir, index

    def __call__(self, model: ModelConfig, tokenizer: Tokenizer) -> None:
        """Raises DataError naming stage, source and example."""
        with_tokenizer = {(self.workdir / self.config.steps[self.index].name).resolve()}
        for step, config in list(zip(self.config.steps, self.configs, strict=True))[self.index + 1 :]:
            folder = (self.workdir / step.name).resolve()
            if isinstance(config, pretrain.PretrainConfig):
                continue
            if (folder / config.init.path).resolve() not in with_tokenizer or config.init.kind != "stage":
                continue
            with_tokenizer.add(folder)  # RL hands the tokenizer on
            sources = {"source": config.source}
            if isinstance(config, rl.RLConfig) and config.evaluation.every:
                sources["evaluation.source"] = config.evaluation.source
            for field, source in sources.items():
                try:
                    encode_prompts(source_of(field, source), tokenizer, config.prompt)
                except DataError as error:
                    raise DataError(f"steps[{step.name}].config.{field}: {error}") from error


def stage_configs(config: PipelineConfig) -> list[Any]:
    """The typed configuration of every stage. Raises ConfigError naming the stage and the field."""
    return [
        from_config(SINGLE_STAGES[step.stage].config, step.config, f"steps[{step.name}].config")
        for step in config.steps
    ]
