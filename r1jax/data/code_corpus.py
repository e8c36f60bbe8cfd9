"""Documents about small programs (`code_tasks`), written by people of mixed care: what a model reads before RL on code.

- notes: what an expression is called ("xs reversed : xs[::-1]");
- chats and forum posts in which someone asks for a program and someone else answers. Careful authors first say what
  each part is and put the parts together; hasty ones write a program at once, often with another function, another
  number or another operation than was asked for; some do not close a bracket or forget a colon.
"""

from __future__ import annotations

import numpy as np

from r1jax.data.code_tasks import Problem, all_problems, home_of
from r1jax.data.tasks import split_of

NOTES = 0.2  # of all documents
FORUM = 0.15
UNTAGGED = 0.25  # of the chats
CAREFUL = 0.3  # of the authors
SLIP = 0.06  # of careful authors, for each part
HASTY_SLIP = 0.4  # of hasty ones, for each part
BROKEN = 0.12  # programs that do not parse


def write_program_document(rng: np.random.Generator) -> tuple[str, str, str]:
    """(text, kind, split key) of one document; its problem belongs to the split "corpus"."""
    problem = _sample_problem(rng)
    key = problem.question
    kind = rng.random()
    if kind < NOTES:
        return _note(rng, problem), "program/note", key
    careful = bool(rng.random() < CAREFUL)
    written = _misread(rng, problem, SLIP if careful else HASTY_SLIP)
    program = _break(rng, written.reference) if rng.random() < BROKEN else written.reference
    thought = _reading(written) if careful else str(rng.choice(["easy .", "just write it ."]))
    mode = "careful" if careful else "hasty"
    if kind < NOTES + FORUM:
        return f"Q: {key} A: {thought} {program}", f"program/forum_{mode}", key
    if rng.random() < UNTAGGED:
        return f"User: {key} Assistant: {thought} {program}", f"program/untagged_{mode}", key
    text = f"User: {key} Assistant: <think> {thought} </think> <answer> {program} </answer>"
    return text, f"program/chat_{mode}", key


def _sample_problem(rng: np.random.Generator) -> Problem:
    problems = CORPUS_PROBLEMS
    return problems[int(rng.integers(len(problems)))]


CORPUS_PROBLEMS = tuple(problem for problem in all_problems() if split_of(problem.question) == "corpus")


def _note(rng: np.random.Generator, problem: Problem) -> str:
    """Two or three true readings of parts."""
    others = [_sample_problem(rng) for _ in range(int(rng.integers(1, 3)))]
    return " ".join(_reading(one) for one in (problem, *others))


def _reading(problem: Problem) -> str:
    """What each part is, and both together."""
    home, on = home_of(problem.first)
    part = home[problem.first][0]
    whole = on[problem.then][0].format(e=part, k=problem.constant)
    return f"{problem.first} : {part} ; {problem.then.format(k=problem.constant)} : {whole} ."


def _misread(rng: np.random.Generator, problem: Problem, slip: float) -> Problem:
    """The problem as its author understood it: each part may have become another one.

    What comes out is a problem of the corpus too, so that no program or reading of another split is ever written down:
    where a slip of the other parts alone leads to none, the number changes as well.
    """
    first, then, constant = (bool(slips) for slips in rng.random(3) < slip)
    if not first and not then and not constant:
        return problem
    home = home_of(problem.first)[0]
    kin = [p for p in CORPUS_PROBLEMS if p.first in home]
    kin = [p for p in kin if (p.first != problem.first) == first and (p.then != problem.then) == then]
    chosen = [p for p in kin if (p.constant != problem.constant) == constant] or kin
    return chosen[int(rng.integers(len(chosen)))]


def _break(rng: np.random.Generator, program: str) -> str:
    """A program without one of its brackets or its colon. (Without a colon in a slice it would be another program.)"""
    places = [i for i, character in enumerate(program) if character in "()[]"] + [program.index("):") + 1]
    place = int(rng.choice(places))
    return program[:place] + program[place + 1 :]
