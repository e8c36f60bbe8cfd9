"""Planted overlaps are found; paraphrase is not, and neither are questions that only share their wording."""

from __future__ import annotations

import dataclasses

import pytest

from r1jax.data import tasks
from r1jax.data.decontamination import EvaluationQuestions, words_of
from r1jax.types import Example

TRAIN = Example(
    "aime-1", "A train leaves Ulm at nine and drives 84 kilometres in 70 minutes. How fast is it?", "72", "t"
)
SHORT = Example("short-1", "compute 7 + 5 - 3 + 8 ?", "17", "t")
CHINESE = Example("zh-1", "一列火车九点从乌尔姆出发，七十分钟行驶八十四公里。", "72", "t", "zh")
KNOWN = EvaluationQuestions({"aime": [TRAIN, SHORT], "cnmo": [CHINESE]})


def test_words() -> None:
    assert words_of("Don't add 7+5 - it's ＡＢ!") == ["don", "t", "add", "7", "+", "5", "-", "it", "s", "ab"]
    assert words_of("计算 7 + x_1 ?") == ["计", "算", "7", "+", "x", "1"]
    assert words_of(" , . ?") == []


def test_sets_are_counted() -> None:
    assert KNOWN.sizes == {"aime": 2, "cnmo": 1}
    assert KNOWN.short == {"aime": 1, "cnmo": 0}  # compute 7 + 5 - 3 + 8: 8 words


@pytest.mark.parametrize(
    ("text", "kind", "where"),
    [
        (TRAIN.question, "n words", "aime-1"),
        (f"Bob says: {TRAIN.question.upper()} Tell me.", "n words", "aime-1"),
        ("... leaves Ulm at nine, and drives: 84 kilometres\nin 70 (minutes)", "n words", "aime-1"),
        ("小明说：一列火车九点从乌尔姆出发", "n words", "zh-1"),
        ("Compute 7+5-3+8.", "all words", "short-1"),
    ],
)
def test_planted_overlaps_are_found(text: str, kind: str, where: str) -> None:
    found = KNOWN.overlap(text)
    assert found is not None
    assert (found.kind, found.id) == (kind, where)


@pytest.mark.parametrize(
    "text",
    [
        "leaves Ulm at nine and drives 84 kilometres in",  # nine words
        "A train leaves Ulm at 9 o'clock. It needs 70 minutes for 84 kilometres. What is its speed?",  # paraphrase
        "从乌尔姆九点开出的一列火车，用了七十分钟走完八十四公里。",
        "Ein Zug verlässt Ulm um neun und fährt 84 Kilometer in 70 Minuten. Wie schnell ist er?",  # translation
        "A train leaves Ulm at ten and drives 96 kilometres in 80 minutes. How fast is it?",  # other numbers
        "compute 7 + 5 - 3 - 8 ?",
        "compute 5 + 7 - 3 + 8 ?",
        "he asks: compute 7 + 5 - 3 + 8 ?",  # a short one within another text
        "",
    ],
)
def test_paraphrases_translations_and_other_numbers_are_not_found(text: str) -> None:
    assert KNOWN.overlap(text) is None


def test_the_same_question_is_found_by_its_hash() -> None:
    """Even one without a word that overlaps could compare."""
    question = Example("e", "? ! ?", "1", "t")
    known = EvaluationQuestions({"set": [question]})
    assert known.overlap("? ! ?") is None
    found = known.overlap_of_question(dataclasses.replace(question, id="other"))
    assert found is not None
    assert str(found) == "same question of set, e: ? ! ?"
    assert KNOWN.overlap_of_question(question) is None


def test_templates_alone_do_not_match() -> None:
    """Of 2000 sums and searches of another split, the few that overlap with one of 1000 share ten words in a row of it:
    five operands with their signs, where sums of six begin or end alike."""
    examples = {
        split: tasks.make_examples(tasks.TaskConfig(size=size, split=split, seed=0))
        for split, size in (("evaluation", 1000), ("rl", 2000))
    }
    known = EvaluationQuestions({"evaluation": examples["evaluation"]})
    found = [(e, known.overlap_of_question(e)) for e in examples["rl"]]
    hits = [(e, overlap) for e, overlap in found if overlap is not None]
    assert 0 < len(hits) <= 10
    questions = {e.id: e.question for e in examples["evaluation"]}
    for example, overlap in hits:
        assert overlap.kind == "n words"
        assert example.metadata["steps"] == 5
        for question in (example.question, questions[overlap.id]):
            assert overlap.words in " ".join(words_of(question))


TEMPLATE = "State the final answer to the following arithmetic problem: {} ="


def test_what_all_questions_begin_and_end_with_is_not_compared() -> None:
    """The template has nine words: with a first number in common there would be ten."""
    sums = [f"{a} + {b}" for a in (7, 12) for b in range(5)]
    examples = [Example(f"{e}", TEMPLATE.format(e), "0", "sum") for e in sums]
    known = EvaluationQuestions({"sums": examples})
    assert known.short == {"sums": 10}
    assert known.overlap(TEMPLATE.format("7 + 5")) is None
    found = known.overlap(TEMPLATE.format("7 + 4").upper())
    assert found is not None
    assert (found.kind, found.id, found.words) == ("all words", "7 + 4", "7 + 4")
    assert known.overlap("7 + 4") is None  # nobody asks anything
    few = EvaluationQuestions({"sums": examples[:9]})  # may have it in common by chance
    assert few.short == {"sums": 0}
    assert few.overlap(TEMPLATE.format("7 + 5")) is not None


def test_sets_in_different_frames_are_all_held_against() -> None:
    framed = [Example(str(i), f"compute {i} + 1 ?", "0", "sum") for i in range(10)]
    known = EvaluationQuestions({"framed": framed, "single": [Example("s", "compute 11 + 1 ?", "0", "sum")]})
    for text, where in (("compute 3 + 1", "3"), ("compute 11 + 1", "s")):
        found = known.overlap(text)
        assert found is not None
        assert found.id == where
    assert known.overlap("compute 12 + 1") is None


def test_n_is_checked() -> None:
    with pytest.raises(ValueError, match="n: 0 words"):
        EvaluationQuestions({}, n=0)
