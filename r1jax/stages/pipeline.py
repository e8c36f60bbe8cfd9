"""Several stages in one work directory, one folder each; what is done is skipped, what changed is repeated.

The paper's phases are such chains: each stage reads the policy, or the data, that an earlier folder holds (`init.path`
is relative to the stage's own folder). A step is done when its folder has a `summary.json` and was made for its key:
the same configuration and the same inputs (step_keys.py). A folder of another key is moved aside (step_folders.py).
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
from r1jax.evaluation.pipeline_report import ReportConfig, write_pipeline_report
from r1jax.evaluation.report import write_report
from r1jax.model.config import ModelConfig
from r1jax.processes import from_writer, is_writer, wait_for_all
from r1jax.rollout import PromptConfig, encode_prompts
from r1jax.settings import ConfigError, from_config, to_plain
from r1jax.stages import curate, evaluate, preferences, pretrain, reward_model, rl, sft
from r1jax.stages.checks import Planned, Stage, source_of
from r1jax.stages.curate_config import CurateConfig
from r1jax.stages.hand_overs import check_hand_overs
from r1jax.stages.preferences import PreferencesConfig
from r1jax.stages.sft_config import SFTConfig
from r1jax.stages.step_folders import SUMMARY, Placed, find_elsewhere, is_done, place, record_config, sole_user
from r1jax.stages.step_keys import StepKey, changes, read_key, step_keys
from r1jax.types import Example
from r1jax.weights.policy_folder import MODEL_FILE, read_description
from r1jax.workdir import open_workdir

SINGLE_STAGES: Mapping[str, Stage] = {
    "pretrain": Stage(pretrain.PretrainConfig, pretrain.check, pretrain.run),
    "sft": Stage(SFTConfig, sft.check, sft.run),
    "rl": Stage(rl.RLConfig, rl.check, rl.run),
    "curate": Stage(CurateConfig, curate.check, curate.run),
    "preferences": Stage(PreferencesConfig, preferences.check, preferences.run),
    "reward_model": Stage(reward_model.RewardModelConfig, reward_model.check, reward_model.run),
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
    report: ReportConfig | None = None  # which evaluations are compared; None: those before and after RL
    only: str = ""  # name of one step that is run alone, from inputs that are done; empty: all steps
    reuse: tuple[str, ...] = ()  # workdirs of other pipelines: a finished step of the same key is copied, not run

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"steps: the name {twice[0]!r} is used twice")
        if not names:
            raise ValueError("steps: a pipeline needs at least one stage")
        if self.only and self.only not in names:
            raise ValueError(f"only: {self.only!r} is not one of the steps {', '.join(names)}")
        if self.report is not None:
            self.report.check_steps(names)
            kinds = {step.name: step.stage for step in self.steps}
            for label, name in self.report.evaluations().items():
                if kinds[name] != "evaluate":
                    raise ValueError(f"report: {label!r}: the step {name!r} is {kinds[name]!r}, no 'evaluate'")
        stage_configs(self)


@dataclasses.dataclass(frozen=True)
class _Part:
    """One step of a pipeline in its work directory."""

    step: Step
    config: Any  # of the stage's dataclass
    key: StepKey
    folder: pathlib.Path


def run(config: PipelineConfig, workdir: pathlib.Path) -> None:
    """Runs the stages that are not done, and those whose configuration or inputs changed; writes `report.html`.

    Raises:
      ConfigError: `only` names a step whose inputs are not done.
      WorkdirError: the directory is no pipeline's, or another process runs one there.
    """
    console = rich.console.Console(stderr=True, highlight=False, soft_wrap=True, quiet=not is_writer())
    with sole_user(workdir):
        parts = _parts(config, workdir)
        from_writer(lambda: record_config(workdir, recorded_fields(config)))
        for index, part in enumerate(parts):
            if config.only in ("", part.step.name):
                _refuse_missing_inputs(config, part, parts)
                _run_part(config, parts, index, console)
        report = from_writer(lambda: _write_report(config, workdir))
    console.print(f"report: {report}")


def _write_report(config: PipelineConfig, workdir: pathlib.Path) -> pathlib.Path:
    names = [step.name for step in config.steps]
    if config.report is None:
        return write_report(workdir, names, title=config.title)
    return write_pipeline_report(workdir, names, config.report, title=config.title)


def recorded_fields(config: PipelineConfig) -> dict[str, Any]:
    """What `config.json` says of a pipeline: not which of its steps a command ran, nor where it looked for others."""
    fields = to_plain(config)
    return {"stage": "pipeline", **{name: fields[name] for name in fields if name not in ("only", "reuse")}}


def _run_part(config: PipelineConfig, parts: Sequence[_Part], index: int, console: rich.console.Console) -> None:
    part = parts[index]
    name, folder = part.step.name, part.folder
    from_writer(lambda: _tell(name, place(folder, part.key, *_elsewhere(config)), console))
    if from_writer((folder / SUMMARY).exists):
        console.print(f"[green]{name}[/green]: done before")
        return
    if is_writer():
        _tell_others(config, part, console)
    open_workdir(folder, {"stage": part.step.stage, **to_plain(part.config)})
    console.print(f"[bold]{name}[/bold] ({part.step.stage})")
    began = time.monotonic()
    if isinstance(part.config, pretrain.PretrainConfig):
        pretrain.run(part.config, folder, _PromptCheck(parts, index))
    else:
        SINGLE_STAGES[part.step.stage].run(part.config, folder)
    wait_for_all("stage")  # what the writer still had to write is there
    console.print(f"[green]{name}[/green]: done in {time.monotonic() - began:.0f} s")


def _tell(name: str, placed: Placed, console: rich.console.Console) -> None:
    """Says what became of the folders of a step."""
    if placed.aside is not None:
        console.print(f"[yellow]{name}[/yellow]: changed; {placed.aside} keeps what was there")
        for line in placed.changed:
            console.print(f"  {line}", markup=False)
    if placed.back is not None:
        console.print(f"[yellow]{name}[/yellow]: {placed.back}, moved aside earlier, is back")
    if placed.copied is not None:
        console.print(f"[yellow]{name}[/yellow]: copied from {placed.copied}")


def _tell_others(config: PipelineConfig, part: _Part, console: rich.console.Console) -> None:
    """Says why a step that has to be run is not taken from the workdirs of `reuse`."""
    for path in config.reuse:
        folder = pathlib.Path(path) / part.step.name
        there = read_key(folder)
        if there is not None:
            console.print(f"[yellow]{part.step.name}[/yellow]: not taken from {folder}:")
            for line in changes(there, part.key) or ["begun, not done"]:
                console.print(f"  {line}", markup=False)


def _elsewhere(config: PipelineConfig) -> tuple[list[pathlib.Path], list[str]]:
    """Other workdirs to look into, and the names of all steps."""
    return [pathlib.Path(path) for path in config.reuse], [step.name for step in config.steps]


def _parts(config: PipelineConfig, workdir: pathlib.Path) -> list[_Part]:
    configs = stage_configs(config)
    told = [
        (step.name, step.stage, to_plain(stage_config))
        for step, stage_config in zip(config.steps, configs, strict=True)
    ]
    keys = step_keys(told, workdir)
    return [
        _Part(step, stage_config, keys[step.name], workdir / step.name)
        for step, stage_config in zip(config.steps, configs, strict=True)
    ]


def _refuse_missing_inputs(config: PipelineConfig, part: _Part, parts: Sequence[_Part]) -> None:
    """Raises ConfigError naming the steps without which the only one cannot run."""
    missing = [
        f"{other.step.name} ({_state(other)})"
        for other in parts
        if other.step.name in part.key.steps and not is_done(other.folder, other.key)
    ]
    if config.only and missing:
        raise ConfigError(f"only: {part.step.name!r} reads steps that are not there: {'; '.join(missing)}")


def _state(part: _Part) -> str:
    """How far a step is, in words; empty once it is done."""
    if is_done(part.folder, part.key):
        return ""
    there = read_key(part.folder)
    if there is None:
        return "not begun"
    differing = changes(there, part.key)
    return f"made by another config: {'; '.join(differing)}" if differing else "begun, not done"


def unfinished(config: PipelineConfig, workdir: pathlib.Path) -> dict[str, str]:
    """The steps that a run would still have to do or repeat, and how far each is."""
    states = {part.step.name: _state(part) for part in _parts(config, workdir)}
    return {name: state for name, state in states.items() if state}


def check(config: PipelineConfig, workdir: pathlib.Path, before: Planned) -> None:
    """Everything that can be known to be wrong with any stage that has to run, before the first one starts."""
    planned = dict(before)
    for path in config.reuse:
        if not pathlib.Path(path).is_dir():
            raise ConfigError(f"reuse: there is no folder {path} (relative to the current directory, or absolute)")
    parts = _parts(config, workdir)
    check_hand_overs([(part.step.name, part.config, part.folder) for part in parts])
    for part in parts:
        if is_done(part.folder, part.key) or config.only not in ("", part.step.name):
            continue
        _refuse_missing_inputs(config, part, parts)
        source = find_elsewhere(part.folder, part.key, *_elsewhere(config))
        model = _checked(part, planned) if source is None or not is_done(source, part.key) else _model_of(source)
        planned[part.folder.resolve()] = model


def _model_of(folder: pathlib.Path) -> ModelConfig | None:
    return read_description(folder)[0] if (folder / MODEL_FILE).exists() else None


def _checked(part: _Part, planned: Planned) -> ModelConfig | None:
    name = part.step.name
    try:
        return SINGLE_STAGES[part.step.stage].check(part.config, part.folder, planned)
    except DataError as error:
        raise DataError(f"steps[{name}].config: {error}") from error
    except ValueError as error:
        raise ConfigError(f"steps[{name}].config: {error}") from error


class _PromptCheck:
    """Once a base model's tokenizer is made: whether the prompts of later stages that start from it fit."""

    def __init__(self, parts: Sequence[_Part], index: int) -> None:
        self.parts, self.index = parts, index

    def __call__(self, model: ModelConfig, tokenizer: Tokenizer) -> None:
        """Raises DataError naming stage, source and example."""
        with_tokenizer = {self.parts[self.index].folder.resolve()}
        for part in self.parts[self.index + 1 :]:
            init = getattr(part.config, "init", None)  # what starts from a policy hands its tokenizer on
            if init is None or init.kind != "stage" or (part.folder / init.path).resolve() not in with_tokenizer:
                continue
            with_tokenizer.add(part.folder.resolve())
            prompt, sources = asked_of(part.config)
            for field, examples in sources.items():
                try:
                    encode_prompts(examples, tokenizer, prompt)
                except DataError as error:
                    raise DataError(f"steps[{part.step.name}].config.{field}: {error}") from error


def asked_of(config: Any) -> tuple[PromptConfig, Mapping[str, Sequence[Example]]]:
    """How a stage asks its policy, and the questions by field; no questions where it asks none."""
    if isinstance(config, evaluate.EvaluateConfig):
        return config.asked().prompt, {"source": evaluate.examples_of(config)}
    if isinstance(config, rl.RLConfig):
        return config.prompt, rl.sources_of(config)
    if isinstance(config, (CurateConfig, PreferencesConfig)):
        return config.prompt, {"source": source_of("source", config.source)}
    return PromptConfig(), {}


def stage_configs(config: PipelineConfig) -> list[Any]:
    """The typed configuration of every stage. Raises ConfigError naming the stage and the field."""
    return [
        from_config(SINGLE_STAGES[step.stage].config, step.config, f"steps[{step.name}].config")
        for step in config.steps
    ]
