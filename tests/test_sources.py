from __future__ import annotations

import itertools
import json

import pyarrow
import pyarrow.parquet
import pytest

from r1jax.data import sources, tasks
from r1jax.data.corpus import CorpusConfig, write_corpus
from r1jax.data.errors import DataError
from r1jax.data.pipelines import example_iterator
from r1jax.data.sources import (
    LAYOUTS,
    ColumnMapping,
    SourceConfig,
    check_disjoint,
    last_boxed,
    make_source,
    question_hash,
    read_jsonl,
    read_parquet,
    split_of,
)
from r1jax.settings import from_config
from r1jax.types import Example

GOOD = '{"question": "1 + 1 = ?", "answer": 2}'


def write(tmp_path, *lines: str, name: str = "train.jsonl") -> str:
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def question(text: str, name: str = "x") -> Example:
    return Example(id=name, question=text, answer="1", task="t")


def test_jsonl_rows_become_examples_in_order(tmp_path):
    path = write(tmp_path, GOOD, '{"question": "  二加二？ ", "answer": "4", "unused": null}')
    first, second = read_jsonl(path)
    assert (first.id, first.question, first.answer, first.task, first.language) == (
        "train:1", "1 + 1 = ?", "2", "file", "auto",
    )  # fmt: skip
    assert (second.id, second.question, second.answer) == ("train:2", "  二加二？ ", "4")


def test_columns_are_mapped_also_nested_ones(tmp_path):
    row = {"a.b": "dotted", "messages": [{"content": "why?"}], "gold": {"value": 1.5}, "uid": 7, "lang": "zh", "n": [1]}
    columns = ColumnMapping("messages.0.content", "gold.value", id="uid", language="lang", metadata=("n", "a.b"))
    (example,) = read_jsonl(write(tmp_path, json.dumps(row)), columns, task="mine")
    assert example == Example("7", "why?", "1.5", "mine", "zh", {"n": [1], "a.b": "dotted"})


def test_gsm8k_and_math_layouts(tmp_path):
    gsm = {"question": "Q", "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips.\nShe sold 72.\n#### 1,072"}
    assert read_jsonl(write(tmp_path, json.dumps(gsm)), LAYOUTS["gsm8k"])[0].answer == "1,072"
    math = {
        "problem": "P",
        "solution": r"First \boxed{3}, no: $\boxed{\frac{1}{2}}$.",
        "level": "Level 5",
        "type": "Algebra",
    }
    (example,) = read_jsonl(write(tmp_path, json.dumps(math)), LAYOUTS["math"])
    assert example.answer == r"\frac{1}{2}"
    assert example.metadata == {"level": "Level 5", "type": "Algebra"}
    five = {"problem": "P", "answer": "7", "unique_id": "test/1", "subject": "Algebra", "level": 2, "solution": "s"}
    assert read_jsonl(write(tmp_path, json.dumps(five)), LAYOUTS["math_500"])[0].id == "test/1"


