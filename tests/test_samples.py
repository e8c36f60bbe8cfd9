"""Samples for fine-tuning: what is written is read, and what is wrong is said with file, line and field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1jax.data.chat import Message
from r1jax.data.errors import DataError
from r1jax.data.samples import Sample, read_samples, write_samples

SAMPLES = [
    Sample("a", "2 + 2?", " <think> 4 </think> <answer> 4 </answer>", answer="4", task="sum", metadata={"k": [1, 2]}),
    Sample("b", "你好\u2028？", "  line\r\nbreaks ", language="zh", domain="helpful", source="cold_start"),
    Sample("c", messages=(Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"))),
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "samples_kept.jsonl"
    write_samples(path, SAMPLES)
    assert read_samples(path) == SAMPLES
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [sorted({"question", "messages"} & set(row)) for row in rows] == [["question"], ["question"], ["messages"]]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('{"id": "x", "question": "q", "complet": "c"}', "complet: unknown field; allowed: id, question, completion"),
        ('{"question": "q", "completion": "c"}', "id: is missing"),
        ('{"id": 7, "question": "q", "completion": "c"}', "id: holds int, expected str"),
        ('{"id": "x", "question": "q"}', "completion: is missing or blank"),
        ('{"id": "x", "question": " ", "completion": "c"}', "question: is missing or blank"),
        ('{"id": "x", "question": "\\ud800", "completion": "c"}', "question: holds half of a surrogate pair"),
        ('{"id": "x", "messages": []}', "messages: is empty"),
        ('{"id": "x", "messages": [{"role": "user"}]}', r"messages\[0\]: expected an object with role and content"),
        ('{"id": "x", "messages": [{"role": "tool", "content": "c"}]}', r"messages\[0\].role 'tool' is not one of"),
        ('{"id": "x", "messages": [{"role": "user", "content": "c"}]}', "messages: the last is the user's"),
        ('{"id": "x", "messages": [{"role": "assistant", "content": ""}]}', r"messages\[0\].content: is missing"),
        (
            '{"id": "x", "question": "q", "messages": [{"role": "assistant", "content": "c"}]}',
            "question: is given beside messages",
        ),
        ('{"id": "first", "question": "q", "completion": "c"}', "id: 'first' was used before, at .*, line 1"),
        ('["x"]', "a row must be an object with named fields, this is list"),
        ("{", "not JSON"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: str, complaint: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"id": "first", "question": "q", "completion": "c"}\n' + row + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"samples.jsonl, line 2: {complaint}"):
        read_samples(path)


def test_files_without_samples_and_ids_used_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl: No such file"):
        read_samples(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty.jsonl: no rows"):
        read_samples(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r"twice.jsonl: id: 'a' is used twice"):
        write_samples(tmp_path / "twice.jsonl", [SAMPLES[0], SAMPLES[0]])
    assert not (tmp_path / "twice.jsonl").exists()
