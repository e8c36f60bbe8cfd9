"""The folder of a finished policy: model.json (its shape), its tokenizer, and model/ (an orbax checkpoint)."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterable

from r1jax.data.tokenizer import SENTENCEPIECE_FILE, HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from r1jax.data.tokenizer_files import read_json
from r1jax.model.config import ModelConfig
from r1jax.processes import by_writer
from r1jax.sampling.generation_config import RELEASED
from r1jax.settings import from_config
from r1jax.weights.names import WeightsError
from r1jax.workdir import write_atomically

MODEL_FILE = "model.json"
CARD_FILE = "reward_model.json"  # only in the folder of a reward model, which has the same files otherwise
PARAMETERS = "model"  # the folder of the parameters' checkpoint


@by_writer
def carry_released(files: Iterable[pathlib.Path], folder: pathlib.Path) -> None:
    """Copies the small files of a release to `folder`/released, each whole or not at all: an export gives them back."""
    for file in files:
        target = folder / RELEASED / file.name
        target.parent.mkdir(exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        shutil.copyfile(file, partial)
        partial.replace(target)


@by_writer
def write_description(folder: pathlib.Path, model: ModelConfig, tokenizer: Tokenizer) -> None:
    """Writes the model's shape and the tokenizer, before there are parameters."""
    write_atomically(folder / MODEL_FILE, json.dumps(dataclasses.asdict(model), indent=2) + "\n")
    partial = folder / "tokenizer.partial"
    partial.mkdir(exist_ok=True)
    tokenizer.save(partial)
    for file in partial.iterdir():  # a kill between two of them leaves whole files, which the next start writes again
        file.replace(folder / file.name)
    partial.rmdir()


def read_description(folder: pathlib.Path) -> tuple[ModelConfig, Tokenizer]:
    """The model's shape and tokenizer. Raises WeightsError if the folder holds no finished policy."""
    if not (folder / MODEL_FILE).is_file() or not (folder / PARAMETERS).is_dir():
        raise WeightsError(f"{folder} holds no finished policy ({MODEL_FILE} and {PARAMETERS}/)")
    fields = read_json(folder / MODEL_FILE)
    model = from_config(ModelConfig, fields, "model")
    if (folder / SENTENCEPIECE_FILE).exists():
        return model, SentencePieceTokenizer(folder / SENTENCEPIECE_FILE)
    return model, HuggingFaceTokenizer.from_directory(folder)
