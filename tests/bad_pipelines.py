"""The smoke pipeline with changed fields, and what the user reads where it is refused: for tests of bad input."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from typing import Any

import pytest
from ml_collections import ConfigDict

from r1jax import train

_spec = importlib.util.spec_from_file_location(
    "r1_zero_smoke", pathlib.Path(__file__).parent / "configs" / "r1_zero_smoke.py"
)
assert _spec is not None
assert _spec.loader is not None
smoke = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(smoke)


def pipeline(**changes: dict[str, Any]) -> ConfigDict:
    """The smoke pipeline with fields of stages changed, by the stage's name."""
    config: ConfigDict = smoke.get_config()
    config.steps = tuple(
        {**step, "config": smoke.merge(step["config"], changes.get(step["name"], {}))} for step in config.steps
    )
    return config


def refused(config: ConfigDict, workdir: pathlib.Path, kind: type[Exception]) -> str:
    """Runs and returns the message that the user reads, once the error is of the right kind."""
    with pytest.raises(kind) as caught:
        train.run(config, workdir)
    assert isinstance(caught.value, train.USER_ERRORS), "the user would see a traceback"
    message = train.describe(caught.value)
    print(f"\n    {message}")
    return message


def jsonl(path: pathlib.Path, *lines: str) -> dict[str, Any]:
    """A file with two good rows and then `lines`, as the source of a stage."""
    good = [json.dumps({"question": f"compute {n} + 1 ?", "answer": str(n + 1)}) for n in range(2)]
    path.write_text("\n".join([*good, *lines]) + "\n", encoding="utf-8")
    return file_source("jsonl", path)


def file_source(kind: str, path: pathlib.Path, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "path": str(path), "split": "", "size": 0, "seed": 0, **fields}
