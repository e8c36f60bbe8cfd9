"""What can be found wrong before a stage starts: nothing here runs a model or takes longer than reading the data.

A stage calls these for itself; a pipeline calls them for all of its stages before the first one starts.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from r1jax.data.errors import DataError
from r1jax.data.sources import AUTO, ExampleSource, SourceConfig, make_source
from r1jax.data.tokenizer import Tokenizer
from r1jax.model.attention_choice import check_attention
from r1jax.model.config import ModelConfig
from r1jax.model.mesh_check import check_mesh, model_size
from r1jax.optim import OptimizerConfig
from r1jax.rewards.languages.language import detect_language
from r1jax.rollout import DecodingConfig, PromptConfig, encode_prompts
from r1jax.sampling.programs import rows_together
from r1jax.settings import ConfigError
from r1jax.sharding import (
    MeshConfig,
    axes_of,
    choose_mesh,
    decoding_mesh,
    indivisible,
)
from r1jax.stages.policy import PolicySource, changed_model, describe_source
from r1jax.types import Example

Planned = Mapping[pathlib.Path, ModelConfig | None]
"""Folders that earlier stages of the pipeline are going to fill, and the model that each will hold, if any."""


def is_planned(path: pathlib.Path, planned: Planned) -> bool:
    """Whether an earlier stage is going to write this file: what lies there now, if anything, is not what counts."""
    path = path.resolve()
    return any(folder in planned for folder in (path, *path.parents))


def source_of(field: str, config: SourceConfig) -> Sequence[Example]:
    """All examples of a source, each with its language; what is wrong is said with the field's name in front."""
    try:
        return _with_languages(make_source(config))
    except DataError as error:
        raise DataError(f"{field}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{field}: {error}") from error
    except OSError as error:
        raise DataError(f"{field}: {error.filename or config.path}: {error.strerror}") from error


def _with_languages(source: ExampleSource) -> ExampleSource:
    """The examples with the language of their question where the source left that open."""
    if not any(example.language == AUTO for example in source):
        return source
    told = []
    for example in source:
        try:
            language = detect_language(example.question) if example.language == AUTO else example.language
        except ValueError as error:
            raise DataError(f"example {example.id!r}: {error}") from error
        told.append(dataclasses.replace(example, language=language))
    return ExampleSource(source.name, told)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What can be configured, checked and run in a work directory."""

    config: type
    # Before any work; gives the model that the stage will leave, if it leaves one.
    check: Callable[[Any, pathlib.Path, Planned], ModelConfig | None]
    run: Callable[[Any, pathlib.Path], None]


def known_policy(init: PolicySource, workdir: pathlib.Path, planned: Planned) -> tuple[ModelConfig, Tokenizer | None]:
    """The model that the stage will start from, and its tokenizer unless an earlier stage has yet to make it.

    Raises ConfigError: there is no such policy and none will be made, or as `changed_model`.
    """
    folder = (workdir / init.path).resolve()
    if init.kind == "stage" and folder in planned:
        model = planned[folder]
        if model is None:
            raise ConfigError(f"init.path: the stage of {folder} leaves no policy")
        return changed_model(init, model), None
    return describe_source(init, workdir)


def check_trainable(model: ModelConfig, optimizer: OptimizerConfig) -> None:
    """That updates are not lost to rounding. Raises ConfigError naming the field.

    At a learning rate of 3e-6, Adam's step is below half a unit in the last place of every bfloat16 weight above 2^-10,
    which then never changes; V3 (section 3.3.2) keeps master weights and gradients in float32.
    """
    if model.param_dtype != "float32" and not optimizer.master_weights:
        raise ConfigError(
            f"model.param_dtype: {model.param_dtype!r}; training needs 'float32' (`dtype` decides what is "
            "computed in), or optimizer.master_weights"
        )
    if model.param_dtype == "float32" and optimizer.master_weights:
        raise ConfigError("optimizer.master_weights: they are for parameters of model.param_dtype 'bfloat16'")


def mesh_sizes(config: MeshConfig, model: ModelConfig) -> MeshConfig:
    """The configuration of a stage's mesh, chosen for its model where it says `auto`."""
    return choose_mesh(config, model_size(model)) if config.auto else config


def check_asking(
    prompt: PromptConfig,
    decoding: DecodingConfig,
    mesh: Mesh,
    model: ModelConfig,
    tokenizer: Tokenizer | None,
    sources: Mapping[str, Sequence[Example]],
    group_size: int,
) -> None:
    """That every prompt and its longest response fit the model's context, and a batch and the model the mesh and what
    computes on it.

    Raises:
      ConfigError: naming the fields and their values.
      DataError: naming the source, the example and its length.
    """
    longest = prompt.width + decoding.max_new_tokens
    if longest > model.max_positions:
        raise ConfigError(
            f"prompt.width + decoding.max_new_tokens: {prompt.width} + {decoding.max_new_tokens} = {longest} exceeds "
            f"the model's context, max_positions = {model.max_positions}"
        )
    check_mesh(model, mesh)
    check_decoded(decoding.batch_size, mesh, group_size)
    prefilled = decoding.batch_size // rows_together(decoding.batch_size, decoding_mesh(mesh), group_size)
    check_attention(model, prefilled, prompt.width, False, decoding_mesh(mesh))
    if tokenizer is None:
        return
    for field, examples in sources.items():
        try:
            encode_prompts(examples, tokenizer, prompt)
        except DataError as error:
            raise DataError(f"{field}: {error}") from error


def check_decoded(batch_size: int, mesh: Mesh, group_size: int) -> None:
    """That rows decoded at once can be split over the devices, and are whole groups.

    Raises ConfigError with the field, its value and the nearest numbers of rows that work.
    """
    field = "decoding.batch_size"
    mesh = decoding_mesh(mesh)
    check_divides(field, batch_size, mesh)
    if batch_size % group_size:
        below = batch_size // group_size * group_size
        near = " or ".join(str(rows) for rows in (below, below + group_size) if rows)
        raise ConfigError(f"{field}: {batch_size} is not a multiple of group_size = {group_size}; nearest: {near}")


def check_training_rows(field: str, rows: int, length: int, with_parents: bool, model: ModelConfig, mesh: Mesh) -> None:
    """That the model can be computed on rows [rows, length] at once, split over the mesh.

    field: of `rows`, for messages. with_parents: whether rows hold prompts that several responses share.

    Raises ConfigError naming the field that the mesh does not divide, or the attention that is not possible on it.
    """
    check_mesh(model, mesh, length)
    check_divides(field, rows, mesh)
    check_attention(model, rows, length, with_parents, mesh)


def check_divides(field: str, rows: int, mesh: Mesh) -> None:
    """That rows can be split over the devices.

    Raises ConfigError with the field, its value, the mesh axes and the nearest numbers of rows that can.
    """
    problem = indivisible(field, rows, axes_of("batch"), mesh.shape)
    if problem:
        raise ConfigError(problem)
