"""RL goes on while graders hang and their processes are killed, and its metrics say so."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import threading
from typing import Any

import pytest
import test_stages

from r1jax.metrics import read_rows
from r1jax.rewards import workers
from r1jax.rewards.mathematics import math_grader
from r1jax.rewards.mathematics.math_grader import MathGrader
from r1jax.stages import rl

base = test_stages.base
one_device = test_stages.one_device

HANGS = r"\sum_{n=1}^{999999999} \sin(n^n)"  # math-verify never ends on it


@pytest.fixture
def graders(monkeypatch: pytest.MonkeyPatch) -> list[MathGrader]:
    """Every grader that a stage opens. Texts of noise count as the answer x^2 or x, so that something is graded."""
    opened: list[MathGrader] = []
    original = MathGrader.__init__

    def remember(self: MathGrader, *args: Any) -> None:
        original(self, *args)
        opened.append(self)

    monkeypatch.setattr(MathGrader, "__init__", remember)
    monkeypatch.setattr(math_grader, "extract_final_answer", lambda text: "x^2" if len(text) % 2 else "x")
    return opened


@pytest.mark.slow
def test_rl_goes_on_when_a_verifier_hangs_and_when_its_process_is_killed(
    base: pathlib.Path, tmp_path: pathlib.Path, graders: list[MathGrader], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = tmp_path / "questions.jsonl"
    rows = [{"question": f"compute {n} + 2 ?", "answer": HANGS if n % 2 else r"x \cdot x"} for n in range(8)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = base.parent / "rl_grading"
    folder.mkdir()
    config = test_stages.rl_config(
        rollouts=2,
        rewards={"comparison": "expressions", "grading_seconds": 0.6, "grading_workers": 2, "format": 0.0},
        source={"kind": "jsonl", "path": str(questions), "size": 0, "split": ""},
        evaluation={"every": 0},
    )
    hung: list[int] = []
    original = workers._Worker.ask

    def kill_the_third_that_hangs(self: Any, arguments: list[Any], seconds: float) -> Any:
        if arguments[0] == HANGS:
            hung.append(self.process.pid)
            if len(hung) == 3:
                threading.Timer(0.2, os.kill, (self.process.pid, signal.SIGKILL)).start()
        return original(self, arguments, seconds)

    monkeypatch.setattr(workers._Worker, "ask", kill_the_third_that_hangs)
    rl.run(config, folder)
    (grader,) = graders  # one for the whole stage
    assert grader.pool._closed
    assert not any(pathlib.Path(f"/proc/{process}").exists() for process in grader.pool.process_ids())
    found = [row for row in read_rows(folder / "metrics.jsonl") if "right/accuracy" in row]
    assert len(found) == 2
    names = ("right", "wrong", "ungradable", "timed_out")
    totals = {name: sum(row[f"{name}/accuracy"] for row in found) for name in names}
    assert sum(totals.values()) == 2 * config.prompts * config.group_size
    assert totals["timed_out"] > 0
    assert totals["ungradable"] == 1, "the answer whose process was killed"
    assert grader.counts["crashed"] == 1
    assert totals["right"] > 0
    assert totals["wrong"] > 0
    assert found[0]["ungradable"] == found[0]["timed_out/accuracy"] + found[0]["ungradable/accuracy"]
    assert json.loads((folder / "summary.json").read_text())["rollouts"] == 2
