"""Rows of published benchmarks that need more than a choice of columns: GPQA's options, LiveCodeBench's hidden tests.

Each function takes a row as it stands in the file and gives one with `question` and what the layout of that name
(`sources.LAYOUTS`) keeps. The words around a question are our own: the papers do not print theirs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import pickle
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from r1jax.data.errors import DataError

Row = Mapping[str, Any]
WRONG_ANSWERS = tuple(f"Incorrect Answer {i}" for i in (1, 2, 3))
LETTERS = "ABCD"
MAX_TESTS_BYTES = 2**30  # of one problem's tests, unpacked: more is a mistake, or a trap


def gpqa(row: Row, where: str, seed: int) -> dict[str, Any]:
    """A question with its four options, and the letter of the right one.

    The options stand in an order that the seed and the record decide, whatever other rows the file has; so a run that
    is gone on with asks the same, and the letter says nothing.
    """
    question, right = _text(row, "Question", where), _text(row, "Correct Answer", where)
    options = [right, *(_text(row, column, where) for column in WRONG_ANSWERS)]
    if options.count(right) > 1:
        raise DataError(f"{where}: the right answer {right!r} is also one of the wrong ones")
    record = str(row.get("Record ID") or "").strip() or hashlib.sha256(question.encode()).hexdigest()[:16]
    drawn = int.from_bytes(hashlib.sha256(f"{seed} {record}".encode()).digest()[:8], "big")
    order = np.random.default_rng(drawn).permutation(len(options)).tolist()
    listed = "\n".join(f"({letter}) {options[i]}" for letter, i in zip(LETTERS, order, strict=True))
    return {
        **row,
        "id": record,
        "question": f"{question}\n\n{listed}\n\nThe answer is the letter of the one right option.",
        "answer": LETTERS[order.index(0)],
    }


def live_code_bench(row: Row, where: str, seed: int) -> dict[str, Any]:
    """A programming problem with all of its tests, public and private, as `test_cases`, and `func_name` where a method
    is called. `difficulty` and `contest_date` (YYYY-MM-DD) are kept. The seed plays no part."""
    starter = row.get("starter_code") or ""
    said = _json(row.get("metadata") or "{}", f"{where}: column 'metadata'")
    cases = _cases(row.get("public_test_cases"), f"{where}: column 'public_test_cases'")
    cases += _cases(row.get("private_test_cases"), f"{where}: column 'private_test_cases'")
    if not cases:
        raise DataError(f"{where}: no test in public_test_cases and private_test_cases")
    how = (
        f"Complete this program:\n```python\n{starter.strip()}\n```"
        if starter.strip()
        else "The program reads standard input and writes standard output."
    )
    return {
        **row,
        "question": f"{_text(row, 'question_content', where)}\n\n{how}\nGive the whole program, in Python, as one "
        "block of code between ```python and ``` at the end of the answer.",
        "test_cases": cases,
        "func_name": said.get("func_name") if isinstance(said, dict) else None,
        "difficulty": _text(row, "difficulty", where),
        "contest_date": _text(row, "contest_date", where)[:10],
    }


PREPARATIONS: dict[str, Callable[[Row, str, int], dict[str, Any]]] = {
    "gpqa": gpqa,
    "live_code_bench": live_code_bench,
}
"""Name -> (row, where it stands, seed) -> the row that columns are chosen from. DataError for one that cannot be."""


def _text(row: Row, column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: column {column!r} must hold text, got {value!r:.60}")
    return value.strip()


def _json(text: Any, where: str) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error


def _cases(value: Any, where: str) -> list[Any]:
    """A list of tests: as it is, as JSON, or as base 64 of a zlib stream of a pickle of JSON text."""
    if value is None or value == "":
        return []
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = unpacked_text(value, where)
    cases = _json(value, where)
    if not isinstance(cases, list):
        raise DataError(f"{where}: expected a list of tests, got {type(cases).__name__}")
    return cases


class _TextOnly(pickle.Unpickler):
    """Reads nothing but plain values: whatever a pickle would import or call is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only text is read")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to an object outside, and only text is read")


def unpacked_text(packed: str, where: str) -> str:
    """The text in base 64 of a zlib stream of a pickle of it, as LiveCodeBench packs its private tests.

    A pickle is a program: this one may hold a text and nothing else. Raises DataError naming `where` for all else.
    """
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(packed, validate=True), MAX_TESTS_BYTES)
        if stream.unconsumed_tail:
            raise DataError(f"{where}: unpacks to more than {MAX_TESTS_BYTES} bytes")
        text = _TextOnly(io.BytesIO(data)).load()
    except (binascii.Error, zlib.error) as error:
        raise DataError(f"{where}: neither JSON nor base 64 of a zlib stream ({error})") from error
    except DataError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise DataError(f"{where}: not the pickle of a text ({error})") from error
    if not isinstance(text, str):
        raise DataError(f"{where}: the pickle holds {type(text).__name__}, expected text")
    return text
