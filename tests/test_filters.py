"""Each filter on texts made for it, and their order."""

from __future__ import annotations

import dataclasses

import pytest

from r1jax.rewards.combine import Scores
from r1jax.rewards.filters import FILTERS, Candidate, Drop, FilterConfig, first_failure
from r1jax.types import Example, Score, Status

ENGLISH = Example("q", "compute 7 + 5 - 3 ?", "9", "chain_sum")
CHINESE = dataclasses.replace(ENGLISH, language="zh")
THOUGHT = "seven plus five is twelve , minus three is nine"
RIGHT = Score(1.0)
OFF = FilterConfig(
    wrong=False,
    ungraded=False,
    truncated=False,
    format=False,
    mixed_language=None,
    wrong_language=None,
    repetition=None,
    paragraph=None,
    code_block=False,
)


def candidate(
    thought: str = THOUGHT,
    example: Example = ENGLISH,
    accuracy: Score | None = RIGHT,
    text: str = "",
    tokens: tuple[int, ...] = tuple(range(30)),
    finished: bool = True,
    pattern: str = "answer",
) -> Candidate:
    parts = {} if accuracy is None else {"accuracy": accuracy}
    text = text or f" <think> {thought} </think> <answer> 9 </answer>"
    return Candidate(example, text, tokens, finished, Scores(None, parts), pattern)


def failed(sample: Candidate, config: FilterConfig | None = None) -> str:
    drop = first_failure(sample, config or FilterConfig())
    return "" if drop is None else drop.filter


def test_a_good_sample_passes_in_each_pattern() -> None:
    assert failed(candidate()) == ""
    summary = f" <think> {THOUGHT} </think> so the result is <answer> 9 </answer>"
    assert failed(candidate(text=summary, pattern="summary")) == ""
    assert failed(candidate(text=f"{THOUGHT}\n</think>\n\nIt is \\boxed{{9}}.", pattern="boxed")) == ""


@pytest.mark.parametrize(
    ("sample", "dropped_for"),
    [
        (candidate(accuracy=Score(0.0, reason="another answer")), "wrong"),
        (candidate(accuracy=Score(0.5)), "wrong"),  # partial credit is not right
        (candidate(accuracy=Score(1.0, Status.UNGRADABLE, "no reference")), "ungraded"),
        (candidate(accuracy=Score(0.0, Status.TIMED_OUT)), "ungraded"),
        (candidate(finished=False), "truncated"),
        (candidate(text=f" <think> {THOUGHT} </think> so <answer> 9 </answer>"), "format"),
        (candidate("seven 加 五 is twelve , minus three 得 九"), "mixed_language"),
        (candidate("七 加 五 得 十二 ， 减 三 得 九"), "wrong_language"),
        (candidate(THOUGHT, CHINESE), "wrong_language"),
        (
            candidate(text=f" <think> {THOUGHT} </think> 所以 结果 是 <answer> 9 </answer>", pattern="summary"),
            "wrong_language",  # the summary's
        ),
        (candidate(tokens=(1, 2, 3, 4, 5) * 12), "repetition"),
        (candidate("so " * 1400), "paragraph"),
        (candidate("so\n\n```python\nprint(9)\n```"), "code_block"),
        (candidate("so\n  ~~~\nprint(9)\n~~~"), "code_block"),
    ],
)
def test_each_filter_drops_what_it_is_for_and_can_be_left_out(sample: Candidate, dropped_for: str) -> None:
    assert failed(sample) == dropped_for
    fields = [dropped_for]
    default = FilterConfig()
    alone = dataclasses.replace(OFF, **{name: getattr(default, name) for name in fields})
    assert failed(sample, alone) == dropped_for
    assert failed(sample, OFF) == ""


def test_thresholds_are_inclusive() -> None:
    nine_of_ten = candidate("one two three four five six seven eight nine 十")
    assert failed(nine_of_ten) == ""
    assert failed(nine_of_ten, FilterConfig(mixed_language=0.91)) == "mixed_language"
    assert failed(nine_of_ten, FilterConfig(wrong_language=0.91)) == "wrong_language"
    # 8 tokens have 6 3-grams, of which 2 repeat: 123 231 312 123 231 319
    repeating = candidate(tokens=(1, 2, 3, 1, 2, 3, 1, 9))
    assert first_failure(repeating, FilterConfig(repetition=0.2, repetition_n=3)) == Drop(
        "repetition", "0.33 of the 3-grams repeat"
    )
    assert failed(repeating, FilterConfig(repetition=0.34, repetition_n=3)) == ""
    assert failed(candidate("x" * 50 + "\n \n" + "x" * 50), FilterConfig(paragraph=50, repetition=None)) == ""
    assert failed(candidate("x" * 50 + "\n" + "x" * 50), FilterConfig(paragraph=50)) == "paragraph"


def test_only_the_thought_is_held_to_code_and_paragraphs() -> None:
    text = f" <think> {THOUGHT} </think> ```9``` {'so ' * 1400} <answer> 9 </answer>"
    assert failed(candidate(text=text, pattern="summary")) == ""


def test_a_thought_of_signs_is_in_no_wrong_language() -> None:
    assert failed(candidate("7 + 5 = 12 , 12 - 3 = 9", CHINESE)) == ""


def test_what_has_no_right_answer_is_neither_wrong_nor_ungraded() -> None:
    assert failed(candidate(accuracy=None)) == ""


def test_the_first_filter_in_the_order_is_named() -> None:
    """A sample that fails all of them, mended one by one, is dropped by each in its turn."""
    bad = candidate(
        text=" <think> seven 加 ```" + "so " * 2000 + " </think> ```9```",
        accuracy=Score(0.0),
        tokens=(1, 2) * 40,
        finished=False,
    )
    order = []
    config = FilterConfig(mixed_language=1.0, wrong_language=1.0)
    while name := failed(bad, config):
        order.append(name)
        config = dataclasses.replace(config, **{name: getattr(OFF, name)})
        if name == "wrong":  # it cannot be both
            ungraded = Score(0.0, Status.UNGRADABLE)
            bad = dataclasses.replace(bad, scores=Scores(None, {"accuracy": ungraded}))
    assert order == list(FILTERS)


@pytest.mark.parametrize(
    ("field", "value"), [("mixed_language", 1.1), ("repetition", -0.1), ("repetition_n", 0), ("paragraph", 0)]
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        FilterConfig(**{field: value})
