"""Several stages in one work directory, one folder each; what is done is skipped.

The paper's phases are such chains: each stage reads the policy that an earlier folder holds (`init.path` is relative to
the stage's own folder). A stage is done when its `summary.json` is there.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import rich.console

from r1jax.evaluation.report import write_report
from r1jax.metrics import open_workdir
from r1jax.settings import ConfigError, from_config
from r1jax.stages import evaluate, pretrain, rl

Stage = tuple[type, Callable[[Any, pathlib.Path], None]]

SINGLE_STAGES: Mapping[str, Stage] = {
    "pretrain": (pretrain.PretrainConfig, pretrain.run),
    "rl": (rl.RLConfig, rl.run),
    "evaluate": (evaluate.EvaluateConfig, evaluate.run),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One stage of a pipeline: its folder's name, its kind, its fields."""

    name: str
    stage: str
    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.stage not in SINGLE_STAGES:
            raise ValueError(f"stage: {self.stage!r} is not one of {sorted(SINGLE_STAGES)}")
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


def run(config: PipelineConfig, workdir: pathlib.Path) -> None:
    """Runs the stages that are not done, then writes `report.html`."""
    console = rich.console.Console(stderr=True)
    # Every stage's fields are checked before the first one starts.
    configs = stage_configs(config)
    for step, stage_config in zip(config.steps, configs, strict=True):
        folder = open_workdir(workdir / step.name, _plain({"stage": step.stage, **step.config}))
        if (folder / "summary.json").exists():
            console.print(f"[green]{step.name}[/green]: done before", highlight=False)
            continue
        console.print(f"[bold]{step.name}[/bold] ({step.stage})", highlight=False)
        began = time.monotonic()
        SINGLE_STAGES[step.stage][1](stage_config, folder)
        console.print(f"[green]{step.name}[/green]: done in {time.monotonic() - began:.0f} s", highlight=False)
    report = write_report(workdir, [step.name for step in config.steps], title=config.title)
    console.print(f"report: {report}", highlight=False)


def stage_configs(config: PipelineConfig) -> list[Any]:
    """The typed configuration of every stage. Raises ConfigError naming the stage and the field."""
    return [
        from_config(SINGLE_STAGES[step.stage][0], step.config, f"steps[{step.name}].config") for step in config.steps
    ]


def _plain(value: Any) -> Any:
    """Nested dicts and lists for JSON."""
    if hasattr(value, "items"):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is not None and not isinstance(value, (str, int, float, bool)):
        raise ConfigError(f"{value!r} cannot be written to config.json")
    return value
