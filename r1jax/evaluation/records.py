"""Reading back what the stages of a run wrote: the folders, their rows of metrics and their samples."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
WHOLE = "all layers"


@dataclasses.dataclass(frozen=True)
class Series:
    """One metric over steps; steps where it was not logged or is not finite are absent."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def first(self) -> float:
        """Value at the first step."""
        return float(self.values[0])

    @property
    def last(self) -> float:
        """Value at the last step."""
        return float(self.values[-1])


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """One stage's folder. Files that the stage did not write read as empty."""

    name: str
    folder: Path

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return read_json(self.folder / "config.json")

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """The stage's final figures."""
        return read_json(self.folder / "summary.json")

    @functools.cached_property
    def rows(self) -> list[Row]:
        """The rows of metrics.jsonl, one per logged step."""
        return list(read_jsonl(self.folder / "metrics.jsonl"))

    def samples(self) -> Iterator[Row]:
        """Rows of samples.jsonl, one at a time (the file may be large)."""
        return read_jsonl(self.folder / "samples.jsonl")

    @functools.cached_property
    def kind(self) -> str:
        """'pretrain', 'rl', 'evaluate' or another stage's name: as its files say, else from the metrics it logged."""
        for said in (self.summary.get("stage"), self.config.get("stage")):
            if isinstance(said, str):
                return said
        names = set().union(*self.rows)
        if "reward" in names:
            return "rl"
        if "loss" in names:
            return "pretrain"
        return "evaluate"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no file."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def read_jsonl(path: Path) -> Iterator[Row]:
    """The objects of a JSON-lines file, none where there is no file.

    A last line without its newline is still being written by a running stage and is left out; any other malformed
    line raises ValueError with file and line.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not a JSON object ({error})") from error


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sorting key that puts '2_rl' before '10_rl'."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def find_stages(workdir: Path, names: Sequence[str] | None = None) -> list[StageRecord]:
    """The stage folders of a pipeline's workdir, in order.

    Args:
        workdir: the pipeline's folder, or the folder of a single stage.
        names: the stages' folder names in the order they ran; by default all folders with metrics.jsonl or
            summary.json, in natural order of their names.
    """
    if names is not None:
        return [StageRecord(name, workdir / name) for name in names if (workdir / name).is_dir()]
    found = [
        StageRecord(folder.name, folder)
        for folder in sorted(workdir.iterdir(), key=lambda path: natural_key(path.name))
        if folder.is_dir() and any((folder / name).exists() for name in ("metrics.jsonl", "summary.json"))
    ]
    if not found and any((workdir / name).exists() for name in ("metrics.jsonl", "summary.json")):
        return [StageRecord(workdir.name, workdir)]
    return found


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def series(rows: Sequence[Row], name: str) -> Series | None:
    """The metric `name` over steps, None where it was never logged. 'time/x' reads the wall-clock fields."""
    points = []
    for row in rows:
        holder, field = (row.get("time", {}), name[5:]) if name.startswith("time/") else (row, name)
        value = _number(holder.get(field))
        if value is not None:
            points.append((row["step"], value))
    if not points:
        return None
    table = np.asarray(points, dtype=np.float64)
    return Series(table[:, 0], table[:, 1])


def layer_series(rows: Sequence[Row], name: str) -> dict[str, Series]:
    """A metric with one value per layer: a list under `name`, or names such as 'name/layer_1', or one number.

    Returns: label -> series, in the order of the layers.
    """
    flat: list[Row] = []
    labels: set[str] = set()
    for row in rows:
        values: Row = {"step": row["step"]}
        for key, value in row.items():
            if key == name and isinstance(value, list):
                values |= {f"layer {i}": item for i, item in enumerate(value)}
            elif key == name:
                values[WHOLE] = value
            elif key.startswith(name + "/"):
                values[key[len(name) + 1 :].replace("_", " ")] = value
        labels |= values.keys() - {"step"}
        flat.append(values)
    if len(labels) > 1:
        labels.discard(WHOLE)  # what is over all layers is one of them, or their mean
    found = {label: series(flat, label) for label in sorted(labels, key=natural_key)}
    return {label: line for label, line in found.items() if line is not None}


def random_samples(
    record: StageRecord, count: int, seed: int, where: Callable[[Row], bool] = lambda row: True
) -> list[Row]:
    """`count` of the samples.jsonl rows that satisfy `where`, uniformly without replacement, in file order."""
    rng = np.random.default_rng(seed)
    chosen: list[tuple[int, Row]] = []
    for index, row in enumerate(filter(where, record.samples())):  # reservoir sampling: one row in memory at a time
        if index < count:
            chosen.append((index, row))
        elif (slot := int(rng.integers(0, index + 1))) < count:
            chosen[slot] = (index, row)
    return [row for _, row in sorted(chosen, key=lambda pair: pair[0])]
