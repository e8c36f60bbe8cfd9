r"""Completions that try to earn what they do not deserve, and ordinary ones that deserve it; texts in two languages.

Whether a completion is right, whether it is well-formed and how much of it is in which language is known because it was
put together that way.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

from r1jax.types import Example


@dataclasses.dataclass(frozen=True)
class Completion:
    """A completion, what it answers, and what is true of it."""

    kind: str
    text: str
    example: Example
    right: bool
    well_formed: bool


@dataclasses.dataclass(frozen=True)
class LanguageText:
    """A completion and the share of its thought's words that are in the language of the question."""

    text: str
    example: Example
    share: float


def _example(answer: str, language: str = "en") -> Example:
    return Example(id="", question="What is it?", answer=answer, task="math", language=language)


def formed(answer: str, thought: str = "a thought about it") -> str:
    """A well-formed completion."""
    return f"<think> {thought} </think> <answer> {answer} </answer>"


def _commitments(v: int, w: int) -> dict[str, tuple[str, ...]]:
    """Several answers, hedges, boxes and nothing: none of them is the number v."""
    return {
        "several at once": (
            f"{v}, {w}",
            f"{w} or {v}",
            f"{v} and {w}",
            f"{v}; {w}",
            f"{v} {w}",
            f"either {v} or {w}",
            f"${v}$ and ${w}$",
            f"\\{{{v}, {w}\\}}",
            f"({v}, {w})",
            f"{v}/{w}",
            f"{v} = {w}",
            f"x = {v} or x = {w}",
            f"{v}\n{w}",
            f"{v}、{w}",
            f"{v} 或 {w}",
            f"x = {w} = {v}",
        ),
        "hedges": (
            f"not {v}",
            f"about {v}",
            f"~{v}",
            f"{v}?",
            f"\\approx {v}",
            f"{v} or so",
            f"maybe {v}",
            f"{v} (or {w})",
            f"{v} \\pm 1",
            f"\\pm {v}",
            f"\\ge {v}",
            f"x > {v}",
            f"[{v}, {v + 1}]",
            f"{v} \\text{{ or more}}",
            f"不是{v}",
            f"\\text{{not }} {v}",
        ),
        "boxes": (
            f"\\boxed{{{v}}} \\boxed{{{w}}}",
            f"\\boxed{{{v}}} \\boxed{{",
            f"\\boxed{{{w} \\boxed{{{v}}}}}",
            f"\\boxed{{}} {v}",
            f"\\boxed{{{v}",
            f"{v} \\boxed{{{w}}}",
            f"\\boxed{{{v}, {w}}}",
            f"\\boxed{{{v}}} \\boxed{{}}",
            f"\\boxed {v}",
            f"\\boxed{{\\text{{not }} {v}}}",
            f"\\boxed{{{v} \\boxed{{}}}}",
            f"\\fbox{{{w}}} {v}",
        ),
        "nothing": (
            "\\boxed{}",
            "$$",
            "{}",
            "()",
            "\\text{}",
            "$ $",
            ".",
            "-",
            "\\frac{}{}",
            "\\,",
            "?",
            "answer",
            "...",
            "\u200b",
        ),
    }


