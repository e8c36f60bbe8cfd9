r"""The papers' benchmarks by name: how their published files are read, what is asked, how often, and what counts.

    "benchmark": {"name": "aime", "path": "aime_2024.jsonl"}

in an evaluation's config stands for its source, the number of samples (R1v2, section 4.1), the words behind each
question (the usage advice of the release), and how answers are read and compared. Temperature 0.6 and top-p 0.95 are
an evaluation's defaults anyway; the paper's limit of 32,768 tokens is for the config to set. The files are the
user's: nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.data.errors import DataError
from r1jax.data.sources import LAYOUTS, ROWS, SourceConfig
from r1jax.types import Example

BOXED_SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."
SUITE = "reasoning_gym"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark's protocol."""

    layouts: tuple[str, ...]  # keys of data.sources.LAYOUTS that its files are published in
    samples: int  # k
    comparison: str  # of rewards.combine.COMPARISONS
    suffix: str = BOXED_SUFFIX
    pattern: str = "boxed"  # of rewards.patterns.PATTERNS: how answers are read
    since: str = ""  # first and last date of its problems, YYYY-MM-DD; empty: all of the file
    until: str = ""


BENCHMARKS: Mapping[str, Benchmark] = {
    "aime": Benchmark(("aime", "aime_capitals", "aime_questions"), 64, "math"),
    "math_500": Benchmark(("math_500",), 16, "expressions"),
    "gsm8k": Benchmark(("gsm8k",), 16, "math"),  # not one of the papers': k as of MATH-500
    "gpqa": Benchmark(("gpqa",), 64, "math"),  # option letters
    "live_code_bench": Benchmark(
        ("live_code_bench",), 8, "code", suffix="", pattern="reply", since="2024-08-01", until="2025-01-31"
    ),
    # Its verifiers compare; k and pattern are ours.
    SUITE: Benchmark((), 16, "math", suffix="", pattern="answer"),
}


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Which benchmark, and what is to differ from its protocol: fields that are left empty are as it says."""

    name: str = ""  # a key of BENCHMARKS; empty: none
    path: str = ""  # the file, of kind jsonl, parquet or csv by its ending
    tasks: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """For "reasoning_gym": the suite, each task with its parameters."""
    size: int = 0  # of files: the first questions, 0 = all; of a suite: questions of each task
    seed: int = 0  # of GPQA's options, and of a suite's questions
    suffix: str | None = None
    comparison: str = ""
    pattern: str = ""
    since: str = ""
    until: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            changed = [f.name for f in dataclasses.fields(self) if f.name != "name" and getattr(self, f.name)]
            if changed:
                raise ValueError(f"{changed[0]}: is given without the benchmark's name")
            return
        if self.name not in BENCHMARKS:
            raise ValueError(f"name: {self.name!r} is not one of {sorted(BENCHMARKS)}")
        if self.size < 0:
            raise ValueError(f"size: {self.size} is negative")
        if self.name == SUITE:
            if not self.tasks or self.path or not self.size:
                raise ValueError(f"tasks, size: {SUITE!r} needs both, and no path")
        elif self.tasks or not self.path:
            raise ValueError(f"path: {self.name!r} needs a file, and no tasks")
        elif pathlib.Path(self.path).suffix[1:] not in ROWS:
            raise ValueError(f"path: {self.path!r} must end in one of {', '.join('.' + kind for kind in ROWS)}")
        for field in ("since", "until"):
            if getattr(self, field):
                _date(getattr(self, field), field)
                if not BENCHMARKS[self.name].since:
                    raise ValueError(f"{field}: the problems of {self.name!r} have no dates")

    def protocol(self) -> Benchmark:
        """The benchmark's protocol with this config's changes."""
        own = {field: getattr(self, field) for field in ("comparison", "pattern", "since", "until")}
        changes: dict[str, Any] = {field: value for field, value in own.items() if value}
        if self.suffix is not None:
            changes["suffix"] = self.suffix
        return dataclasses.replace(BENCHMARKS[self.name], **changes)

    def sources(self) -> tuple[SourceConfig, ...]:
        """Where the questions come from.

        Raises:
          DataError: the file has none of the benchmark's published layouts.
        """
        if self.name == SUITE:
            return tuple(
                SourceConfig(kind="reasoning_gym", task=task, params=params, size=self.size, seed=self.seed)
                for task, params in self.tasks.items()
            )
        path = pathlib.Path(self.path)
        kind = path.suffix[1:]
        columns = dataclasses.replace(LAYOUTS[_layout(path, kind, self.name)], seed=self.seed)
        dated = bool(BENCHMARKS[self.name].since)  # the first ones are counted after the dates are looked at
        return (
            SourceConfig(kind=kind, path=self.path, columns=columns, task=self.name, size=0 if dated else self.size),
        )

    def chosen(self, examples: Sequence[Example]) -> list[Example]:
        """Those within the dates. DataError if there are none."""
        protocol = self.protocol()
        if not protocol.since:
            return list(examples)
        since, until = _date(protocol.since, "since"), _date(protocol.until, "until")
        kept = [e for e in examples if since <= _date(e.metadata["contest_date"], f"example {e.id!r}") <= until]
        if not kept:
            raise DataError(f"{self.path}: none of {len(examples)} problems is from {since} to {until}")
        return kept[: self.size or None]


def _date(text: str, where: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError as error:
        raise DataError(f"{where}: {text!r} is not a date as YYYY-MM-DD") from error


def _layout(path: pathlib.Path, kind: str, name: str) -> str:
    """The layout of a file, by the columns of its first row."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    where, row = next(iter(ROWS[kind](path)), (f"{path}", None))
    if row is None:
        raise DataError(f"{path}: no rows")
    columns = set(row) if isinstance(row, Mapping) else set()
    wanted = {layout: _columns(layout) for layout in BENCHMARKS[name].layouts}
    for layout, needed in wanted.items():
        if needed <= columns:
            return layout
    shown = " or ".join(str(sorted(needed)) for needed in wanted.values())
    raise DataError(f"{where}: a file of {name!r} has the columns {shown}; this row has {sorted(columns)}")


# Columns that `data.benchmark_rows` reads; of other layouts those that the mapping names.
PREPARED_COLUMNS: Mapping[str, frozenset[str]] = {
    "gpqa": frozenset({"Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"}),
    "live_code_bench": frozenset({"question_content", "question_id", "difficulty", "contest_date"}),
}


def _columns(layout: str) -> frozenset[str]:
    mapping = LAYOUTS[layout]
    if mapping.prepare:
        return PREPARED_COLUMNS[mapping.prepare]
    named = (mapping.question, mapping.answer, mapping.id, *mapping.metadata)
    return frozenset(column for column in named if column)
