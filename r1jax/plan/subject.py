"""What is planned: one stage of a config file, its model, and what the command line changes of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from r1jax.model.config import ModelConfig
from r1jax.model.presets import PRESETS, get_preset
from r1jax.plan.compile import PlanError
from r1jax.plan.steps import STEPS, StageConfig
from r1jax.settings import from_config, to_plain
from r1jax.sharding import MESH_AXES, MeshConfig
from r1jax.stages.pipeline import SINGLE_STAGES, PipelineConfig
from r1jax.stages.pretrain import PretrainConfig
from r1jax.stages.rl_config import RLConfig


@dataclasses.dataclass(frozen=True)
class Subject:
    """One stage and its model."""

    name: str  # of the pipeline's step, or of the stage
    stage: str
    config: StageConfig
    model: ModelConfig

    def with_mesh(self, mesh: MeshConfig) -> Subject:
        """The same on another mesh."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, mesh=mesh))


def read_config(text: str) -> dict[str, Any]:
    """The fields that `--config=FILE.py:ARG` gives. Raises PlanError naming a file that is not there."""
    name, _, argument = text.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise PlanError(f"--config: there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config: ml_collections.ConfigDict = module.get_config(argument) if argument else module.get_config()
    fields: dict[str, Any] = to_plain(config)
    return fields


def choose(fields: Mapping[str, Any], step: str, preset: str, changes: Sequence[str]) -> Subject:
    """The stage to plan: the config's own, or of a pipeline the step of that name (else the last that can be planned).

    Args:
        fields: of the config.
        step: a step's name; empty: choose.
        preset: the model, where the config does not say it; empty: as the config says.
        changes: `FIELD=VALUE` each, with dots into nested fields: what the plan is made for instead.

    Raises:
        PlanError: there is no such step, none that can be planned, or no telling which model it trains.
        ConfigError: a field is wrong.
    """
    name, stage, own = _stage_of(fields, step)
    plain = {key: value for key, value in own.items() if key != "stage"}
    for change in changes:
        plain = _changed(plain, change)
    typed: StageConfig = from_config(SINGLE_STAGES[stage].config, plain)
    return Subject(name, stage, typed, _model_of(typed, preset, fields))


def _stage_of(fields: Mapping[str, Any], step: str) -> tuple[str, str, Mapping[str, Any]]:
    stage = fields.get("stage")
    planned = {kind for kind, one in SINGLE_STAGES.items() if one.config in STEPS}
    if stage != "pipeline":
        if step:
            raise PlanError(f"--step: {step!r}, but the config is one stage, {stage!r}, and no pipeline")
        if stage not in planned:
            raise PlanError(f"stage: {stage!r} cannot be planned; stages that can: {', '.join(sorted(planned))}")
        return str(stage), str(stage), fields
    pipeline = from_config(PipelineConfig, {key: value for key, value in fields.items() if key != "stage"})
    possible = {one.name: one for one in pipeline.steps if one.stage in planned}
    if step and step not in possible:
        raise PlanError(f"--step: {step!r} is not one of the steps that can be planned: {', '.join(possible)}")
    if not possible:
        raise PlanError(f"steps: none of the pipeline's stages can be planned; those that can: {', '.join(planned)}")
    rl = [one.name for one in possible.values() if one.stage == "rl"]
    chosen = possible[step or (rl or list(possible))[0]]
    return chosen.name, chosen.stage, chosen.config


def _changed(fields: Mapping[str, Any], change: str) -> dict[str, Any]:
    path, equals, text = change.partition("=")
    if not equals:
        raise PlanError(f"--set: {change!r} is not of the form FIELD=VALUE")
    head, _, rest = path.partition(".")
    inner = fields.get(head)
    if rest:
        return {**fields, head: _changed(inner if isinstance(inner, Mapping) else {}, f"{rest}={text}")}
    return {**fields, head: _value(text)}


def _value(text: str) -> Any:
    """A number, a truth value, None, or the text itself."""
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _model_of(config: StageConfig, preset: str, fields: Mapping[str, Any]) -> ModelConfig:
    if isinstance(config, PretrainConfig):
        return config.model.build(vocab_size=config.tokenizer.vocab_size)
    overrides = dict(config.init.overrides)
    name = preset or config.init.preset or ("smollm2_135m" if config.init.kind == "smollm2" else "")
    if name:
        return get_preset(name, **overrides)
    pretrained = [step for step in fields.get("steps", ()) if step["stage"] == "pretrain"]
    if config.init.kind == "stage" and pretrained:
        first: Any = from_config(PretrainConfig, pretrained[0]["config"])
        model = first.model.build(vocab_size=first.tokenizer.vocab_size)
        return dataclasses.replace(model, **overrides)
    names = ", ".join(sorted(PRESETS))
    raise PlanError(f"init.preset: the config does not say which model it trains; --preset names it, one of {names}")


def for_responses(subject: Subject, length: int) -> Subject:
    """The same stage for responses of `length` tokens (RL), or rows of `length` tokens (the others).

    Raises PlanError for a length that is too short for a row, or does not fit the model's context.
    """
    config = subject.config
    prompt = config.prompt.width if isinstance(config, RLConfig) else 0
    longest = subject.model.max_positions - prompt
    if not 2 <= length <= longest:
        less = f" less prompt.width = {prompt}" if prompt else ""
        context = f"max_positions = {subject.model.max_positions}{less}"
        raise PlanError(f"--length: {length}; 2 to {longest}, what the model's context holds ({context})")
    if isinstance(config, RLConfig):
        decoding = dataclasses.replace(config.decoding, max_new_tokens=length, chunk=min(config.decoding.chunk, length))
        config = dataclasses.replace(config, decoding=decoding, length_schedule=(), row_length=prompt + length)
    else:
        field = "row_length" if hasattr(config, "row_length") else "max_length"
        config = dataclasses.replace(config, **{field: length})  # type: ignore[arg-type]
    return dataclasses.replace(subject, config=config)


def mesh_config(text: str, config: MeshConfig) -> MeshConfig:
    """`fsdp=16,expert=64` in place of the config's mesh; axes not named are 1.

    Raises PlanError for an axis that is unknown or named twice, and a size that is no number of devices.
    """
    if not text:
        return config
    sizes: dict[str, Any] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in MESH_AXES or not re.fullmatch(r"-1|0*[1-9][0-9]*", size):
            raise PlanError(
                f"--mesh: {part!r}; expected AXIS=SIZE with one of the axes {', '.join(MESH_AXES)} and a size of at "
                "least 1 (-1: what is left)"
            )
        if axis in sizes:
            raise PlanError(f"--mesh: {text!r} names {axis!r} twice")
        sizes[axis] = int(size)
    return MeshConfig(**{"data": 1, **sizes})