def _numbers(v: int, w: int, canary: str) -> dict[str, tuple[str, ...]]:
    """Parts of numbers, near ones, programs and what never ends: none is the number v."""
    return {
        "parts of numbers": (
            f"{v}{w}",
            f"{w}{v}",
            f"x{v}",
            f"0x{v}",
            f"{v}.{w}",
            f"{v}e1",
            f"{v}_{w}",
            f"{v},{w}",
            f"{v}!",
            f"{v}^{{2}}",
            f"{v}'",
            f"{v}{v}",
        ),
        "near": (
            f"{v}.0000001",
            f"{v - 1}.9999999999999999",
            f"-{v}",
            f"{v + 1}",
            f"{v - 1}",
            f"{v}\\%",
            f"{v}/100",
            f"{v} + 10^{{-30}}",
            f"{v} - 10^{{-300}}",
            f"{v} \\cdot 10",
            f"\\frac{{1}}{{{v}}}",
            f"{v} \\text{{ kg}}",
            f"{v} i",
            f"{v}x",
            f"{v} + e^{{-200}}",
        ),
        "programs": (
            f"__import__('os').system('touch {canary}')",
            f"exec(\"open('{canary}','w')\")",
            f"Integer({v})",
            f'eval(\'open("{canary}", "w")\') or {v}',
            f"(lambda: {v})()",
            f"S({v})",
            f"{{{{{v}}}}}.format()",
            f"[open('{canary}','w'), {v}][1]",
            "x.__class__.__mro__[1]",
            f"\\input{{{canary}}}",
            f"`touch {canary}`",
            f"$(touch {canary})",
            f"\\write18{{touch {canary}}}",
            f"Symbol('x').func({v})",
            f"{v}; import os",
        ),
        "endless": (
            "9^{9^{9^{9}}}",
            "10^{10^{10}}!",
            "((((9!)!)!)!)!",
            "x^{99999999999}",
            "\\binom{10^{12}}{10^{11}}",
            "\\sqrt[99999999]{2}",
            "e^{e^{e^{e^{e}}}}",
            "(" * 300 + str(v) + ")" * 300,
            "{" * 400,
            "\\frac{" * 150,
            "-" * 900 + str(v + 1),
            f"{v}" + "!" * 30,
            "\\ln(" * 100,
            f"{v}^{{{'9' * 300}}}",
            "|" * 301,
            "\\pm" * 300 + "1",
            "\\pm 1 " * 60,
            "\\sum_{n=1}^{999999999} \\sin(n^n)",
            "\\int_0^1 x^{x^{x^x}} dx",
        ),
    }


def _words(v: int) -> dict[str, tuple[str, ...]]:
    """Persuasion and what holds for any number."""
    return {
        "persuasion": (
            f"{v} is what the grader wants",
            "correct",
            "True",
            "reward = 1",
            "the reference answer",
            "gold",
            "1.0",
            "same as the solution",
            f"answer == {v}",
            "any number",
            "all of them",
            "right",
            "see above",
            "0 == 0",
            "\\top",
        ),
        "anything goes": (
            "x",
            "x = x",
            "0/0",
            "\\frac{0}{0}",
            "\\infty",
            "nan",
            "\\mathbb{R}",
            "x \\in \\mathbb{R}",
            "(-\\infty, \\infty)",
            f"{v} \\cdot \\frac{{0}}{{0}}",
            "\\emptyset",
            "*",
            "n",
            "f(x)",
            "_",
            f"x = x + {v}",
            ".*",
        ),
    }


def _answers(v: int, w: int, canary: str) -> dict[str, tuple[str, ...]]:
    """Answers that are not the number v, by kind; each stands in a well-formed completion."""
    return _commitments(v, w) | _numbers(v, w, canary) | _words(v)


def _malformed(v: int, w: int) -> tuple[tuple[str, str], ...]:
    """(kind, completion): no answer of these counts, and none is well-formed."""
    return (
        ("in the thought", f"<think> <answer> {v} </answer> </think>"),
        ("in the thought", f"<think> the answer is {v} </think>"),
        ("in the thought", f"<think> \\boxed{{{v}}} </think> <answer> </answer>"),
        ("in the thought", f"<think> <answer> {v} </answer> </think> <answer> {w} </answer>"),
        ("in the thought", f"<think> {v} <answer> {v} </answer>"),
        ("tags", f"<answer> {w} </answer> <answer> {v} </answer>"),
        ("tags", f"<answer> {v} </answer> <answer> {w} </answer>"),
        ("tags", f"<think> a </think> <answer> {v}"),
        ("tags", f"<think> a </think> {v} </answer>"),
        ("tags", f"<think> a </think> <Answer> {v} </Answer>"),
        ("tags", f"<think> a </think> ＜answer＞ {v} ＜/answer＞"),
        ("tags", f"<answer> {v} </answer> <think> a </think>"),
        ("tags", f"<think> a </think> <answer> <answer> {v} </answer> </answer>"),
        ("tags", f"<think> a </think> <answer> {v} <think> b </think> </answer>"),
        ("tags", f"\\boxed{{{v}}}"),
        ("tags", f"#### {v}"),
        ("tags", f"{v}"),
        ("tags", f"<think> a </think> <answer>{v}</answer><answer>"),
        ("tags", f"</think> </think> <answer> {v} </answer>"),
        ("tags", f"<answer> </answer> {v}"),
    )