def test_last_box_is_the_balanced_one():
    assert last_boxed(r"\boxed{1} \boxed{\{1, 2\}}") == r"\{1, 2\}"
    assert last_boxed(r"\boxed{1} \boxed{2") is None  # the last one does not close; an earlier one does not stand in
    assert last_boxed("no box") is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 2: empty row"),
        ("   ", "line 2: empty row"),
        ('{"question": "a", ', r"line 2: not JSON \(.* at column 19\)"),
        ("[1, 2]", "line 2: a row must be an object with named columns, this is list"),
        ('{"query": "a", "answer": "1"}', "line 2: no column 'question'; the row has 'query', 'answer'|'answer'"),
        ('{"question": "a"}', "line 2: no column 'answer'; the row has 'question'"),
        ('{"question": "  ", "answer": "1"}', "line 2: column 'question' is empty"),
        ('{"question": "a", "answer": null}', "line 2: column 'answer' holds NoneType, expected text or a number"),
        ('{"question": "a", "answer": true}', "line 2: column 'answer' holds bool"),
        ('{"question": ["a"], "answer": 1}', "line 2: column 'question' holds list"),
        ('{"question": "\\ud800", "answer": 1}', "line 2: column 'question' holds half of a surrogate pair"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_column(tmp_path, line, message):
    path = write(tmp_path, GOOD, line, GOOD.replace("1 + 1", "3 + 3"))
    with pytest.raises(DataError, match=r"train\.jsonl, " + message):
        read_jsonl(path)


def test_other_bad_files_are_named(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(GOOD.encode() + b"\n" + '{"question": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl, line 2: not UTF-8"):
        read_jsonl(str(tmp_path / "latin.jsonl"))
    (tmp_path / "none.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"none\.jsonl: no rows"):
        read_jsonl(str(tmp_path / "none.jsonl"))
    with pytest.raises(FileNotFoundError, match="absent"):
        read_jsonl(str(tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match="no file matches"):
        read_jsonl(str(tmp_path / "absent-*.jsonl"))
    with pytest.raises(DataError, match="holds no answer of the form 'hashes': 'forty-two'"):
        read_jsonl(write(tmp_path, '{"question": "a", "answer": "forty-two"}'), LAYOUTS["gsm8k"])
    with pytest.raises(DataError, match=r"line 2: id 'a' was used before, at .*line 1"):
        read_jsonl(write(tmp_path, *['{"question": "q", "answer": 1, "i": "a"}'] * 2), ColumnMapping(id="i"))


def test_a_pattern_reads_files_sorted_by_name_and_a_byte_order_mark_is_no_error(tmp_path):
    write(tmp_path, GOOD.replace("1 + 1", "b"), name="part-1.jsonl")
    write(tmp_path, "\ufeff" + GOOD.replace("1 + 1", "a"), name="part-0.jsonl")
    assert [e.id for e in read_jsonl(str(tmp_path / "part-*.jsonl"))] == ["part-0:1", "part-1:1"]


def test_parquet_equals_jsonl_and_names_the_row(tmp_path):
    rows = [{"q": {"text": f"{i} + 0"}, "a": str(i)} for i in range(5)]
    columns = ColumnMapping("q.text", "a")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet", row_group_size=2)
    from_parquet = read_parquet(str(tmp_path / "train.parquet"), columns)
    assert from_parquet == read_jsonl(write(tmp_path, *map(json.dumps, rows)), columns)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rows, {"q": None, "a": "1"}]), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"bad\.parquet, row 6: no column 'q\.text'; the row has 'q', 'a'"):
        read_parquet(str(tmp_path / "bad.parquet"), columns)
    (tmp_path / "text.parquet").write_text("not parquet at all")
    with pytest.raises(DataError, match=r"text\.parquet: not a Parquet file"):
        read_parquet(str(tmp_path / "text.parquet"), columns)


def test_the_same_question_has_the_same_hash_however_it_is_spaced_or_cased():
    assert question_hash(question("What is  1 + 1?\n")) == question_hash(question("what is 1 ＋ 1?", "y"))
    assert question_hash(question("1 + 1")) != question_hash(question("1 + 2"))


def test_every_question_has_one_split_and_shares_follow_the_bounds():
    split = [split_of(question(f"{i} + {i}")) for i in range(4000)]
    for name, (low, high) in tasks.SPLIT_BOUNDS.items():
        assert split.count(name) / 4000 == pytest.approx((high - low) / 100, abs=0.03)


def test_shared_questions_are_found():
    check_disjoint({"rl": [question("a"), question("a", "again")], "evaluation": [question("b")]})
    with pytest.raises(DataError, match=r"rl \(x\) and evaluation \(y\) share the question 'A '"):
        check_disjoint({"rl": [question("a")], "evaluation": [question("A ", "y")]})


def test_sources_by_config_split_a_file_without_overlap(tmp_path):
    path = write(tmp_path, *(json.dumps({"question": f"{i} + 1", "answer": i + 1}) for i in range(300)))
    parts = {name: make_source(SourceConfig("jsonl", path=path, split=name)) for name in tasks.SPLIT_BOUNDS}
    check_disjoint(parts)
    assert sum(map(len, parts.values())) == 300
    few = make_source(SourceConfig("jsonl", path=path, size=3))
    assert [e.answer for e in few] == ["1", "2", "3"]
    assert few.fingerprint != parts["rl"].fingerprint
    assert few.fingerprint == make_source(SourceConfig("jsonl", path=path, size=3)).fingerprint
    assert example_iterator(few, 0, 2).get_state()["pipeline"]["source"] == few.fingerprint


def test_own_tasks_come_by_config_too():
    rl, held_out = (make_source(SourceConfig(size=200, split=s, seed=4)) for s in ("rl", "evaluation"))
    assert len(rl) == 200
    check_disjoint({"rl": rl, "evaluation": held_out})
    only = make_source(SourceConfig(size=20, params={"tasks": (("pair_search", 1.0),)}))
    assert {e.task for e in only} == {"pair_search"}


def test_no_question_is_in_two_splits_in_any_order_or_language():
    """Told by the numbers in the questions as written, not by the keys that made the splits."""

    def identity(example):
        text = example.question.replace("- ", "-").replace("+ ", "+")
        numbers = [part.removeprefix("+") for part in text.split() if part.lstrip("+-").isdigit()]
        last = [numbers.pop()] if example.task == "pair_search" else []
        return example.task, tuple(sorted(numbers)), tuple(last)

    sizes = {"rl": 20_000, "validation": 1000, "evaluation": 1000}
    seen = {split: {identity(e) for e in make_source(SourceConfig(size=n, split=split))} for split, n in sizes.items()}
    documents = [d for d in write_corpus(CorpusConfig(documents=8000, seed=0)) if d.split_key]
    seen["corpus"] = {
        ("chain_sum" if kind == "chain" else "pair_search", *split_numbers(rest))
        for kind, rest in (d.split_key.split(":") for d in documents)
    }
    assert {task for task, *_ in seen["corpus"]} == {"chain_sum", "pair_search"}
    for a, b in itertools.combinations(seen, 2):
        assert not seen[a] & seen[b], (a, b)


def split_numbers(key):
    """The sorted numbers and the target, if any, of a split key."""
    numbers, _, target = key.partition("=")
    return tuple(sorted(numbers.split(","))), (target,) if target else ()


def test_a_config_of_plain_values_becomes_a_source_config(tmp_path):
    config = {"kind": "jsonl", "path": "x", "columns": {"question": "q", "answer": "a"}}
    assert from_config(SourceConfig, config).columns == ColumnMapping("q", "a")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "xml"}, "kind: 'xml' is not one of tasks, programs, world, mixture, reasoning_gym, jsonl, parquet"),
        ({"kind": "jsonl", "layout": "gsm"}, "layout: 'gsm' is not one of plain, gsm8k"),
        ({"split": "test"}, "split: 'test' is not one of evaluation, rl, validation, corpus"),
        ({"path": "x"}, "path: a source of kind 'tasks' does not use this field"),
        ({"kind": "jsonl", "params": {"a": 1}}, "params: a source of kind 'jsonl' does not use this field"),
        ({"kind": "jsonl", "layout": "math", "columns": ColumnMapping()}, "columns and layout 'math' are both given"),
        ({"size": -1}, "size: -1 is negative"),
    ],
)
def test_a_wrong_source_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SourceConfig(**fields)


def test_missing_path_and_unknown_params_are_named():
    with pytest.raises(ValueError, match="path: a source of kind 'jsonl' needs a file"):
        make_source(SourceConfig("jsonl"))
    with pytest.raises(ValueError, match=r"params: \['operands'\] are not among \['tasks'"):
        make_source(SourceConfig(params={"operands": 3}))
    with pytest.raises(ValueError, match="answer_form 'box' is not one of plain, hashes, boxed"):
        ColumnMapping(answer_form="box")


def test_all_kinds_have_their_fields_listed():
    assert sources.SOURCES.keys() == sources._USED.keys()
