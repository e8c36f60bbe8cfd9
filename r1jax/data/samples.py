"""What supervised fine-tuning learns from: a question with the completion to learn, or a conversation.

Every stage that curates leaves such a file, `samples_kept.jsonl`, and every stage that fine-tunes reads some. One JSON
object a line, with the fields of `Sample`; fields that are left out have their defaults.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from r1jax.data.chat import Message
from r1jax.data.errors import DataError
from r1jax.data.sources import jsonl_rows
from r1jax.workdir import write_atomically


@dataclasses.dataclass(frozen=True)
class Sample:
    """A question and its completion, or messages instead of both."""

    id: str
    question: str = ""  # without a template: the stage that trains on it chooses one
    completion: str = ""  # as a model would sample it: with its thinking, and the blank that it begins with
    answer: str = ""  # the reference answer, where there is one
    task: str = ""
    language: str = "en"
    domain: str = ""
    source: str = ""  # which stage or file it comes from
    messages: tuple[Message, ...] = ()  # several rounds; the last message is the assistant's
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError naming the field."""
        if not self.id.strip():
            raise ValueError("id: is blank")
        if self.messages:
            given = [name for name in ("question", "completion") if getattr(self, name)]
            if given:
                raise ValueError(f"{given[0]}: is given beside messages; a sample has either")
            if self.messages[-1].role != "assistant":
                raise ValueError(f"messages: the last is the {self.messages[-1].role}'s, so nothing answers it")
        texts = [(f"messages[{i}].content", message.content) for i, message in enumerate(self.messages)]
        for field, text in texts or [("question", self.question), ("completion", self.completion)]:
            if not text.strip():
                raise ValueError(f"{field}: is missing or blank")
            if any("\ud800" <= c <= "\udfff" for c in text):
                raise ValueError(f"{field}: holds half of a surrogate pair, which is no text")


def read_samples(path: str | pathlib.Path) -> list[Sample]:
    """All samples of a JSON-lines file, in its order.

    Raises:
      DataError: naming file, line and field: no JSON object, a field that is unknown, missing, blank or of another
        type, an id used twice; or the file, if it is not there or has no rows.
    """
    return read_items(pathlib.Path(path), lambda row, _: _sample(row))


class Identified(Protocol):
    """What a row of such a file becomes."""

    @property
    def id(self) -> str:
        """No two rows have the same."""


Item = TypeVar("Item", bound=Identified)


def read_items(path: pathlib.Path, make: Callable[[Mapping[str, Any], str], Item]) -> list[Item]:
    """One item a row of a JSON-lines file; `make` gets the row, and an id for one that has none.

    Raises:
      DataError: naming file and line: no JSON object, what `make` raises as a ValueError, an id used twice; or the
        file, if it is not there or has no rows.
    """
    items: list[Item] = []
    seen: dict[str, str] = {}
    try:
        for number, (where, row) in enumerate(jsonl_rows(path), start=1):
            if not isinstance(row, dict):
                raise DataError(f"{where}: a row must be an object with named fields, this is {type(row).__name__}")
            try:
                item = make(row, f"{path.stem}:{number}")
            except ValueError as error:
                raise DataError(f"{where}: {error}") from error
            if item.id in seen:
                raise DataError(f"{where}: id: {item.id!r} was used before, at {seen[item.id]}")
            seen[item.id] = where
            items.append(item)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if not items:
        raise DataError(f"{path}: no rows")
    return items


def write_samples(path: str | pathlib.Path, samples: Sequence[Sample]) -> None:
    """Writes a file that `read_samples` reads, whole or not at all. Raises DataError for an id that is used twice."""
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise DataError(f"{path}: id: {sample.id!r} is used twice")
        seen.add(sample.id)
    write_atomically(path, "".join(json.dumps(_row(s), ensure_ascii=False) + "\n" for s in samples))


def _row(sample: Sample) -> dict[str, Any]:
    unused = ("question", "completion") if sample.messages else ("messages",)
    return {name: value for name, value in dataclasses.asdict(sample).items() if name not in unused}


def _sample(row: Mapping[str, Any]) -> Sample:
    fields = [field.name for field in dataclasses.fields(Sample)]
    for name, value in row.items():
        if name not in fields:
            raise ValueError(f"{name}: unknown field; allowed: {', '.join(fields)}")
        expected = {"messages": list, "metadata": dict}.get(name, str)
        if not isinstance(value, expected):
            raise ValueError(f"{name}: holds {type(value).__name__}, expected {expected.__name__}")
    if "id" not in row:
        raise ValueError("id: is missing")
    if "messages" not in row:
        return Sample(**row)
    if not row["messages"]:
        raise ValueError("messages: is empty")
    return Sample(**{**row, "messages": tuple(_message(i, message) for i, message in enumerate(row["messages"]))})


def _message(index: int, value: Any) -> Message:
    where = f"messages[{index}]"
    if not isinstance(value, dict) or sorted(value) != ["content", "role"]:
        raise ValueError(f"{where}: expected an object with role and content, got {value!r}")
    for name, text in value.items():
        if not isinstance(text, str):
            raise ValueError(f"{where}.{name}: holds {type(text).__name__}, expected str")
    try:
        return Message(**value)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error
