"""Questions with reference answers, from files, from reasoning-gym and from our own generators, as lists of Examples.

Everything is read and checked when a source is made, so that a bad row stops a run before it starts, with the file, the
line and the column in the message. Which of corpus, RL and evaluation a question belongs to is decided by a hash of its
text (`r1jax.data.tasks.split_of`): other seeds or other files do not keep questions apart, as they may repeat them.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import pyarrow
import pyarrow.parquet

from r1jax.data import code_tasks, reasoning_tasks, tasks, world
from r1jax.data.benchmark_rows import PREPARATIONS
from r1jax.data.errors import DataError
from r1jax.types import Example

AUTO = "auto"  # in place of a language: whoever asks looks at the question


class ExampleSource(Sequence[Example]):
    """Examples in memory, with a fingerprint of their content that the iterator's state carries."""

    def __init__(self, name: str, examples: Iterable[Example]):
        self.name = name
        self._examples = tuple(examples)
        digest = hashlib.sha256()
        for e in self._examples:
            told = [e.id, e.question, e.answer, e.task, e.language, *([e.domain] if e.domain else [])]
            digest.update(json.dumps(told).encode())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self._examples[index]

    def __repr__(self) -> str:
        return f"ExampleSource({self.name!r}, {len(self)} examples, {self.fingerprint})"


@dataclasses.dataclass(frozen=True)
class ColumnMapping:
    """Which column of a row holds what. `a.b.0` is item 0 of field b of column a. Numbers are taken as text."""

    question: str = "question"
    answer: str = "answer"  # empty: there are no reference answers
    answer_form: str = "plain"  # a key of ANSWER_FORMS: how the reference answer stands in its column
    id: str = ""  # empty: file name and row number
    language: str = ""  # empty: `default_language`
    default_language: str = AUTO  # AUTO: English or Chinese, by the script of the question
    domain: str = ""  # empty: `default_domain`
    default_domain: str = ""
    metadata: tuple[str, ...] = ()  # columns to keep as they are
    prepare: str = ""  # a key of `benchmark_rows.PREPARATIONS`: makes columns out of columns first; empty: none
    seed: int = 0  # of what `prepare` draws

    def __post_init__(self) -> None:
        if self.answer_form not in ANSWER_FORMS:
            raise ValueError(f"answer_form {self.answer_form!r} is not one of {', '.join(ANSWER_FORMS)}")
        if self.prepare and self.prepare not in PREPARATIONS:
            raise ValueError(f"prepare {self.prepare!r} is not one of {', '.join(PREPARATIONS)}")


def last_boxed(text: str) -> str | None:
    r"""Returns the content of the last \boxed{...} (braces balanced), None if there is none or it does not close."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin, depth, position = start + len("\\boxed{"), 1, start + len("\\boxed{")
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2  # an escaped brace does not count
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[begin:position].strip()
        position += 1
    return None


def after_hashes(text: str) -> str | None:
    """Returns what stands behind the last `####`, None if there is none (GSM8K)."""
    return text.rsplit("####", 1)[1].strip() if "####" in text else None


# How a reference answer stands in its column; None says that the row has no answer of that form.
ANSWER_FORMS: dict[str, Callable[[str], str | None]] = {
    "plain": str.strip,
    "hashes": after_hashes,
    "boxed": last_boxed,
}

LAYOUTS: dict[str, ColumnMapping] = {
    "plain": ColumnMapping(),
    "gsm8k": ColumnMapping("question", "answer", answer_form="hashes"),
    "math": ColumnMapping("problem", "solution", answer_form="boxed", metadata=("level", "type")),
    "math_500": ColumnMapping("problem", "answer", id="unique_id", metadata=("level", "subject")),
    # AIME's questions as they are published, in either spelling, and without ids.
    "aime": ColumnMapping("problem", "answer", id="id"),
    "aime_capitals": ColumnMapping("Problem", "Answer", id="ID"),
    "aime_questions": ColumnMapping("question", "answer"),
    "gpqa": ColumnMapping(id="id", prepare="gpqa"),
    "live_code_bench": ColumnMapping(
        answer="",
        id="question_id",
        default_language="en",
        default_domain="code",
        metadata=("test_cases", "func_name", "difficulty", "contest_date"),
        prepare="live_code_bench",
    ),
    # Code problems with hidden tests (`rewards.code.programs`), as tools/make_tests.py writes them.
    "stdio": ColumnMapping(answer="reference", default_domain="code", metadata=("language", "stdio", "reference")),
    "calls": ColumnMapping(
        answer="reference", default_domain="code", metadata=("language", "function", "calls", "reference")
    ),
}


def _pick(row: Mapping[str, Any], column: str, where: str) -> Any:
    """Returns the value at a column name or dotted path."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise DataError(f"{where}: no column {column!r}; the row has {', '.join(map(repr, row)) or 'none'}")
    return value


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    value = _pick(row, column, where)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where}: column {column!r} holds {type(value).__name__}, expected text or a number")
    text = str(value)
    if not text.strip():
        raise DataError(f"{where}: column {column!r} is empty")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"{where}: column {column!r} holds half of a surrogate pair, which is no text")
    return text


