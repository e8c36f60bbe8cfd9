"""Lint as a graded signal: hand-counted findings, and a ruff that is missing, slow or broken."""

from __future__ import annotations

import pathlib
import sys

import pytest

from r1jax.rewards.code import lint
from r1jax.rewards.code.lint import LintUnavailableError, check_lint, lint_reward
from r1jax.types import Score, Status

pytest.importorskip("ruff", reason="ruff is the extra code")

UNUSED = "import os\n"  # F401


@pytest.mark.parametrize(
    ("program", "lines", "findings"),
    [
        ("print(1)", 1, 0),
        (UNUSED, 1, 1),
        (UNUSED + "import sys\n", 2, 2),
        (UNUSED + "print(1)\n" * 9, 10, 1),
        ("x = 1; y = 2\nprint(x, y)\n", 2, 1),  # E702
        ("try:\n    print(1)\nexcept:\n    print(2)\n", 4, 1),  # E722
        ("def f(x=[]):\n    return x\n", 2, 1),  # B006
        ("print(undefined)\n", 1, 1),  # F821
    ],
)
def test_the_reward_is_by_findings_per_ten_lines(program: str, lines: int, findings: int) -> None:
    score = lint_reward(program)
    assert score.status is Status.GRADED
    assert score.value == pytest.approx(1 / (1 + 10 * findings / lines))


def test_what_does_not_parse_earns_nothing() -> None:
    for program in ("I would sort it.", "def f(:", "print 1", "\ud800"):
        assert lint_reward(program) == Score(0.0, reason="it does not parse")


@pytest.mark.parametrize(
    "program",
    [
        "import os  # noqa\n",
        "import os  # noqa: F401\n",
        "# ruff: noqa\nimport os\n",
        "# flake8: noqa\nimport os\n",
        "# ruff: disable[F401]\nimport os\n# ruff: enable[F401]\n",
        "# /// script\n# [tool.ruff.lint]\n# ignore = ['F401']\n# ///\nimport os\n",
        "# a comment\n\n\n# and more\nimport os\n",
    ],
)
def test_comments_neither_hide_nor_dilute_findings(program: str) -> None:
    assert lint_reward(program).value == lint_reward(UNUSED).value == pytest.approx(1 / 11)


def test_settings_of_the_place_do_not_count(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ruff.toml").write_text("lint.ignore = ['F401']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUFF_OUTPUT_FORMAT", "concise")
    assert lint_reward(UNUSED).value == pytest.approx(1 / 11)


def test_a_program_beyond_the_bound_has_no_grade() -> None:
    score = lint_reward("x = 1\n" * (lint.MOST_CHARACTERS // 6 + 1))
    assert (score.value, score.status) == (0.0, Status.UNGRADABLE)
    assert "at most 200000 are read" in score.reason


def stand_in(folder: pathlib.Path, body: str) -> str:
    path = folder / "ruff"
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ("import os; os.abort()", Status.UNGRADABLE, "ruff ended with -6"),
        ("import sys; sys.exit(2)", Status.UNGRADABLE, "ruff ended with 2"),
        ("print('All checks passed!')", Status.UNGRADABLE, "ruff printed no statistics"),
        ("print('[1]')", Status.UNGRADABLE, "ruff printed no statistics"),
        ("import time; time.sleep(60)", Status.TIMED_OUT, "ruff took more than 0.5 seconds"),
    ],
)
def test_a_broken_ruff_is_never_a_bad_program(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, body: str, status: Status, reason: str
) -> None:
    path = stand_in(tmp_path, body)
    monkeypatch.setattr(lint, "find_ruff", lambda: path)
    if status is Status.TIMED_OUT:
        monkeypatch.setattr(lint, "SECONDS", 0.5)
    score = lint_reward("print(1)")
    assert score.status is status
    assert reason in score.reason
    with pytest.raises(LintUnavailableError, match="ruff does not work here"):
        check_lint()


def test_the_extra_is_named_where_ruff_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    check_lint()
    monkeypatch.setitem(sys.modules, "ruff.__main__", None)
    assert lint_reward("print(1)").status is Status.UNGRADABLE
    with pytest.raises(LintUnavailableError, match=r"pip install 'r1jax\[code\]'"):
        check_lint()
