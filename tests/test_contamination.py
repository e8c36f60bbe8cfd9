"""Overlaps of an evaluation with what was trained on, planted one by one."""

from __future__ import annotations

from r1jax.data.chat import Message
from r1jax.data.samples import Sample
from r1jax.evaluation.contamination import contamination, documents_of
from r1jax.types import Example

LONG = "A farmer has seven red hens and sells two of them on Monday morning, how many are left?"
QUESTIONS = [
    Example("long", LONG, "5", "q"),
    Example("short", "compute 7 + 5 - 3 ?", "9", "q"),
    Example("clean", "What is the smallest prime above one hundred, and which is the largest one below it?", "", "q"),
]


def counts(*trained: Sample | Example) -> tuple[int, int]:
    """Equal and overlapping questions."""
    found = contamination(QUESTIONS, {"file": documents_of(trained)})
    assert found["trained"]["file"] == {"documents": len(trained), **{k: found[k] for k in ("equal", "overlap")}}
    return found["equal"], found["overlap"]


def sample(question: str, completion: str = "so be it") -> Sample:
    return Sample("s", question=question, completion=completion)


def test_equal_questions_are_found_whatever_their_case_and_blanks() -> None:
    assert counts(sample("COMPUTE 7 + 5  - 3 ?")) == (1, 1)
    assert counts(Example("e", LONG.upper(), "", "t")) == (1, 1)
    assert counts(sample("compute 7 + 5 - 4 ?")) == (0, 0)


def test_ten_words_in_a_row_are_an_overlap_and_nine_are_not() -> None:
    words = LONG.split()
    assert counts(sample("Now " + " ".join(words[2:12]) + " yesterday")) == (0, 1)
    assert counts(sample("Now " + " ".join(words[2:11]) + " yesterday")) == (0, 0)
    assert counts(sample("Tell.", completion="It goes: " + LONG)) == (0, 1)  # a completion may hold it, too


def test_short_questions_overlap_only_as_a_whole() -> None:
    assert counts(sample("compute, 7 + 5 - 3")) == (0, 1)  # other punctuation: not equal, yet the same words
    assert counts(sample("Please compute 7 + 5 - 3 ?")) == (0, 0)


def test_a_paraphrase_is_not_found() -> None:
    text = "On Monday morning two of a farmer's seven red hens were sold. How many did the farmer keep?"
    assert counts(sample(text)) == (0, 0)


def test_all_sides_of_a_conversation_are_looked_at() -> None:
    said = (Message("user", "Hello"), Message("assistant", "Hi"), Message("user", LONG), Message("assistant", "5"))
    assert counts(Sample("m", messages=said)) == (1, 1)
    said = (Message("user", "Ask me"), Message("assistant", f"{LONG} Well?"))
    assert counts(Sample("m", messages=said)) == (0, 1)


def test_a_question_counts_once_over_all_files() -> None:
    found = contamination(
        QUESTIONS, {"a": documents_of([sample(LONG)] * 2), "b": documents_of([sample(LONG), QUESTIONS[1]])}
    )
    assert (found["questions"], found["equal"], found["overlap"], found["words"]) == (3, 2, 2, 10)
    assert found["trained"]["a"] == {"documents": 2, "equal": 1, "overlap": 1}
    assert found["trained"]["b"] == {"documents": 2, "equal": 2, "overlap": 2}
