"""The files of a released tokenizer: `tokenizer.json`; `tokenizer_config.json` with names and the chat template."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers

from r1jax.data.errors import DataError

TOKENIZER_FILE, CONFIG_FILE, TEMPLATE_FILE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
ROLES = ("eos_token", "bos_token", "pad_token")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file that holds an object. DataError, naming the file: it is missing, broken, or holds something else."""
    if not path.is_file():
        raise DataError(f"{path.parent} has no {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # broken JSON or broken UTF-8
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def read_tokenizer_config(directory: pathlib.Path) -> dict[str, Any]:
    """All of `tokenizer_config.json`; the text of a `chat_template.jinja` beside it stands for its "chat_template"."""
    config = read_json(directory / CONFIG_FILE)
    if (directory / TEMPLATE_FILE).is_file():
        config["chat_template"] = (directory / TEMPLATE_FILE).read_text(encoding="utf-8")
    return config


def token_name(config: Mapping[str, Any], role: str) -> str | None:
    """The text of the token that plays the role "eos_token", "bos_token" or "pad_token"; None if no token does."""
    value = config.get(role)
    return value["content"] if isinstance(value, dict) else value


def chat_template_of(config: Mapping[str, Any]) -> str | None:
    """The chat template; of several named ones, the one called "default"; None if there is none."""
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def read_tokenizer(directory: pathlib.Path) -> tokenizers.Tokenizer:
    """`tokenizer.json`. DataError, naming the file, if it is missing or the library does not understand it."""
    path = directory / TOKENIZER_FILE
    read_json(path)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise DataError(f"{path} is no tokenizer: {error}") from error


def write_tokenizer(
    directory: pathlib.Path,
    tokenizer: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    names: Mapping[str, str | None],
) -> None:
    """Writes both files: of `config`, all that was read, with the names and the added tokens as they are now.

    Args:
      directory: an existing folder.
      tokenizer: for `tokenizer.json`.
      config: as read, or made by hand; entries that say the same already keep their form.
      names: role -> text of the token.
    """
    tokenizer.save(str(directory / TOKENIZER_FILE))
    new = {"tokenizer_class": "PreTrainedTokenizerFast"} | dict(config)  # without a class, transformers finds none
    new |= {role: name for role, name in names.items() if token_name(config, role) != name}
    if "added_tokens_decoder" in config:
        added = {str(token.pop("id")): token for token in json.loads(tokenizer.to_str())["added_tokens"]}
        new["added_tokens_decoder"] = added | config["added_tokens_decoder"]
    (directory / CONFIG_FILE).write_text(json.dumps(new, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
