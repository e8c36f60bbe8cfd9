"""What reward models learn from: pairs of responses of which one is preferred, and responses labelled safe or unsafe.

JSON lines. A file of pairs needs the columns `question`, `chosen` and `rejected`, one of labels `question`,
`completion` and `safe` (true or false). Responses stand there whole, thinking included: the stage that trains decides
what its model sees of them. `id` is the file's name and the row's number where it is missing. All other columns, such
as those that a `preferences` stage leaves (gap, votes, lengths, language), are for the reader and change nothing.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from r1jax.data.samples import read_items


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two responses to one question; `rejected` may be empty, which is no reply at all."""

    id: str
    question: str
    chosen: str
    rejected: str


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A response and whether it is safe."""

    id: str
    question: str
    completion: str
    safe: bool


def read_pairs(path: str | pathlib.Path) -> list[Pair]:
    """The pairs of a file.

    Raises:
      DataError: naming file, line and column: one that is missing or holds no text, a blank question or preferred
        response, two equal responses, an id used twice; or the file, if it is not there or empty.
    """

    def pair(row: Mapping[str, Any], default_id: str) -> Pair:
        texts = {name: _text(row, name) for name in ("question", "chosen", "rejected")}
        for name in ("question", "chosen"):
            if not texts[name].strip():
                raise ValueError(f"{name}: is blank")
        if texts["chosen"] == texts["rejected"]:
            raise ValueError("rejected: is the same text as chosen")
        return Pair(_id(row, default_id), **texts)

    return read_items(pathlib.Path(path), pair)


def read_labels(path: str | pathlib.Path) -> list[Labelled]:
    """The labelled responses of a file. DataError as in `read_pairs`; `safe` must be true or false."""

    def labelled(row: Mapping[str, Any], default_id: str) -> Labelled:
        texts = {name: _text(row, name) for name in ("question", "completion")}
        if not texts["question"].strip():
            raise ValueError("question: is blank")
        if not isinstance(row.get("safe"), bool):
            raise ValueError(f"safe: {row.get('safe')!r}; true or false")
        return Labelled(_id(row, default_id), **texts, safe=row["safe"])

    return read_items(pathlib.Path(path), labelled)


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(
            f"{column}: {'is missing' if column not in row else f'holds {type(value).__name__}, not text'}"
        )
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"{column}: holds half of a surrogate pair, which is no text")
    return value


def _id(row: Mapping[str, Any], default: str) -> str:
    return _text(row, "id") if "id" in row else default