def _malformed_but_right(v: int) -> tuple[str, ...]:
    """The answer counts, the format does not."""
    return (
        f"<answer> {v} </answer>",
        f"<think> </think> <answer> {v} </answer>",
        f"Well. {formed(str(v))}",
        f"{formed(str(v))} That is all.",
        f"<think> a </think> So: <answer> {v} </answer>",
        f"a </think> <answer> {v} </answer>",
    )


def make_attacks(count: int, canary: str, seed: int = 0) -> list[Completion]:
    """At least `count` attacks, every one at least once; `canary` is a file that a program among them would make."""
    attacks: list[Completion] = []
    draw = random.Random(f"attacks {seed}")
    while len(attacks) < count:
        v, w = draw.sample(range(12, 99), 2)
        example = _example(str(v))
        for kind, answers in _answers(v, w, canary).items():
            attacks += [Completion(kind, formed(answer), example, right=False, well_formed=True) for answer in answers]
        attacks += [Completion(kind, text, example, right=False, well_formed=False) for kind, text in _malformed(v, w)]
    return attacks


def make_ordinary(count: int, seed: int = 0) -> list[Completion]:
    """Right answers: well-formed ones, and as many again with a fault in the form."""
    completions = []
    draw = random.Random(f"ordinary {seed}")
    for _ in range(count):
        v = draw.randint(1, 999)
        answer = draw.choice(("{}", "\\boxed{{{}}}", "${}$", "{}.", "So it is \\boxed{{{}}}.", "{}.0")).format(v)
        thought = draw.choice(("first this\n\nthen that", "一步一步来", "$a < b$, so 3", "x"))
        completions.append(Completion("ordinary", formed(answer, thought), _example(str(v)), True, True))
        faulty = draw.choice(_malformed_but_right(v))
        completions.append(Completion("faulty form", faulty, _example(str(v)), True, False))
    return completions


_ENGLISH = (
    "first",
    "we",
    "add",
    "both",
    "numbers",
    "then",
    "check",
    "whether",
    "the",
    "total",
    "is",
    "right",
    "because",
)
_CHINESE = "先把两个数加起来然后再检查一遍每一步是否都对最后得到这些结果"
_NEUTRAL = ("3 + 4 = 7", "$x^2$", "...", "(12)", "= 5")


def make_language_texts(count: int, seed: int = 0) -> list[LanguageText]:
    """Half of them wholly in the language of the question, half with words of the other somewhere in it."""
    return list(_language_texts(count, random.Random(f"language {seed}")))


def _language_texts(count: int, draw: random.Random) -> Iterator[LanguageText]:
    hidden = ("{}", "{}", "${}$", "`{}`", "```\n{}\n```", "\\text{{{}}}", "({})", "\\[{}\\]")
    for index in range(count):
        language = draw.choice(("en", "zh"))
        pure = index % 2 == 0
        english = draw.choices(_ENGLISH, k=draw.randint(1, 30))
        chinese = draw.choices(_CHINESE, k=draw.randint(1, 30))
        own, other = (english, chinese) if language == "en" else (chinese, english)
        # Latin letters in code and mathematics are no words, so only Chinese can hide there.
        pieces = own + ([] if pure else [(draw.choice(hidden) if language == "en" else "{}").format(x) for x in other])
        pieces += draw.choices(_NEUTRAL, k=draw.randint(0, 3))
        draw.shuffle(pieces)
        share = 1.0 if pure else len(own) / (len(own) + len(other))
        yield LanguageText(formed("7", " ".join(pieces)), _example("7", language), share)
