"""The measurement of a judge: items whose truth is known by construction, and what is printed of each kind of judge."""

from __future__ import annotations

import json
import re

import pytest
from scripted_endpoint import Act, completion, serving

from r1jax.rewards.answer import extract_final_answer
from r1jax.types import Score, Status
from tools import judge_agreement
from tools.judge_agreement import make_items, report


def test_half_of_the_items_are_right_by_arithmetic():
    items = make_items(200, seed=0)
    assert len({item.example.id for item in items}) > 190
    for item in items:
        expression = re.fullmatch(r"compute ([\d +-]+) \?", item.example.question).group(1)
        stated = re.findall(r"\d+(?:\.0)?", extract_final_answer(item.completion))
        assert len(stated) == 1
        assert (float(stated[0]) == eval(expression)) is item.right
    assert sum(item.right for item in items) == 100
    assert make_items(200, seed=0) == items != make_items(200, seed=1)


def test_the_report_counts_each_class_and_what_has_no_grade():
    items = make_items(8, seed=0)  # right and wrong in turn
    no, yes, lost = Score(0.0), Score(1.0), Score(0.0, Status.UNGRADABLE, "the judge: gone")
    garbled, late = Score(0.0, Status.UNGRADABLE, "unparseable verdict: ''"), Score(0.0, Status.TIMED_OUT, "late")
    lines = report(items, [yes, no, yes, yes, no, lost, garbled, late], 4.0).splitlines()
    assert [line.split("%")[0].split() for line in lines[:5]] == [
        ["agreement", "3", "of", "5", "60.0"],
        ["right,", "judged", "right", "2", "of", "3", "66.7"],
        ["wrong,", "judged", "wrong", "1", "of", "2", "50.0"],
        ["unparseable", "1", "of", "8", "12.5"],
        ["no", "answer", "2", "of", "8", "25.0"],
    ]
    assert "(14.7 to 94.7)" in lines[0]  # 3 of 5, from a table of exact binomial bounds
    assert lines[5] == "4.0 s, 2.00 items/s"
    assert sorted(lines[6:]) == [
        "   1 x timed_out: late",
        "   1 x ungradable: the judge: gone",
        "   1 x ungradable: unparseable verdict: ''",
    ]
    assert "agreement                 0 of    0    0.0 %  (0.0 to 100.0)" in report(items, [lost] * 8, 1.0)


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["judge_agreement", *arguments])
    judge_agreement.main()


def test_a_judge_that_can_add_agrees_with_everything(monkeypatch, capsys):
    pytest.importorskip("openai")

    def verdict(request):
        asked = request["messages"][-1]["content"]
        found = re.search(r'Reference answer: "(\d+)"\nPredicted answer: "\D*(\d+)', asked)
        same = found is not None and found.group(1) == found.group(2)
        return completion(json.dumps({"analysis": "", "correctness": "correct" if same else "incorrect"}))

    with serving(Act(verdict)) as server:
        run(monkeypatch, "--url", server.url, "--model", "m", "--items", "20", "--show", "1")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("compute ")
    assert lines[1].startswith("agreement                20 of   20  100.0 %")