def _answer(row: Mapping[str, Any], columns: ColumnMapping, where: str) -> str:
    raw = _text(row, columns.answer, where)
    answer = ANSWER_FORMS[columns.answer_form](raw)
    if not answer:
        raise DataError(
            f"{where}: column {columns.answer!r} holds no answer of the form {columns.answer_form!r}: {raw!r}"
        )
    return answer


def _to_example(row: Any, columns: ColumnMapping, task: str, where: str, default_id: str) -> Example:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a row must be an object with named columns, this is {type(row).__name__}")
    if columns.prepare:
        row = PREPARATIONS[columns.prepare](row, where, columns.seed)
    answer = _answer(row, columns, where) if columns.answer else ""
    return Example(
        id=_text(row, columns.id, where) if columns.id else default_id,
        question=_text(row, columns.question, where),
        answer=answer,
        task=task,
        language=_text(row, columns.language, where) if columns.language else columns.default_language,
        domain=_text(row, columns.domain, where) if columns.domain else columns.default_domain,
        metadata={column: _pick(row, column, where) for column in columns.metadata},
    )


def jsonl_rows(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON-lines file, each with where it stands. Raises DataError for one that is empty or no JSON."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            raise DataError(f"{where}: empty row")
        try:
            yield where, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from error
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error


def _parquet_rows(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({error})") from error
    number = 0
    for batch in table.to_batches():
        for row in batch.to_pylist():
            number += 1
            yield f"{path}, row {number}", row


def _csv_rows(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for number, row in enumerate(table, start=1):
            where = f"{path}, row {number}"
            if None in row or None in row.values():
                raise DataError(f"{where}: more or fewer values than the first line names columns")
            yield where, row
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}: not CSV ({error})") from error


ROWS: dict[str, Callable[[pathlib.Path], Iterator[tuple[str, Any]]]] = {
    "jsonl": jsonl_rows,
    "parquet": _parquet_rows,
    "csv": _csv_rows,
}
"""Kind of file -> its rows, each with where it stands. DataError for what is none."""


def _read(
    pattern: str, rows: Callable[[pathlib.Path], Iterator[tuple[str, Any]]], columns: ColumnMapping, task: str
) -> list[Example]:
    path = pathlib.Path(pattern)
    paths = sorted(path.parent.glob(path.name)) if any(c in path.name for c in "*?[") else [path]
    if not paths:
        raise DataError(f"no file matches {pattern!r}")
    examples: list[Example] = []
    seen: dict[str, str] = {}
    for path in paths:
        before = len(examples)
        for number, (where, row) in enumerate(rows(path), start=1):
            example = _to_example(row, columns, task, where, f"{path.stem}:{number}")
            if example.id in seen:
                raise DataError(f"{where}: id {example.id!r} was used before, at {seen[example.id]}")
            seen[example.id] = where
            examples.append(example)
        if len(examples) == before:
            raise DataError(f"{path}: no rows")
    return examples


def read_jsonl(path: str, columns: ColumnMapping = LAYOUTS["plain"], task: str = "file") -> list[Example]:
    """Reads one JSON object per line; `path` may be a pattern such as `train-*.jsonl` (sorted by name).

    Raises DataError naming file, line and column for an empty or malformed row, a missing column, a column of another
    type, an answer that is not in the stated form, or an id used twice.
    """
    return _read(path, jsonl_rows, columns, task)


def read_parquet(path: str, columns: ColumnMapping = LAYOUTS["plain"], task: str = "file") -> list[Example]:
    """Reads a Parquet file or a pattern of them; errors as in `read_jsonl`, with the number of the row from 1."""
    return _read(path, _parquet_rows, columns, task)


def normalized(text: str) -> str:
    """A text as questions are compared: NFKC, one space between words, case folded."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def question_text(example: Example) -> str:
    """The question as splits compare it."""
    return normalized(example.question)


def question_hash(example: Example) -> str:
    """16 hex digits that two examples share exactly if they ask the same question (see `question_text`)."""
    return hashlib.sha256(question_text(example).encode()).hexdigest()[:16]


def split_of(example: Example) -> str:
    """The name in `tasks.SPLIT_BOUNDS` of the one split that this question belongs to, wherever it comes from."""
    return tasks.split_of(question_text(example))


def check_disjoint(sources: Mapping[str, Iterable[Example]]) -> None:
    """Raises DataError naming the question and both sources if two of them share a question."""
    owner: dict[str, tuple[str, str]] = {}
    for name, examples in sources.items():
        for example in examples:
            other, other_id = owner.setdefault(question_hash(example), (name, example.id))
            if other != name:
                raise DataError(
                    f"{other} ({other_id}) and {name} ({example.id}) share the question {example.question!r}"
                )


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where examples come from. Fields that a kind does not use must keep their defaults."""

    kind: str = "tasks"  # a key of SOURCES
    path: str = ""  # jsonl, parquet, csv: a file or a pattern
    layout: str = "plain"  # jsonl, parquet, csv: a key of LAYOUTS
    columns: ColumnMapping | None = None  # jsonl, parquet, csv: instead of a layout
    task: str = ""  # reasoning_gym: the task's name; of files: the name the examples carry
    params: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # reasoning_gym, tasks: parameters of the task(s); world: shares of its "kinds" or "domains" (`world.shares_of`)
    size: int = 0  # reasoning_gym, tasks, programs, world: distinct questions; of files: the first ones, 0 = all
    seed: int = 0  # reasoning_gym, tasks, programs, world
    split: str = ""  # a name in tasks.SPLIT_BOUNDS: only questions that hash to it; empty: all (of our own tasks: 'rl')
    domain: str = ""  # the domain of all examples; empty: each has its own
    parts: tuple[SourceConfig, ...] = ()  # mixture: sources, one behind the other

    def __post_init__(self) -> None:
        if self.kind not in SOURCES:
            raise ValueError(f"kind: {self.kind!r} is not one of {', '.join(SOURCES)}")
        if self.split and self.split not in tasks.SPLIT_BOUNDS:
            raise ValueError(f"split: {self.split!r} is not one of {', '.join(tasks.SPLIT_BOUNDS)}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout: {self.layout!r} is not one of {', '.join(LAYOUTS)}")
        if self.columns is not None and self.layout != "plain":
            raise ValueError(f"columns and layout {self.layout!r} are both given: only one of them can hold")
        if self.size < 0:
            raise ValueError(f"size: {self.size} is negative")
        used = _USED[self.kind]
        for field in dataclasses.fields(self):
            default = {} if field.name == "params" else field.default
            if field.name not in used and getattr(self, field.name) != default:
                raise ValueError(f"{field.name}: a source of kind {self.kind!r} does not use this field")
        if self.kind == "tasks":
            _task_config(self)  # says what is wrong with the parameters
        if self.kind == "world":
            world.shares_of(self.params)
        if self.kind == "mixture" and not self.parts:
            raise ValueError("parts: a source of kind 'mixture' needs at least one")


def _file_source(config: SourceConfig) -> list[Example]:
    if not config.path:
        raise ValueError(f"path: a source of kind {config.kind!r} needs a file")
    if config.task.startswith(reasoning_tasks.PREFIX):
        raise ValueError(f"task: {config.task!r} would be graded by reasoning-gym, which has to make its questions")
    columns = config.columns or LAYOUTS[config.layout]
    task = config.task or (config.layout if config.layout != "plain" else "file")
    examples = _read(config.path, ROWS[config.kind], columns, task)
    if config.split:
        examples = [e for e in examples if split_of(e) == config.split]
        if not examples:
            raise DataError(f"{config.path}: no question belongs to split {config.split!r}")
    return examples[: config.size or None]


def _reasoning_gym_source(config: SourceConfig) -> list[Example]:
    belongs = (lambda e: split_of(e) == config.split) if config.split else (lambda e: True)
    return reasoning_tasks.make_examples(
        config.task, config.params, config.size, config.seed, key=question_hash, keep=belongs
    )


def _task_config(config: SourceConfig) -> tasks.TaskConfig:
    names = [f.name for f in dataclasses.fields(tasks.TaskConfig)]
    fixed = {"size", "seed", "split"}
    wrong = [name for name in config.params if name not in names or name in fixed]
    if wrong:
        raise ValueError(f"params: {wrong} are not among {[n for n in names if n not in fixed]}")
    values: dict[str, Any] = {**config.params, "seed": config.seed}
    if config.size:
        values["size"] = config.size
    if config.split:
        values["split"] = config.split
    return tasks.TaskConfig(**values)


def _tasks_source(config: SourceConfig) -> list[Example]:
    return tasks.make_examples(_task_config(config))


def _programs_source(config: SourceConfig) -> list[Example]:
    return code_tasks.make_examples(config.size, config.split or "rl", config.seed)


def _world_source(config: SourceConfig) -> list[Example]:
    return world.make_examples(config.size, config.split or "rl", config.seed, config.params)


def _mixture_source(config: SourceConfig) -> list[Example]:
    examples: list[Example] = []
    owner: dict[str, int] = {}
    for place, part in enumerate(config.parts):
        try:
            own = _examples_of(part)
        except (OSError, ValueError) as error:
            raise DataError(f"parts[{place}] (kind {part.kind!r}): {error}") from error
        for example in own:
            if (other := owner.setdefault(example.id, place)) != place:
                raise DataError(f"parts[{other}] and parts[{place}] both have an example with the id {example.id!r}")
        examples += own
    return examples


SOURCES: dict[str, Callable[[SourceConfig], list[Example]]] = {
    "tasks": _tasks_source,
    "programs": _programs_source,
    "world": _world_source,
    "mixture": _mixture_source,
    "reasoning_gym": _reasoning_gym_source,
    **dict.fromkeys(("jsonl", "parquet", "csv"), _file_source),
}
_COMMON = frozenset({"kind", "domain"})
_DRAWN = _COMMON | {"size", "seed", "split"}
_FILE_FIELDS = _COMMON | {"path", "layout", "columns", "task", "size", "split"}
_USED: dict[str, frozenset[str]] = {
    "tasks": _DRAWN | {"params"},
    "programs": _DRAWN,
    "world": _DRAWN | {"params"},
    "mixture": _COMMON | {"parts"},
    "reasoning_gym": _DRAWN | {"task", "params"},
    **dict.fromkeys(("jsonl", "parquet", "csv"), _FILE_FIELDS),
}


def _examples_of(config: SourceConfig) -> list[Example]:
    """The examples, in the domain that the config gives them."""
    examples = SOURCES[config.kind](config)
    return [dataclasses.replace(e, domain=config.domain) for e in examples] if config.domain else examples


def make_source(config: SourceConfig) -> ExampleSource:
    """Reads or generates all examples of a source.

    Raises:
      DataError: an unusable file, row or column.
      ValueError: an unknown task or parameter, or more distinct questions asked than there are.
      ImportError: reasoning-gym is not installed.
    """
    name = config.task or config.path or config.kind
    return ExampleSource(f"{config.kind}:{name}" if name != config.kind else name, _examples_of(config))
