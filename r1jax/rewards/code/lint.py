"""Lint as a graded signal: ruff's findings in a program, which ruff reads and nobody runs.

The papers check code with compilers and tests; a graded lint reward and its formula are ours. It is cheap to earn by
programs that do nothing (`pass` is flawless): use it beside accuracy, never in its place.
"""

from __future__ import annotations

import importlib
import json
import subprocess

from r1jax.rewards.code.programs import is_python
from r1jax.types import Score, Status

# What is likely an error (pyflakes, syntax, bugbear, pylint's errors) or hard to read (statements run together), not
# how a line is laid out. Changing it changes the reward.
RULES = ("E4", "E7", "E9", "F", "B", "PLE", "W605")
TARGET = "py311"
SECONDS = 10.0  # of wall clock; a program of usual length takes a few hundredths
MOST_CHARACTERS = 200_000
LINES_PER_FINDING = 10  # one finding in so many lines halves the reward


class LintUnavailableError(RuntimeError):
    """ruff is not to be had here; never the fault of a program."""


def find_ruff() -> str:
    """The path of ruff's executable. LintUnavailableError if the package is not installed."""
    try:
        return str(importlib.import_module("ruff.__main__").find_ruff_bin())
    except (ImportError, AttributeError, FileNotFoundError) as error:
        raise LintUnavailableError(
            f"the measure lint needs ruff: python -m pip install 'r1jax[code]' ({type(error).__name__}: {error})"
        ) from error


def check_lint() -> None:
    """LintUnavailableError, naming the extra to install, where lint could not be graded."""
    score = lint_reward("print(1)\n")
    if score != Score(1.0):
        raise LintUnavailableError(f"ruff does not work here: {score.reason}; the extra is r1jax[code]")


def code_lines(program: str) -> int:
    """Lines that are neither blank nor only a comment, so that neither dilutes the findings; at least 1."""
    lines = (line.strip() for line in program.split("\n"))
    return max(1, sum(bool(line) and not line.startswith("#") for line in lines))


def lint_reward(program: str) -> Score:
    """1 / (1 + findings per 10 lines of code), hence 1 without findings; 0 for a program that does not parse.

    Deterministic for a version of ruff: no settings but `RULES` are read, and comments (`# noqa`) hide nothing.
    UNGRADABLE where ruff is missing or breaks, or the program is longer than `MOST_CHARACTERS`; TIMED_OUT where ruff
    takes longer than `SECONDS`.
    """
    if len(program) > MOST_CHARACTERS:
        return Score(0.0, Status.UNGRADABLE, f"lint: {len(program)} characters, at most {MOST_CHARACTERS} are read")
    if not is_python(program):
        return Score(0.0, reason="it does not parse")
    try:
        found = _count_findings(program)
    except LintUnavailableError as error:
        return Score(0.0, Status.UNGRADABLE, str(error))
    except subprocess.TimeoutExpired:
        return Score(0.0, Status.TIMED_OUT, f"lint: ruff took more than {SECONDS} seconds")
    if None in found:
        return Score(0.0, reason="it does not parse")
    findings = sum(found.values())
    reason = ", ".join(f"{code} {count}" for code, count in sorted(found.items(), key=str))
    return Score(1.0 / (1.0 + LINES_PER_FINDING * findings / code_lines(program)), reason=reason)


def _count_findings(program: str) -> dict[str | None, int]:
    """How often each rule was broken; None stands for what is no syntax of Python."""
    command = [find_ruff(), "check", "--isolated", "--no-cache", "--ignore-noqa", f"--select={','.join(RULES)}"]
    command += [f"--target-version={TARGET}", "--stdin-filename=solution.py", "--statistics", "--output-format=json"]
    text = program.encode("utf-8")
    try:
        done = subprocess.run([*command, "-"], input=text, capture_output=True, env={}, cwd="/", timeout=SECONDS)
    except OSError as error:
        raise LintUnavailableError(f"ruff cannot be started: {error}") from error
    if done.returncode not in (0, 1):
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise LintUnavailableError(f"ruff ended with {done.returncode}: {said}")
    try:
        return {rule["code"]: int(rule["count"]) for rule in json.loads(done.stdout or b"[]")}
    except (ValueError, KeyError, TypeError) as error:
        raise LintUnavailableError(f"ruff printed no statistics: {done.stdout[:100]!r}") from error
